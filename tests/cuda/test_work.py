"""What runs on the device, and what does not."""

from __future__ import annotations

import itertools
from types import ModuleType

import emulated_gpu
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


def test_long_lists_do_not_make_the_host_wait(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    """They go through page-locked memory, which is used again once it was copied.

    The emulation copies it as late as a GPU may, so that what is written there too early shows.
    """
    count = 30_000  # 240 kB of places, and as much of weights
    dy = reference.random_array(rng, (count, 2), "float32")
    problem = reference.random_problem(rng, (count, 1), (1, 2), "float32")
    arrays = [emulated.to_device(x) for x in (dy, problem.a)]

    def check() -> None:
        rows = rng.choice([0.0, 1.0, -2.0], count)
        result = emulated.matmul_gradient(
            *arrays, needed=["b"], rows=rows, always_gather=True, poison=True
        )["b"]
        due = (rows[:, None] * problem.a).T @ dy.astype(np.float64)
        np.testing.assert_allclose(result.numpy(), due, rtol=1e-4)

    check()
    blocks = emulated.hooks.locked_blocks
    assert blocks > 0
    for _ in range(3):
        check()
    assert emulated.hooks.locked_blocks == blocks


def test_lists_arrive_where_no_memory_can_be_locked(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    count = 300_000  # more than any list before it
    dy = np.ones((count, 1), np.float32)
    rows = rng.random(count) < 0.5
    emulated.hooks.failing_call, emulated.hooks.error = "cudaHostAlloc", 2
    result = emulated.matmul_gradient(
        emulated.to_device(dy), needed=["bias"], rows=rows, poison=True
    )
    assert emulated.hooks.failing_call == ""
    assert result["bias"].numpy()[0] == np.count_nonzero(rows)


def test_graphs_that_other_threads_capture_are_left_alone(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    """CUDA ends their capture with an error where anybody calls what could wait for it."""
    dy, a = (reference.random_array(rng, (24, cols), "float32") for cols in (8, 4))
    arrays = [emulated.to_device(x) for x in (dy, a)]
    emulated.hooks.others_capture = True
    rows = rng.random(24) < 0.5
    results = emulated.matmul_gradient(*arrays, needed=["b"], rows=rows, poison=True)
    y = emulated.matmul(arrays[0], arrays[0], layout_b="transpose")
    taken = emulated.take_rows(arrays[0], np.arange(0, 24, 2))
    emulated.hooks.others_capture = False
    assert emulated.num_timed() > 0
    assert np.isfinite(y.numpy()).all()
    np.testing.assert_array_equal(taken.numpy(), dy[::2])
    exact = reference.gradients(reference.Problem(a, np.empty((4, 8), np.float32)), dy, rows=rows)
    reference.assert_close(results["b"].numpy(), exact["b"], "float32")


@pytest.mark.parametrize(
    ("dtype", "rows", "calls"), [("float32", 150_000, 3), ("float32", 30, 1), ("float16", 30, 1)]
)
def test_terms_of_a_sum_are_added_in_place_where_factors_are_larger_than_the_result(
    emulated: ModuleType, rng: np.random.Generator,
    dtype: str, rows: int, calls: int,
) -> None:  # fmt: skip
    """Elsewhere one product has all of them, of factors that are copied to lie side by side."""
    problem = reference.random_problem(
        rng, (3, rows, 16), (16, 32), dtype, layout_a="transpose", bias=False
    )
    dy = reference.random_array(rng, (3, rows, 32), dtype)
    arrays = [emulated.to_device(x) for x in (dy, problem.a)]
    before = sum(emulated_gpu.calls())
    result = emulated.matmul_gradient(
        *arrays, needed=["b"], layout_a="transpose", scales={"b": -0.5}, poison=True,
        deterministic=True,
    )  # fmt: skip
    assert sum(emulated_gpu.calls()) == before + calls
    due = reference.gradients(problem, dy, {"b": -0.5})["b"].value
    error = np.abs(result["b"].numpy() - due).max()
    assert error <= 2 * reference.epsilon(dtype) * np.abs(due).max()


def test_terms_are_added_to_the_matrix_that_they_belong_to(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    """Where dimensions that are kept stand on both sides of the one that is summed."""
    a = rng.standard_normal((2, 3, 2, 12_000, 4)).astype(np.float32)
    dy = rng.standard_normal((2, 3, 2, 12_000, 40)).astype(np.float32)
    before = sum(emulated_gpu.calls())
    result = emulated.matmul_gradient(
        emulated.to_device(dy), emulated.to_device(a), needed=["b"], b_shape=(2, 1, 2, 4, 40),
        poison=True, deterministic=True,
    )["b"].numpy()  # fmt: skip
    assert sum(emulated_gpu.calls()) == before + 6
    due = np.einsum("isjkm,isjkn->ijmn", a.astype(np.float64), dy)[:, None]
    np.testing.assert_allclose(result, due, rtol=0, atol=2e-7 * np.abs(due).max())


def test_more_matrices_than_a_call_takes(emulated: ModuleType, rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((70_000, *shape)).astype(np.float32) for shape in [(1, 2), (2, 1)])
    y = emulated.matmul(emulated.to_device(a), emulated.to_device(b), poison=True)
    np.testing.assert_allclose(y.numpy(), a @ b, rtol=1e-5, atol=1e-5)


def test_calls_of_one_product_share_their_workspace(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    a = rng.standard_normal((30, 1, 20, 8)).astype(np.float32)
    b = rng.standard_normal((1, 30, 8, 4)).astype(np.float32)
    arrays = [emulated.to_device(x) for x in (a, b)]
    emulated.matmul(*arrays)  # chooses
    before = emulated_gpu.calls()
    hooks = emulated.hooks
    hooks.most_bytes_in_use = in_use = hooks.bytes_in_use
    y = emulated.matmul(*arrays)
    assert np.subtract(emulated_gpu.calls(), before).tolist() == [0, 30, 0]
    workspace = 1024  # of the second algorithm
    assert hooks.most_bytes_in_use - in_use == y.numpy().nbytes + workspace


@pytest.mark.parametrize(
    ("dtype", "layout_a", "k", "units", "copies"),
    [
        ("bfloat16", "normal", 24, 16, 0),
        ("bfloat16", "normal", 21, 16, 2),  # both factors
        ("float16", "normal", 24, 15, 2),  # the weights and the result
        ("float16", "transpose", 21, 16, 0),  # no row has so many elements as k
        ("float32", "normal", 21, 15, 0),
    ],
)
def test_products_of_odd_rows_are_filled_up(
    emulated: ModuleType, rng: np.random.Generator,
    dtype: str, layout_a: str, k: int, units: int, copies: int,
) -> None:  # fmt: skip
    problem = reference.random_problem(
        rng, (32, k), (k, units), dtype, bias=False, layout_a=layout_a
    )
    arrays = [emulated.to_device(x) for x in (problem.a, problem.b)]
    emulated.hooks.launches = 0
    y = emulated.matmul(*arrays, layout_a=layout_a, always_fill=True, poison=True)
    assert emulated.hooks.launches == copies
    reference.assert_close(y.numpy(), reference.forward(problem), dtype)


@pytest.mark.parametrize(("units", "copies"), [(1024, 2), (16, 0)])
def test_products_are_filled_up_where_that_pays(
    emulated: ModuleType, rng: np.random.Generator, units: int, copies: int
) -> None:
    """A copy of the input takes as long as a product with few units."""
    dtype = "bfloat16"
    a, b = (reference.random_array(rng, s, dtype) for s in ((2048, 1003), (1003, units)))
    arrays = [emulated.to_device(x) for x in (a, b)]
    emulated.hooks.launches = 0
    y = emulated.matmul(*arrays, deterministic=True)
    assert emulated.hooks.launches == copies
    some = np.r_[:40, 2000:2048]
    due = a[some].astype(np.float64) @ b.astype(np.float64)
    error = np.abs(y.numpy()[some] - due).max()
    assert error <= reference.epsilon(dtype) * np.abs(due).max()


@pytest.mark.parametrize("activation", ["linear", "gelu"])
@pytest.mark.parametrize("bias", [False, True])
def test_bias_and_activation_follow_a_product_that_was_filled_up(
    cuda: ModuleType, rng: np.random.Generator, bias: bool, activation: str
) -> None:
    problem = reference.random_problem(
        rng, (3, 12, 7), (7, 11), "float16", bias=bias, activation=activation
    )
    arrays = [problem.a, problem.b] + ([] if problem.bias is None else [problem.bias])
    y, z = cuda.matmul(
        *map(cuda.to_device, arrays), activation=activation, return_preactivation=True,
        always_fill=True, poison=True,
    )  # fmt: skip
    reference.assert_close(y.numpy(), reference.forward(problem), "float16", what="y")
    reference.assert_close(z.numpy(), reference.preactivation(problem), "float16", what="z")


@pytest.mark.parametrize("always_fill", [False, True])
def test_bias_gradient_beside_a_listed_column_of_weights(
    emulated: ModuleType, rng: np.random.Generator, always_fill: bool
) -> None:
    """The factor that is summed has one column, whose rows are as far apart as they are long."""
    problem = reference.random_problem(rng, (33, 24), (24, 1), "float16", layout_b="transpose")
    dy = reference.random_array(rng, (33, 1), "float16")
    emulated_gpu.make_slow("fused")
    found = emulated.matmul_gradient(
        *map(emulated.to_device, (dy, problem.a, problem.b)), needed=["b", "bias"],
        layout_b="transpose", regions={"b_columns": np.arange(0, 24, 2)}, poison=True,
        always_fill=always_fill,
    )  # fmt: skip
    due = dy.astype(np.float64).sum()
    assert abs(float(found["bias"].numpy()[0]) - due) <= 0.01 * np.abs(dy.astype(float)).sum()


def test_products_are_not_filled_up_where_there_is_no_memory(
    emulated: ModuleType, rng: np.random.Generator
) -> None:
    problem = reference.random_problem(rng, (12, 7), (7, 11), "float16", bias=True)
    assert problem.bias is not None
    arrays = [emulated.to_device(x) for x in (problem.a, problem.b, problem.bias)]
    hooks = emulated.hooks
    emulated.matmul(*arrays)  # so that nothing is timed later

    def lack_memory() -> None:
        hooks.calls_before_failing = 1  # y is first
        hooks.failing_call, hooks.error = "cudaMallocFromPoolAsync", 2
        hooks.launches = 0

    lack_memory()
    y = emulated.matmul(*arrays, always_fill=True, poison=True)
    assert not hooks.failing_call
    assert hooks.launches <= 1  # bias, and no copies
    reference.assert_close(y.numpy(), reference.forward(problem), "float16")
    # The other product may round otherwise.
    lack_memory()
    with pytest.raises(MemoryError, match="copies of a product's matrices"):
        emulated.matmul(*arrays, always_fill=True, deterministic=True)
