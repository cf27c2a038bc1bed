"""The kernels on another device, behind the functions that `_kernels` has for NumPy arrays."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import emulated_gpu
import pytest
from reference import INTEGERS, Array

from stopgrad_op import _kernels

# What --device may be: the processor, a GPU, or what stands for one where there is none.
DEVICES = ("cpu", "gpu", "emulated")


# Whether --device says that TensorFlow's ops run on a GPU.
ops_run_on_gpu = False


def cuda_module(device: str) -> ModuleType:
    """Return `_kernels.cuda` for a GPU or its emulation, or skip the test, saying why."""
    if device == "emulated":
        return emulated_gpu.load()
    if missing := _kernels.build_info()["cuda_missing"]:
        pytest.skip(f"built without CUDA: {missing}")
    module: ModuleType = _kernels.cuda
    info = module.info()
    for what in ("devices_missing", "cublas_lt_missing"):
        if info[what]:
            pytest.skip(info[what])
    return module


def on_device(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return `matmul` and `matmul_gradient` that copy arrays to the device and results back."""

    # A GPU gathers rows of large products only, and fills up none but large ones of odd rows. Here
    # some calls do; with these periods all four ways occur, whatever calls a test makes in turn.
    gathers = itertools.cycle((False, True))
    fills = itertools.cycle((False, True, True))

    def to_device(array: Array | None) -> Any:
        if array is None:
            return None
        if array.dtype.newbyteorder("=").name in INTEGERS:
            pytest.skip("integers run on the CPU only")
        return module.to_device(array)

    def matmul(*arrays: Array | None, **options: Any) -> Any:
        options.pop("threads", None)
        result = module.matmul(*map(to_device, arrays), always_fill=next(fills), **options)
        return tuple(y.numpy() for y in result) if isinstance(result, tuple) else result.numpy()

    def matmul_gradient(
        dy: Array,
        a: Array | None = None,
        b: Array | None = None,
        saved: Array | None = None,
        **options: Any,
    ) -> dict[str, Array]:
        options.pop("threads", None)
        arrays = map(to_device, (dy, a, b, saved))
        results = module.matmul_gradient(
            *arrays, always_gather=next(gathers), always_fill=next(fills), **options
        )
        return {name: result.numpy() for name, result in results.items()}

    functions: dict[str, Callable[..., Any]] = {
        "matmul": matmul,
        "matmul_gradient": matmul_gradient,
        "build_info": functools.partial(dict, _kernels.build_info(), instructions="CUDA"),
    }
    # The emulation counts for itself.
    for name in ("kernel_stats", "reset_kernel_stats"):
        if hasattr(module, name):
            functions[name] = getattr(module, name)
    return functions
