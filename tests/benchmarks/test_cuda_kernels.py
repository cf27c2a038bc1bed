"""The benchmark of the CUDA kernels runs, and says why where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import emulated_gpu
import pytest

from stopgrad_op import _library

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cuda_kernels.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


def test_script_measures_all_it_promises(tmp_path: Path) -> None:
    emulated_gpu.load()
    file = tmp_path / "records.json"
    finished = run("--device", "emulated", "--quick", "--json", str(file))
    assert finished.returncode == 0, finished.stderr
    machine, *records = json.loads(file.read_text())
    assert machine["machine"]["devices"] == ["an emulated GPU (compute capability 9.0)"]
    assert {r["dtype"] for r in records if r["suite"] == "products"} == {
        "bfloat16", "float16", "tf32", "float32", "float64",
    }  # fmt: skip
    assert {r["suite"] for r in records} == {"products", "step", "passes", "host"}
    assert all(seconds > 0 for r in records for seconds in r["seconds"].values())
    for text in (
        "TFLOP/s", "cublasLt's best", "backward, a blocked", "products", "bias and gelu",
        "take every second row", "of the copy's bandwidth", "first call at a new size",
    ):  # fmt: skip
        assert text in finished.stdout


def test_without_a_gpu_it_says_why() -> None:
    info = _library.cuda_info()
    reason = _library.build_info()["cuda_missing"] if info is None else info["devices_missing"]
    if not reason:
        pytest.skip("there is a GPU")
    finished = run()
    assert finished.returncode == 1
    assert f"there is nothing to measure: {reason}" in finished.stderr
