"""Arrays come from any library and go to any, by either protocol."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference
from reference import COMPLEX, FLOATING, INTEGERS

every_dtype = pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX, *INTEGERS), indirect=True)


@every_dtype
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 5)], ids=str)
def test_copies_to_the_device_and_back(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.asarray(reference.random_array(rng, shape, dtype))
    copy = cuda.to_device(array)
    assert copy.shape == shape
    assert copy.dtype == dtype
    assert copy.numpy().dtype == array.dtype
    np.testing.assert_array_equal(copy.numpy(), array)


class DLPack:
    """An array that has nothing but DLPack."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, stream: int | None = None) -> Any:
        return self.array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
def test_arrays_by_dlpack(cuda: ModuleType, rng: np.random.Generator, dtype: str) -> None:
    problem = reference.random_problem(rng, (2, 5, 7), (7, 3), dtype)
    y = cuda.matmul(DLPack(cuda.to_device(problem.a)), DLPack(cuda.to_device(problem.b)))
    reference.assert_close(y.numpy(), reference.forward(problem), dtype)


def test_capsule_that_nobody_takes_gives_its_memory_back(emulated: ModuleType) -> None:
    before = emulated.hooks.bytes_in_use
    array = emulated.to_device(np.ones(3, np.float32))
    capsule = array.__dlpack__()
    del array
    assert emulated.hooks.bytes_in_use > before
    del capsule
    assert emulated.hooks.bytes_in_use == before


def test_interface_knows_no_bfloat16(cuda: ModuleType) -> None:
    array = cuda.to_device(np.ones(3).astype(reference.numpy_dtype("bfloat16")))
    assert not hasattr(array, "__cuda_array_interface__")
