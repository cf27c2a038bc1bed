"""A status of CUDA or cublasLt becomes an error that names the call, the problem, the device."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from reference import Array

A = np.ones((5, 7), np.float32)
B = np.ones((7, 3), np.float32)
DY = np.ones((5, 3), np.float32)

OUT_OF_MEMORY = 2
SOME_ERROR = 700  # an illegal address
ALLOC_FAILED, EXECUTION_FAILED = 3, 13  # of cublasLt


def forward(cuda: ModuleType) -> Any:
    bias = cuda.to_device(np.ones(3, np.float32))
    return cuda.matmul(cuda.to_device(A), cuda.to_device(B), bias, activation="gelu")


def backward(cuda: ModuleType) -> Any:
    saved = cuda.to_device(DY)
    return cuda.matmul_gradient(
        *map(cuda.to_device, (DY, A, B)), saved,
        needed=["a", "b", "bias"], activation="gelu",
        regions={"b_columns": np.array([0, 2])},
    )  # fmt: skip


@pytest.mark.parametrize("work", [forward, backward])
@pytest.mark.parametrize(
    "call", ["cudaStreamIsCapturing", "cudaEventRecord", "cudaEventSynchronize", "launch"]
)
def test_status_of_the_runtime_is_an_error(emulated: ModuleType, work: Any, call: str) -> None:
    emulated.hooks.failing_call, emulated.hooks.error = call, SOME_ERROR
    with pytest.raises(RuntimeError) as error:
        work(emulated)
    message = str(error.value)
    assert ("kernel" if call == "launch" else call) in message
    assert "cudaErrorEmulated" in message
    assert "the product m=5 n=3 k=7 of a [5, 7] (normal) and b [7, 3] (normal), float32" in message
    assert "on an emulated GPU" in message
    work(emulated)  # and the next call is as good as ever


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaMemsetAsync"])
def test_status_of_a_copy_is_an_error(emulated: ModuleType, call: str) -> None:
    arrays = [emulated.to_device(x) for x in (DY, A, B, DY)]
    emulated.hooks.failing_call, emulated.hooks.error = call, SOME_ERROR
    with pytest.raises(RuntimeError, match=call):
        emulated.matmul_gradient(
            *arrays, needed=["b"], activation="gelu", regions={"b_columns": np.array([0, 2])}
        )


@pytest.mark.parametrize("work", [forward, backward])
def test_status_of_cublas_lt_is_an_error(emulated: ModuleType, cublas_lt: Any, work: Any) -> None:
    work(emulated)  # so that no candidate is tried, of which one may fail
    cublas_lt.emulated_fail_next(EXECUTION_FAILED)
    with pytest.raises(RuntimeError, match=r"cublasLtMatmul: CUBLAS_STATUS_EMULATED; in .*m=5 n=3"):
        work(emulated)
    cublas_lt.emulated_fail_next(ALLOC_FAILED)
    with pytest.raises(MemoryError, match=r"cublasLtMatmul: CUBLAS_STATUS_ALLOC_FAILED; in .*m=5"):
        work(emulated)


def test_no_memory_is_an_error_that_says_so(emulated: ModuleType) -> None:
    arrays = [emulated.to_device(x) for x in (DY, A)]
    emulated.hooks.failing_call, emulated.hooks.error = "cudaMallocFromPoolAsync", OUT_OF_MEMORY
    with pytest.raises(MemoryError, match="out of memory"):
        emulated.matmul_gradient(*arrays, needed=["b"])


def test_no_memory_for_scratch_leaves_the_choice_to_cublas_lt(
    emulated: ModuleType, cublas_lt: Any
) -> None:
    """A product that fits runs, even where what would be timed does not fit beside it."""
    a, b = emulated.to_device(A), emulated.to_device(B)
    out = emulated.matmul(a, b)  # whose allocation is the first; then comes the scratch
    emulated.forget_algorithms()
    before = [cublas_lt.emulated_calls(i) for i in range(2)]
    emulated.hooks.calls_before_failing = 1
    emulated.hooks.failing_call, emulated.hooks.error = "cudaMallocFromPoolAsync", OUT_OF_MEMORY
    again = emulated.matmul(a, b)
    np.testing.assert_array_equal(again.numpy(), out.numpy())
    assert [cublas_lt.emulated_calls(i) - n for i, n in enumerate(before)] == [1, 0]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_are_refused(cuda: ModuleType, dtype: str) -> None:
    a, b = (cuda.to_device(x.astype(dtype)) for x in (A, B))
    with pytest.raises(ValueError, match="integers run on the CPU only"):
        cuda.matmul(a, b)


class Interface:
    """An array by its interface alone."""

    def __init__(self, memory: Any, **changes: Any) -> None:
        self.memory = memory
        self.__cuda_array_interface__ = {**memory.__cuda_array_interface__, **changes}


def test_bad_arrays_are_named(cuda: ModuleType) -> None:
    a, b = cuda.to_device(A), cuda.to_device(B)
    with pytest.raises(TypeError, match="`a` is a list; due is an array with __cuda_array_inter"):
        cuda.matmul([[1.0]], b)
    with pytest.raises(TypeError, match="`b` is not in a GPU's memory"):
        cuda.matmul(a, B)
    host = (B.ctypes.data, False)
    with pytest.raises(TypeError, match="`b` is not in a GPU's memory"):
        cuda.matmul(a, Interface(b, data=host))
    with pytest.raises(ValueError, match="`b` is strided; due is a dense array"):
        cuda.matmul(a, Interface(b, shape=(7, 2), strides=(12, 4)))
    with pytest.raises(TypeError, match="`b` has dtype uint16; due is one of float32"):
        cuda.matmul(a, Interface(b, typestr="<u2"))
    with pytest.raises(TypeError, match="`b` has dtype float64; due is float32, as the other"):
        cuda.matmul(a, cuda.to_device(B.astype(np.float64)))
    with pytest.raises(TypeError, match="unexpected keyword argument `threads`"):
        cuda.matmul(a, b, threads=1)


def run_with_library(library: str) -> str:
    """What a product says where STOPGRAD_CUBLASLT names this library."""
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
import emulated_gpu
import numpy as np
module = emulated_gpu.load()
os.environ["STOPGRAD_CUBLASLT"] = {library!r}
try:
    module.matmul(*(module.to_device(np.ones((2, 2), np.float32)) for _ in range(2)))
except RuntimeError as error:
    print(error)
print(module.info()["cublas_lt_missing"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


@pytest.mark.usefixtures("emulated")
def test_library_that_is_not_there_is_named() -> None:
    product, info = run_with_library("/nowhere/libcublasLt.so.13").splitlines()
    assert "STOPGRAD_CUBLASLT names a library that cannot be opened" in product
    assert "/nowhere/libcublasLt.so.13" in product
    assert product.startswith(info)


@pytest.mark.usefixtures("emulated")
def test_library_that_is_another_one_is_named() -> None:
    other = ctypes.util.find_library("z") or "libdl.so.2"
    product, _ = run_with_library(other).splitlines()
    assert "is no cublasLt 12 or 13: it has no cublasLtCreate" in product


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("major", "runs"), [(7, False), (8, True), (9, True), (12, True)])
def test_device_that_the_kernels_were_not_built_for_is_named(major: int, runs: bool) -> None:
    """Built for 8.0 and 9.0, and PTX of 9.0; in a process of its own, as devices are asked once."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import emulated_gpu
module = emulated_gpu.load()
module.hooks.compute_capability = {major}
print(module.info()["devices_missing"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message = f"(compute capability {major}.0) does not run; set CUDAARCHS={major}0"
    assert (message in run.stdout) == (not runs)
    assert bool(run.stdout.strip()) == (not runs)


def test_errors_leave_no_memory_behind(emulated: ModuleType) -> None:
    before = emulated.hooks.bytes_in_use
    for call in ("launch", "cudaMallocFromPoolAsync", "cudaEventRecord", "cudaMemcpyAsync"):
        emulated.forget_algorithms()
        emulated.hooks.failing_call, emulated.hooks.error = call, SOME_ERROR
        with pytest.raises(RuntimeError):
            backward(emulated)
    assert emulated.hooks.bytes_in_use == before


def test_array_is_the_reference_to_its_memory(emulated: ModuleType) -> None:
    before = emulated.hooks.bytes_in_use
    result: Array = forward(emulated).numpy()
    assert result.shape == (5, 3)
    assert emulated.hooks.bytes_in_use == before
