"""What is written down of a machine with a GPU."""

from __future__ import annotations

import pytest

import machine


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Put a program in the place of nvidia-smi, which answers with what it was called with."""

    def install(text):
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return install


def test_gpu_is_the_one_that_workers_see(monkeypatch, nvidia_smi):
    nvidia_smi('echo "GPU $1, 9.0, 81559 MiB, 1980 MHz, 345 MHz, 580.1"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert machine.describe_gpu() == {
        "name": "GPU --id=3",
        "compute_cap": "9.0",
        "memory.total": "81559 MiB",
        "clocks.max.sm": "1980 MHz",
        "clocks.sm": "345 MHz",
        "driver_version": "580.1",
    }


def test_machine_whose_nvidia_smi_fails_or_is_not_there_has_no_description(nvidia_smi):
    nvidia_smi("exit 6")
    assert machine.describe_gpu() == {}


@pytest.mark.parametrize(("device", "asked"), [("cpu", {}), ("gpu", {"name": "a GPU"})])
def test_gpu_is_asked_for_where_it_is_measured(monkeypatch, device, asked):
    monkeypatch.setattr(machine, "describe_gpu", lambda: {"name": "a GPU"})
    described = machine.describe(machine.Plan(1, 1, 1, None, 1), False, 1, device)
    assert (described["device"], described["gpu"]) == (device, asked)
