"""What runs on the device, and what does not."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
import reference
from reference import LAYOUTS


def test_zero_scales_launch_nothing(emulated: ModuleType, rng: np.random.Generator) -> None:
    dy, a, b = (rng.standard_normal(s).astype(np.float32) for s in [(8, 6), (8, 4), (4, 6)])
    arrays = [emulated.to_device(x) for x in (dy, a, b)]
    emulated.hooks.launches = 0
    emulated.reset_kernel_stats()
    results = emulated.matmul_gradient(
        *arrays, needed=["a", "b", "bias"], scales={"a": 0.0, "b": 0.0, "bias": 0.0}, poison=True
    )
    assert all(not np.any(result.numpy()) for result in results.values())
    assert emulated.hooks.launches == 0
    assert emulated.kernel_stats()["backward"]["products"] == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"], indirect=True)
def test_nothing_is_written_outside_of_an_array(
    emulated: ModuleType, rng: np.random.Generator, dtype: str
) -> None:
    for layout_a, layout_b in itertools.product(LAYOUTS, LAYOUTS):
        m, n, k = (int(x) for x in rng.integers(1, 40, 3))
        problem = reference.random_problem(
            rng, (2, m, k), (k, n), dtype, bias=True, layout_a=layout_a, layout_b=layout_b
        )
        assert problem.bias is not None
        arrays = [emulated.to_device(x) for x in (problem.a, problem.b, problem.bias)]
        y = emulated.matmul(*arrays, layout_a=layout_a, layout_b=layout_b)
        results = emulated.matmul_gradient(
            y, *arrays[:2], needed=["a", "b", "bias", "z"], layout_a=layout_a, layout_b=layout_b
        )
        rows = rng.random((2, m)) < 0.5
        results = emulated.matmul_gradient(
            y, *arrays[:2], needed=["a", "b", "bias"], layout_a=layout_a, layout_b=layout_b,
            rows=rows, regions={"b_rows": np.array([0]), "a_columns": (0, None, 2)},
        )  # fmt: skip
        del y, arrays, results
    assert emulated.hooks.writes_outside == 0


def test_the_emulation_finds_what_is_written_outside(emulated: ModuleType) -> None:
    """Or the test before shows nothing."""
    import ctypes

    array = emulated.to_device(np.ones(3, np.float32))
    address, _ = array.__cuda_array_interface__["data"]
    ctypes.c_float.from_address(address + 12).value = 1
    del array
    assert emulated.hooks.writes_outside == 1


def test_lists_are_carried_while_a_graph_is_captured(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    """Of several kilobytes, so that one kernel's parameters do not hold them."""
    problem = reference.random_problem(rng, (1500, 3), (3, 4), "float32", activation="elu")
    z = reference.preactivation(problem).value.astype(np.float32)
    y = reference.activate("elu", z).astype(np.float32)
    dy = reference.random_array(rng, z.shape, "float32")
    rows = rng.choice([0.0, 1.0, -2.0], 1500)
    chosen = np.flatnonzero(rng.random(1500) < 0.7)
    arrays = [emulated.to_device(x) for x in (dy, problem.a, problem.b, y)]
    emulated.hooks.capturing = True
    emulated.hooks.failing_call = "cudaMemcpyAsync"
    emulated.hooks.error = 1
    results = emulated.matmul_gradient(
        *arrays, needed=["a", "b", "bias"], activation="elu", rows=rows,
        regions={"a_rows": chosen}, poison=True,
    )  # fmt: skip
    emulated.hooks.failing_call = ""
    mask = np.zeros((1500, 1), bool)
    mask[chosen] = True
    exact = reference.gradients(
        problem, dy, None, z, rows=rows, regions={"a": np.broadcast_to(mask, (1500, 3))}
    )
    for name, result in results.items():
        reference.assert_close(result.numpy(), exact[name], "float32", what=name)
