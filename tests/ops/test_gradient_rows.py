"""Gradient rows: those at 0 send nothing back and cost nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from modes import KERNEL_MODES, MODES, Mode, mode_id
from reference import COMPLEX, FLOATING

import stopgrad_op as sg

v1 = tf.compat.v1
every_mode = pytest.mark.parametrize("mode", MODES, ids=mode_id)
every_kernel_mode = pytest.mark.parametrize("mode", KERNEL_MODES, ids=mode_id)
in_both = pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
OPERANDS = ("a", "b", "bias")
M, K, N = 5, 7, 3


def inputs(rng: np.random.Generator, *batch: int) -> list[np.ndarray[Any, Any]]:
    return [rng.standard_normal(shape) for shape in ((*batch, M, K), (K, N), (N,))]


def dense(**options: Any) -> Any:
    return lambda a, b, bias: sg.matmul(a, b, bias=bias, **options)


def check(mode: Mode, arrays: list[Any], dy: Any, rows: Any, activation: str | None) -> None:
    function = dense(gradient_rows=rows, activation=activation)
    _, gradients = mode.gradients(function, arrays, dy)
    problem = reference.Problem(*arrays, activation=activation or "linear")
    exact = reference.gradients(problem, dy, rows=rows)
    for name, gradient in zip(OPERANDS, gradients, strict=True):
        assert gradient is not None
        reference.assert_close(gradient, exact[name], "float64", what=name)


@every_mode
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    "rows",
    [
        [True, False, True, False, False],
        [0.0, 1.0, 0.5, -1.0, 0.0],
        np.array([0, 1, 0.5, 2, 0], np.float16),
        [[True], [False]],
        [[0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.5, 0.0, 0.0, 0.0]],
        0.5,
        True,
        False,
    ],
)
def test_rows_of_any_kind(
    rng: np.random.Generator, mode: Mode, rows: Any, activation: str | None
) -> None:
    check(mode, inputs(rng, 2), rng.standard_normal((2, M, N)), rows, activation)


@every_mode
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("zero", [False, 0.0])
def test_all_rows_at_zero_run_nothing_and_give_zeros(
    rng: np.random.Generator, mode: Mode, activation: str | None, zero: Any
) -> None:
    arrays = inputs(rng)
    sg.reset_kernel_stats()
    dy = np.full((M, N), np.nan)
    _, gradients = mode.gradients(
        dense(gradient_rows=[zero] * M, activation=activation), arrays, dy
    )
    for array, gradient in zip(arrays, gradients, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(array))
    assert sg.kernel_stats()["backward"] == {"products": 0, "flops": 0}


@every_mode
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("active", [1, 3, 37])
def test_what_stands_in_a_row_at_zero_does_not_matter(
    rng: np.random.Generator, mode: Mode, activation: str | None, bad: float, active: int
) -> None:
    """In few rows, which are gathered, and in many, which are not."""
    rows = np.zeros(40, bool)
    rows[rng.permutation(40)[:active]] = True
    arrays = [rng.standard_normal(shape) for shape in ((40, K), (K, N), (N,))]
    dy = rng.standard_normal((40, N))
    dy[~rows] = bad
    check(mode, arrays, dy, rows, activation)


@pytest.mark.cpu_only("a GPU gathers rows of large products only; tests/gpu has one")
@every_kernel_mode
def test_products_run_on_the_rows_that_are_left(rng: np.random.Generator, mode: Mode) -> None:
    rows = np.zeros(256, bool)
    rows[64:128] = True
    arrays = [rng.standard_normal(shape) for shape in ((256, 96), (96, 80), (80,))]
    sg.reset_kernel_stats()
    mode.gradients(dense(gradient_rows=rows), arrays, rng.standard_normal((256, 80)))
    assert sg.kernel_stats()["backward"] == {"products": 2, "flops": 2 * 2 * 64 * 96 * 80}


@every_mode
@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize("dtype_of_rows", ["bool", *FLOATING])
def test_rows_of_every_dtype_with_operands_of_every_dtype(
    rng: np.random.Generator, mode: Mode, dtype: str, dtype_of_rows: str
) -> None:
    problem = reference.random_problem(rng, (M, K), (K, N), dtype, bias=True)
    rows = np.array([1, 0, 0, 1, 1]).astype(reference.numpy_dtype(dtype_of_rows))
    dy = reference.random_array(rng, (M, N), dtype)
    arrays = [problem.a, problem.b, problem.bias]
    _, gradients = mode.gradients(dense(gradient_rows=rows), arrays, dy)
    exact = reference.gradients(problem, dy, rows=rows)
    for name, gradient in zip(OPERANDS, gradients, strict=True):
        assert gradient is not None
        reference.assert_close(gradient, exact[name], dtype)


@in_both
@pytest.mark.parametrize("make", [tf.constant, tf.Variable, keras.Variable, np.array, list])
def test_rows_of_every_holder_and_none_has_a_gradient(wrap: Any, make: Any) -> None:
    rows = make([1.0, 0.0, 0.0, 0.5, 0.0])
    w = tf.Variable(tf.ones((K, N)))

    def gradients() -> Any:
        with tf.GradientTape() as tape:
            watched = []
            if isinstance(rows, tf.Tensor):
                watched = [rows]
                tape.watch(watched)
            y = sg.matmul(tf.ones((M, K)), w, gradient_rows=rows)
        return tape.gradient(y, [w, *watched])

    of_w, *of_rows = wrap(gradients)()
    np.testing.assert_array_equal(of_w, np.full((K, N), 1.5))
    assert of_rows in ([], [None])


def test_rows_change_without_a_trace(rng: np.random.Generator) -> None:
    a, b, _ = inputs(rng)
    w = tf.Variable(b)

    @tf.function
    def step(rows: Any) -> Any:
        with tf.GradientTape() as tape:
            y = sg.matmul(a, w, gradient_rows=rows)
        return tape.gradient(y, w)

    for rows in ([True] * M, [False] * M, [True, False, False, True, False]):
        np.testing.assert_allclose(step(tf.constant(rows)), a.T[:, rows] @ np.ones((sum(rows), N)))
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("where", ["eager", "function", "session"])
def test_nan_is_an_error_that_names_the_argument(where: str) -> None:
    rows = np.array([1.0, np.nan, 0, 0, 0])

    def run(a: Any, w: Any, rows: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = sg.matmul(a, w, gradient_rows=rows)
        return tape.gradient(y, w)

    arrays = (np.ones((M, K)), np.ones((K, N)), rows)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`gradient_rows`"):  # noqa: PT012
        if where == "eager":
            run(*map(tf.constant, arrays))
        elif where == "function":
            tf.function(run)(*map(tf.constant, arrays))
        else:
            with tf.Graph().as_default(), v1.Session() as session:
                session.run(run(*map(tf.constant, arrays)))


def test_rows_of_unknown_shape_are_checked_when_they_come() -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
    def step(rows: Any) -> Any:
        w = tf.ones((K, N))
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = sg.matmul(tf.ones((M, K)), w, gradient_rows=rows)
        return tape.gradient(y, w)

    np.testing.assert_array_equal(step(np.float32([1, 0, 0, 1, 1])), np.full((K, N), 3.0))
    for shape in ((4,), (1, M), (2, M), (M, 1)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="`gradient_rows`"):
            step(np.ones(shape, np.float32))
