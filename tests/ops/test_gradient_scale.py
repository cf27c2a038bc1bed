"""A gradient scale that is read at run time: no new trace, and at 0 no product."""

from __future__ import annotations

import weakref
from typing import Any

import devices
import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from modes import COMPILED, KERNEL_MODES, MODES, Mode, mode_id
from reference import COMPLEX, FLOATING

import stopgrad_op as sg

v1 = tf.compat.v1
every_mode = pytest.mark.parametrize("mode", MODES, ids=mode_id)
every_kernel_mode = pytest.mark.parametrize("mode", KERNEL_MODES, ids=mode_id)
in_both = pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
OPERANDS = ("a", "b", "bias")
M, K, N = 5, 7, 3


def inputs(rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    return [rng.standard_normal(shape) for shape in ((M, K), (K, N), (N,))]


def backward_products() -> int:
    return sg.kernel_stats()["backward"]["products"]


@every_kernel_mode
@pytest.mark.parametrize("scaled", [*OPERANDS, None])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_zero_gives_zeros_and_runs_no_product(
    rng: np.random.Generator, mode: Mode, scaled: str | None, activation: str | None
) -> None:
    arrays = inputs(rng)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        # No constant, whose value would be known before anything runs.
        zero = tf.reduce_sum(tf.zeros_like(a))
        scale: Any = zero if scaled is None else {scaled: zero}
        return sg.matmul(a, b, bias=bias, activation=activation, gradient_scale=scale)

    sg.reset_kernel_stats()
    _, gradients = mode.gradients(ours, arrays, rng.standard_normal((M, N)))
    for name, array, gradient in zip(OPERANDS, arrays, gradients, strict=True):
        assert gradient is not None
        assert gradient.shape == array.shape
        assert np.any(gradient) != (scaled in (None, name))
    assert backward_products() == sum(scaled not in (None, name) for name in ("a", "b"))


KINDS = {
    "float32": lambda x: tf.Variable(x),
    "float64": lambda x: tf.Variable(x, dtype=tf.float64),
    "half": lambda x: tf.Variable(x, dtype=tf.float16),
    "int64": lambda x: tf.Variable(tf.cast(x, tf.int64)),
    "keras": lambda x: keras.Variable(x, dtype="float32"),
}


@in_both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_operand", [False, True])
def test_schedule_that_freezes_and_thaws_traces_once(
    rng: np.random.Generator, wrap: Any, kind: str, per_operand: bool
) -> None:
    a, b, _ = inputs(rng)
    x, w, scale = tf.constant(a), tf.Variable(b), KINDS[kind](0.0)
    traces = []

    @wrap
    def step() -> Any:
        traces.append(None)
        with tf.GradientTape() as tape:
            y = sg.matmul(x, w, gradient_scale={"b": scale} if per_operand else scale)
        return tape.gradient(y, w)

    due = a.T @ np.ones((M, N))
    for value in (0.0, 1.0, 0.0, -1.0, 3.0, 0.0):
        scale.assign(tf.cast(value, scale.dtype))
        sg.reset_kernel_stats()
        gradient = step()
        np.testing.assert_allclose(gradient, value * due, rtol=1e-12)
        assert backward_products() == (value != 0)
    if wrap is tf.function:
        assert len(traces) == 1


def test_scale_is_an_argument_of_a_function(rng: np.random.Generator) -> None:
    a, b, _ = inputs(rng)
    w = tf.Variable(b)

    @tf.function
    def step(scale: Any) -> Any:
        with tf.GradientTape() as tape:
            y = sg.matmul(a, w, gradient_scale={"b": scale})
        return tape.gradient(y, w)

    for value in (0.0, 0.5):
        np.testing.assert_allclose(step(tf.constant(value)), value * (a.T @ np.ones((M, N))))
    assert step.experimental_get_tracing_count() == 1


def test_scale_is_fed_to_a_session(rng: np.random.Generator) -> None:
    a, b, _ = inputs(rng)
    with tf.Graph().as_default(), v1.Session() as session:
        scale, w = v1.placeholder(tf.float32, ()), tf.constant(b)
        y = sg.matmul(a, w, gradient_scale={"b": scale})
        gradient, of_scale = tf.gradients(y, [w, scale])
        assert of_scale is None
        for value in (0.0, 0.5, np.inf):
            sg.reset_kernel_stats()
            np.testing.assert_allclose(
                session.run(gradient, {scale: value}), value * (a.T @ np.ones((M, N)))
            )
            assert backward_products() == (value != 0)


@pytest.mark.parametrize("shape", [(1,), (2,), (0,), (1, 1)])
def test_scale_of_unknown_shape_is_checked_when_it_comes(shape: tuple[int, ...]) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        scale, w = v1.placeholder(tf.float32), tf.ones((K, N))
        y = sg.matmul(tf.ones((M, K)), w, gradient_scale={"b": scale})
        gradient = tf.gradients(y, w)
        np.testing.assert_array_equal(session.run(gradient[0], {scale: 2}), np.full((K, N), 10.0))
        with pytest.raises(tf.errors.InvalidArgumentError, match="`gradient_scale`"):
            session.run(gradient, {scale: np.ones(shape)})


def test_eager_backward_uses_the_scale_that_forward_saw(rng: np.random.Generator) -> None:
    a, b, _ = inputs(rng)
    w, scale = tf.Variable(b), tf.Variable(0.5)
    for persistent in (False, True):
        scale.assign(0.5)
        with tf.GradientTape(persistent=persistent) as tape:
            y = sg.matmul(a, w, gradient_scale=scale)
        scale.assign(7.0)
        np.testing.assert_allclose(tape.gradient(y, w), 0.5 * (a.T @ np.ones((M, N))))


@in_both
@pytest.mark.parametrize("persistent", [False, True])
def test_scale_has_no_gradient(wrap: Any, persistent: bool) -> None:
    w, scale = tf.Variable(tf.ones((K, N))), tf.Variable(0.5)

    def gradients() -> Any:
        with tf.GradientTape(persistent=persistent) as tape:
            factor = 2 * scale
            y = sg.matmul(tf.ones((M, K)), w, gradient_scale={"b": factor, "a": scale})
        return tape.gradient(y, [w, factor, scale])

    of_w, *others = wrap(gradients)()
    np.testing.assert_array_equal(of_w, np.full((K, N), float(M)))
    assert others == [None, None]


@every_mode
@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize("value", [-1.0, 0.25, np.nan])
def test_scale_of_any_value_in_any_dtype(
    rng: np.random.Generator, mode: Mode, dtype: str, value: float
) -> None:
    if devices.ops_run_on_gpu and mode is COMPILED and dtype == "float64" and np.isnan(value):
        pytest.skip("XLA for GPUs ends in an internal error: NaN is no alpha for its product")
    problem = reference.random_problem(rng, (M, K), (K, N), dtype, bias=True)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        scale = tf.cast(tf.fill((), value), tf.float32)
        return sg.matmul(a, b, bias=bias, gradient_scale={"a": scale, "bias": scale})

    dy = reference.random_array(rng, (M, N), dtype)
    arrays = [problem.a, problem.b, problem.bias]
    _, gradients = mode.gradients(ours, arrays, dy)
    exact = reference.gradients(problem, dy, {"a": value, "bias": value})
    for name, gradient in zip(OPERANDS, gradients, strict=True):
        assert gradient is not None
        if np.isnan(value) and name != "b":
            assert np.all(np.isnan(gradient))
        else:
            reference.assert_close(gradient, exact[name], dtype)


def test_the_variable_of_a_scale_can_be_let_go() -> None:
    """No cache of options holds it."""
    scale = tf.constant(0.5)
    sg.matmul(tf.ones((M, K)), tf.ones((K, N)), gradient_scale={"a": scale, "b": 0.5})
    lives = weakref.ref(scale)
    del scale
    assert lives() is None
