"""csrc/cuda on an emulated GPU: built from tests/cuda/emulation, loaded as a module.

What runs is the source that is compiled for real GPUs, compiled as C++: its indices, masks, sums,
plans and choices. What cannot be seen there: what nvcc makes of it, what cublasLt does, time.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import find_cuda
import pytest

ROOT = Path(__file__).parents[1]
# Beside other builds, so that the next run builds only what changed.
BUILD = ROOT / "build" / "emulated"
CUBLAS_LT = BUILD / "libemulated_cublas_lt.so"


def _program(name: str) -> str | None:
    """Return the path of a program of this environment, activated or not, or of the system."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=path)


@cache
def _build() -> str:
    """Build it and return what went wrong."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests" / "cuda" / "emulation"
    cmake = str(_program("cmake"))
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    python = f"-DPython_EXECUTABLE={sys.executable}"
    with (BUILD / "lock").open("w") as lock:  # several processes may run tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            [cmake, "-S", source, "-B", BUILD, python, *generator],
            [cmake, "--build", BUILD, "--parallel", str(os.cpu_count())],
        ):
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                return run.stdout + run.stderr
    return ""


@cache
def load() -> ModuleType:
    """Return the module, or skip the test where it cannot be built."""
    if missing := find_cuda.describe()["headers_missing"]:
        pytest.skip(f"an emulated GPU needs CUDA's headers: {missing}")
    if _program("cmake") is None:
        pytest.skip("an emulated GPU needs cmake. Type: pip install cmake")
    if error := _build():
        pytest.fail(error)
    os.environ["STOPGRAD_CUBLASLT"] = str(CUBLAS_LT)
    (path,) = BUILD.glob("emulated_cuda.*.so")
    spec = importlib.util.spec_from_file_location("emulated_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def cublas_lt() -> Any:
    """Return the emulated cublasLt, whose functions `emulated_...` count and steer its calls."""
    load()
    library = ctypes.CDLL(str(CUBLAS_LT))
    for name in ("emulated_calls", "emulated_fused_calls"):
        getattr(library, name).restype = ctypes.c_int64
    return library


# What `slow` may make slow: products whose epilogue is fused, or those that are bare.
SLOW = ("neither", "fused", "separate")


def make_slow(which: str) -> None:
    """Make these products of the emulated cublasLt slow, and timing wait for all candidates."""
    cublas_lt().emulated_make_slow(SLOW.index(which))
    load().set_search(milliseconds=10_000)  # however busy the machine is


def calls() -> list[int]:
    """Return how often each algorithm of the emulated cublasLt has run."""
    return [cublas_lt().emulated_calls(i) for i in range(3)]
