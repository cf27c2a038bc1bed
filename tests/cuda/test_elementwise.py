"""The pass over dy, and bias and activation, at the sizes where its blocks and vectors end."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import reference
from reference import COMPLEX, FLOATING, Array, Problem

every_dtype = pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
SHAPES = [
    (1, 1),
    (3, 5),
    (33, 8),
    (40, 64),
    (129, 257),
    (3, 4099),
    (5, 4096),
    (2100, 24),
    (9000, 1),
]


def pass_over_dy(
    cuda: ModuleType, dy: Array, saved: Array | None, activation: str, **options: object
) -> dict[str, Array]:
    results = cuda.matmul_gradient(
        cuda.to_device(dy),
        saved=None if saved is None else cuda.to_device(saved),
        activation=activation,
        poison=True,
        **options,
    )
    return {name: result.numpy() for name, result in results.items()}


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dz_and_dbias(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, shape: tuple[int, int]
) -> None:
    activation = "linear" if dtype in COMPLEX else str(rng.choice(["gelu", "tanh", "silu"]))
    rows, cols = shape
    empty = reference.random_problem(rng, (rows, 0), (0, cols), dtype, activation=activation)
    z, dy = (reference.random_array(rng, shape, dtype) for _ in range(2))
    saved = z
    if activation == "tanh":
        saved = reference.activate("tanh", reference.widen(z)).astype(z.dtype)
    exact = reference.gradients(empty, dy, {"bias": -0.5}, z)
    for needed in (["bias"], ["bias", "z"], ["z"]):
        results = pass_over_dy(
            cuda, dy, None if activation == "linear" else saved, activation,
            needed=needed, scales={"bias": -0.5},
        )  # fmt: skip
        for name in needed:
            reference.assert_close(results[name], exact[name], dtype, what=name)


@every_dtype
@pytest.mark.parametrize("region", [(1, None, 1), (0, None, 3), (2, 3, 1), "list"], ids=str)
def test_bias_gradient_of_a_region_of_weighted_rows(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, region: object
) -> None:
    for rows, cols in [(7, 5), (70, 64), (300, 129)]:
        problem = reference.random_problem(rng, (rows, 0), (0, cols), dtype)
        dy = reference.random_array(rng, (rows, cols), dtype)
        weights = rng.choice([0.0, 1.0, -0.5], rows)
        chosen = np.flatnonzero(rng.random(cols) < 0.4) if region == "list" else region
        mask = np.zeros(cols, bool)
        mask[slice(*chosen) if isinstance(chosen, tuple) else chosen] = True
        result = pass_over_dy(
            cuda, dy, None, "linear", needed=["bias"], rows=weights, regions={"bias": chosen}
        )["bias"]
        exact = reference.gradients(problem, dy, rows=weights, regions={"bias": mask})["bias"]
        reference.assert_close(result, exact, dtype)
        assert not np.any(result[~mask])


@every_dtype
def test_results_do_not_depend_on_what_ran_before(
    cuda: ModuleType, rng: np.random.Generator, dtype: str
) -> None:
    """Sums are taken in one order, whatever the device does at the same time."""
    dy = reference.random_array(rng, (3000, 40), dtype)
    results = {
        pass_over_dy(cuda, dy, None, "linear", needed=["bias"])["bias"].tobytes() for _ in range(3)
    }
    assert len(results) == 1


# The interface knows no bfloat16, which is as wide as float16.
@pytest.mark.parametrize("dtype", ("float32", "float64", "float16", *COMPLEX), indirect=True)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_arrays_at_any_address(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, shift: int
) -> None:
    """Elements lie where their size allows, not where a vector of them would."""
    a, b, bias = (reference.random_array(rng, s, dtype) for s in [(24, 16), (16, 32), (32,)])
    dy = reference.random_array(rng, (24, 32), dtype)

    class Shifted:
        """A view that begins some elements behind the allocation."""

        def __init__(self, array: Array) -> None:
            self.memory = cuda.to_device(
                np.concatenate([np.full(shift, np.nan, array.dtype), array.ravel()])
            )
            self.array = array

        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            interface: dict[str, object] = dict(self.memory.__cuda_array_interface__)
            (address, read_only) = self.memory.__cuda_array_interface__["data"]
            interface["data"] = (address + shift * self.array.itemsize, read_only)
            interface["shape"] = self.array.shape
            return interface

    activation = "linear" if dtype in COMPLEX else "relu"
    problem = Problem(a, b, bias, activation=activation)
    y = cuda.matmul(*map(Shifted, (a, b, bias)), activation=activation, poison=True).numpy()
    reference.assert_close(y, reference.forward(problem), dtype)
    results = cuda.matmul_gradient(
        Shifted(dy), Shifted(a), Shifted(b), Shifted(y),
        needed=["a", "b", "bias"], activation=activation, poison=True,
    )  # fmt: skip
    z = reference.preactivation(problem).value.astype(y.dtype)
    exact = reference.gradients(problem, dy, None, z)
    for name, result in results.items():
        reference.assert_close(result.numpy(), exact[name], dtype, what=name)


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"], indirect=True)
def test_nan_stays_nan_behind_a_product(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, activation: str
) -> None:
    """Without timing, an epilogue that cublasLt does right is its own."""
    problem = reference.random_problem(rng, (24, 16), (16, 32), dtype, bias=True)
    assert problem.bias is not None
    problem.a[3] = np.nan
    arrays = [cuda.to_device(x) for x in (problem.a, problem.b, problem.bias)]
    y = cuda.matmul(*arrays, activation=activation, deterministic=True, poison=True).numpy()
    assert np.isnan(reference.widen(y[3])).all()
    assert not np.isnan(reference.widen(np.delete(y, 3, axis=0))).any()


@every_dtype
@pytest.mark.parametrize("shape", SHAPES[:-2], ids=str)
def test_bias_and_activation_alone(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, shape: tuple[int, int]
) -> None:
    activation = "linear" if dtype in COMPLEX else str(rng.choice(["gelu", "tanh", "silu"]))
    x, bias = (reference.random_array(rng, s, dtype) for s in (shape, shape[1:]))
    y = cuda.activate(cuda.to_device(x), cuda.to_device(bias), activation=activation).numpy()
    z = reference.widen(x) + reference.widen(bias)
    error = np.abs(reference.widen(y) - reference.activate(activation, z))
    assert np.all(error <= 4 * reference.epsilon(dtype) * (np.abs(z) + 1))


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX, "int32"), indirect=True)
@pytest.mark.parametrize("cols", [1, 5, 64])
def test_rows_are_taken_and_put_back(
    cuda: ModuleType, rng: np.random.Generator, dtype: str, cols: int
) -> None:
    array = reference.random_array(rng, (50, cols), dtype)
    rows = np.flatnonzero(rng.random(50) < 0.4)
    taken = cuda.take_rows(cuda.to_device(array), rows)
    np.testing.assert_array_equal(taken.numpy(), array[rows])
    np.testing.assert_array_equal(cuda.put_rows(taken, rows, 60).numpy()[rows], array[rows])


def test_rows_outside_and_other_shapes_are_errors(cuda: ModuleType) -> None:
    x = cuda.to_device(np.ones((4, 3), np.float32))
    vector = cuda.to_device(np.ones(4, np.float32))
    wide = cuda.to_device(np.ones(3, np.float64))
    for call, message in [
        (lambda: cuda.take_rows(x, [1, 4]), "`rows` has 4; due are rows from 0 to 3"),
        (lambda: cuda.take_rows(x, [-1]), "`rows` has -1; due are rows from 0 to 3"),
        (lambda: cuda.put_rows(x, [0, 1, 2, 9], 9), "`rows` has 9; due are rows from 0 to 8"),
        (lambda: cuda.put_rows(x, [0], 9), "`rows` has 1 places; due are 4"),
        (lambda: cuda.put_rows(x, [], -1), "`total` is -1; due is 0 or more"),
        (lambda: cuda.take_rows(vector, [0]), r"`array` has shape \[4\]; due is a matrix"),
        (lambda: cuda.activate(vector), r"`x` has shape \[4\]; due is a matrix"),
        (lambda: cuda.activate(x, vector), r"`bias` is float32 \[4\]; due is float32 \[3\]"),
        (lambda: cuda.activate(x, wide), r"`bias` is float64 \[3\]; due is float32 \[3\]"),
        (lambda: cuda.activate(x, activation="none"), "none"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
