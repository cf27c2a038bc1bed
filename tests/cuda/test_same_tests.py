"""The tests of the CPU's kernels, on the CUDA kernels; with --device gpu they run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "kernels"
OPTIONS = ["-q", "-p", "no:cacheprovider", "--device", "emulated"]
# Without the sizes that cross borders of the CPU's blocking, which take long where each thread of
# the GPU is a context of its own.
SMALL = "not border"


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("file", ["test_activations.py", "test_control.py", "test_products.py"])
def test_cuda_kernels_pass_the_tests_of_the_cpu(file: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, "-k", SMALL, str(KERNELS / file)],
        cwd=KERNELS.parents[1],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
