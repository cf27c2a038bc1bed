"""What the CUDA kernels are built with, and what is said where it is missing."""

from __future__ import annotations

from pathlib import Path

import find_cuda
import pytest


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a toolkit, and a folder in which NVIDIA's packages may be."""
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "STOPGRAD_CUDA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(find_cuda, "TOOLKIT", tmp_path / "no toolkit")
    monkeypatch.setattr(find_cuda, "package_folders", lambda: (tmp_path / "nvidia",))
    return tmp_path


def add(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n')
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("bare")
def test_machine_without_anything_says_what_to_type() -> None:
    described = find_cuda.describe()
    assert described["compiler"] is described["runtime_include"] is None
    assert str(described["missing"]).startswith("there is no nvcc 12 or 13. Type: pip")
    assert described["headers_missing"] == (
        "there is no cublasLt.h. Type: pip install 'nvidia-cublas>=13,<14'"
    )


def test_packages_of_nvidia_are_enough(bare: Path) -> None:
    toolkit = bare / "nvidia" / "cu13"
    nvcc = add(toolkit / "bin" / "nvcc")
    add(toolkit / "include" / "cublasLt.h")
    add(toolkit / "include" / "crt" / "host_defines.h")
    assert find_cuda.describe() == {
        "compiler": str(nvcc),
        "runtime_include": str(toolkit / "include"),
        "cublas_include": str(toolkit / "include"),
        "headers_missing": None,
        "missing": None,
    }


def test_toolkit_comes_before_packages(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(bare / "nvidia" / "cu13" / "bin" / "nvcc")
    nvcc = add(find_cuda.TOOLKIT / "bin" / "nvcc")
    assert find_cuda.find_compiler() == nvcc
    on_path = add(bare / "bin" / "nvcc")
    assert find_cuda.find_compiler() == on_path
    chosen = add(bare / "chosen" / "nvcc")
    monkeypatch.setenv("CUDACXX", str(chosen))
    assert find_cuda.find_compiler() == chosen


def test_compiler_of_another_release_is_passed_over(bare: Path) -> None:
    old = add(bare / "bin" / "nvcc")
    old.write_text('#!/bin/sh\necho "Cuda compilation tools, release 11.5, V11.5.119"\n')
    assert find_cuda.find_compiler() is None
    nvcc = add(bare / "nvidia" / "cu13" / "bin" / "nvcc")
    assert find_cuda.find_compiler() == nvcc


def test_header_of_cublas_lt_comes_from_tensorflow(bare: Path) -> None:
    include = bare / "tensorflow" / "include"
    header = add(include / "external" / "cuda_cublas" / "include" / "cublasLt.h")
    add(bare / "nvidia" / "cublas" / "include" / "cublasLt.h")
    assert find_cuda.describe(str(include))["cublas_include"] == str(header.parent)
    assert find_cuda.describe()["cublas_include"] == str(bare / "nvidia" / "cublas" / "include")


@pytest.mark.parametrize(
    ("distribution", "option", "asks"),
    [
        ("tensorflow", None, True),
        ("tf-nightly", "AUTO", True),
        ("tensorflow", "ON", True),
        ("tensorflow", "OFF", False),
        ("tensorflow-cpu", None, False),
        ("tensorflow-rocm", None, False),
    ],
)
def test_compiler_is_asked_for_where_tensorflow_uses_gpus(
    bare: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, option: str | None, asks: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    if option is not None:
        monkeypatch.setenv("STOPGRAD_CUDA", option)
    wanted = list(find_cuda.COMPILER_PACKAGES) if asks else []
    assert find_cuda.requirements(distribution) == wanted
    add(bare / "bin" / "nvcc")
    assert find_cuda.requirements(distribution) == []


@pytest.mark.usefixtures("bare")
def test_other_machines_have_no_gpu_build_of_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert find_cuda.requirements("tensorflow") == []
