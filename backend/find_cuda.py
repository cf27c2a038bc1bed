"""Find what the CUDA kernels are built with: nvcc, and the headers of the runtime and cublasLt.

As a script it prints one JSON object, which CMake reads; the build hooks import it. Where something
is missing it says what, and what to type. Nothing has to be linked with: the runtime is static and
cublasLt is opened when it is needed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from find_tensorflow import places
from stopgrad_metadata import is_on

# NVIDIA's packages on PyPI that make a compiler, and those that have the headers of libraries.
COMPILER_PACKAGES = (
    "nvidia-cuda-nvcc>=13,<14",
    "nvidia-cuda-crt>=13,<14",
    "nvidia-nvvm>=13,<14",
    "nvidia-cuda-runtime>=13,<14",
    "nvidia-cuda-cccl>=13,<14",
    "nvidia-nvtx>=13,<14",
)
CUBLAS_PACKAGE = "nvidia-cublas>=13,<14"

# The distributions of TensorFlow that are built for NVIDIA's GPUs.
GPU_DISTRIBUTIONS = ("tensorflow", "tf-nightly")

# Where NVIDIA's installers put their toolkit.
TOOLKIT = Path("/usr/local/cuda")

_LIST = """
import importlib.util
spec = importlib.util.find_spec("nvidia")
print(*(spec.submodule_search_locations or () if spec else ()), sep="\\n")
"""


def requirements(distribution: str) -> list[str]:
    """Return what a build for this distribution of TensorFlow needs from PyPI.

    Nothing where TensorFlow knows no GPUs or a compiler is there. The header of cublasLt comes with
    a TensorFlow that does.
    """
    is_for_gpus = distribution in GPU_DISTRIBUTIONS and platform.machine() == "x86_64"
    is_wanted = sys.platform == "linux" and is_on("STOPGRAD_CUDA")
    if not (is_for_gpus and is_wanted) or find_compiler():
        return []
    return list(COMPILER_PACKAGES)


@cache
def package_folders() -> tuple[Path, ...]:
    """Return the folders that NVIDIA's packages for Python are in."""
    found = (line for place in places() for line in place.run(_LIST).stdout.splitlines())
    return tuple(Path(line) for line in dict.fromkeys(found) if line)


def is_usable(compiler: Path) -> bool:
    """Whether this is nvcc of CUDA 12 or 13."""
    try:
        run = subprocess.run([str(compiler), "--version"], capture_output=True, text=True)
    except OSError:
        return False
    return re.search(r"release 1[23]\.", run.stdout) is not None


def find_compiler() -> Path | None:
    """Return nvcc 12 or 13: what CUDACXX names, or on PATH, or the toolkit's, or from PyPI."""
    chosen = os.environ.get("CUDACXX")
    candidates = [
        shutil.which(chosen) if chosen else None,
        shutil.which("nvcc"),
        TOOLKIT / "bin" / "nvcc",
        *(folder / "cu13" / "bin" / "nvcc" for folder in package_folders()),
    ]
    return next((Path(c) for c in candidates if c and is_usable(Path(c))), None)


def include_folders(tensorflow_include: str | None) -> Iterator[Path]:
    """Yield where headers may be, the best place first."""
    # The compiler's own first: the runtime that it links has to have the headers' version.
    if compiler := find_compiler():
        yield compiler.resolve().parent.parent / "include"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home) / "include"
    yield TOOLKIT / "include"
    if tensorflow_include:
        external = Path(tensorflow_include) / "external"
        yield from (header.parent for header in sorted(external.glob("cuda_*/**/cublasLt.h")))
    for folder in package_folders():
        for name in ("cu13", "cuda_runtime", "cublas"):
            yield folder / name / "include"


def find_header(header: str, tensorflow_include: str | None) -> Path | None:
    """Return the first folder that has the header."""
    folders = include_folders(tensorflow_include)
    return next((folder for folder in folders if (folder / header).is_file()), None)


def describe(tensorflow_include: str | None = None) -> dict[str, str | None]:
    """Return the compiler, the folders of headers, and what is missing; None where nothing is."""
    compiler = find_compiler()
    cublas = find_header("cublasLt.h", tensorflow_include)
    # Whose own headers need more of the toolkit's than the runtime's package has.
    runtime = find_header("crt/host_defines.h", tensorflow_include)
    headers_missing = compiler_missing = None
    if cublas is None:
        headers_missing = f"there is no cublasLt.h. Type: pip install '{CUBLAS_PACKAGE}'"
    elif runtime is None:
        headers_missing = "there are no headers of the CUDA runtime"
    if compiler is None:
        packages = " ".join(f"'{package}'" for package in COMPILER_PACKAGES)
        compiler_missing = f"there is no nvcc 12 or 13. Type: pip install {packages}"
    return {
        "compiler": str(compiler) if compiler else None,
        "runtime_include": str(runtime) if runtime else None,
        "cublas_include": str(cublas) if cublas else None,
        "headers_missing": headers_missing,
        "missing": compiler_missing or headers_missing,
    }


def main() -> int:
    """Print what CMake needs to know as JSON, given TensorFlow's folder of headers, if any.

    With `--packages`, print the packages to install where there is no compiler, or no cublasLt.h
    beside it.
    """
    if sys.argv[1:] == ["--packages"]:
        print(*(() if find_compiler() else COMPILER_PACKAGES), CUBLAS_PACKAGE, sep="\n")
        return 0
    print(json.dumps(describe(sys.argv[1] if len(sys.argv) > 1 else None)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
