"""Tests of the kernels run on the device that --device names."""

from __future__ import annotations

import devices
import pytest

from stopgrad_op import _kernels

# What they are about is the same on every device; the rest is about the CPU.
EVERYWHERE = ("test_activations", "test_control", "test_products")


@pytest.fixture(autouse=True)
def kernels_of_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    device = request.config.getoption("--device")
    if device == "cpu":
        return
    if request.module.__name__.rpartition(".")[2] not in EVERYWHERE:
        pytest.skip("a test of the CPU's kernels")
    module = devices.cuda_module(device)
    for name, function in devices.on_device(module).items():
        monkeypatch.setattr(_kernels, name, function)
