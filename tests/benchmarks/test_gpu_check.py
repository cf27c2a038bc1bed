"""That what needs a GPU measures the ops beside others too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def steps(monkeypatch):
    """Return the steps by name, on a machine where TensorFlow sees a GPU or does not."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)

    def steps(quick, sees_gpu=True):
        probed = SimpleNamespace(returncode=int(not sees_gpu))
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: probed)
        return {step.name: step for step in module.steps(quick)}

    return steps


def options(step):
    _, script, *arguments = step.command
    assert (ROOT / script).samefile(run.__file__)
    return run._arguments(arguments)


def test_quick_run_comes_first_and_writes_nothing(steps):
    found = steps(quick=False)
    assert list(found)[-2:] == ["bench-quick", "bench"]
    quick = options(found["bench-quick"])
    assert (quick.device, quick.quick, quick.json, quick.report) == ("gpu", True, None, None)


def test_figures_are_written_where_those_of_make_bench_are(steps):
    whole = options(steps(quick=False)["bench"])
    results = ROOT / "benchmarks" / "results"
    assert (whole.device, whole.quick) == ("gpu", False)
    assert (whole.json, whole.report) == (results / "gpu.json", results / "gpu.md")
    assert whole.plot in (None, results / "gpu.png")


def test_quick_check_has_no_figures(steps):
    assert list(steps(quick=True))[-1] == "bench-quick"


def test_without_a_gpu_nothing_is_measured_and_it_says_why(steps):
    assert steps(quick=False, sees_gpu=False)["bench"].missing
    assert not steps(quick=False)["bench"].missing
