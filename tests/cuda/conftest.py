"""Tests of csrc/cuda run on a GPU with `--device gpu`, and otherwise on an emulated one."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import devices
import emulated_gpu
import pytest


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> ModuleType:
    """`_kernels.cuda`, which has chosen no algorithms yet."""
    device = request.config.getoption("--device")
    module = devices.cuda_module("gpu" if device == "gpu" else "emulated")
    module.forget_algorithms()
    return module


@pytest.fixture
def emulated() -> Iterator[ModuleType]:
    """The emulation, for what only it can show; afterwards nothing is left of what a test asked."""
    module = emulated_gpu.load()
    module.forget_algorithms()
    module.set_search()
    hooks = module.hooks
    hooks.writes_outside = hooks.synchronizations = hooks.launches = 0
    yield module
    hooks.failing_call, hooks.capturing, hooks.others_capture = "", False, False
    emulated_gpu.cublas_lt().emulated_fail_next(0)
    emulated_gpu.cublas_lt().emulated_make_slow(0)


@pytest.fixture
def cublas_lt(emulated: ModuleType) -> Any:  # noqa: ARG001, it resets what tests ask of the library
    return emulated_gpu.cublas_lt()
