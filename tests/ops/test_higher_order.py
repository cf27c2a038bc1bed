"""Derivatives of any order, in reverse and forward mode, beside those of stock TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference
import stock
import tensorflow as tf
from cases import Case, Chooser, written
from modes import (
    COMPILED,
    EAGER,
    GRAPH,
    IN_FUNCTION,
    MODES,
    OUTSIDE_FUNCTION,
    mode_id,
    needs_xla,
)
from reference import ACTIVATIONS, Array, Problem

import stopgrad_op as sg

Multiply = Callable[..., tf.Tensor]
every_mode = pytest.mark.parametrize("mode", MODES, ids=mode_id)


def weights(x: tf.Tensor) -> tf.Tensor:
    """Numbers that tell the elements of a tensor apart, as the upstream gradient."""
    places = tf.cast(tf.range(tf.size(x)), x.dtype.real_dtype)
    return tf.reshape(tf.cast(tf.cos(places + 1), x.dtype), tf.shape(x))


def total(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    sums = [tf.reduce_sum(tf.math.real(weights(x) * x)) for x in tensors if x is not None]
    return tf.add_n(sums) if sums else tf.constant(0.0)


def derivatives(multiply: Multiply, inputs: Sequence[tf.Tensor], order: int) -> list[Any]:
    """Return the gradients of a weighted sum of the gradients of ... of the result."""
    if order == 0:
        return [multiply(*inputs)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = total(derivatives(multiply, inputs, order - 1))
    return [
        None if g is None else tf.convert_to_tensor(g) for g in tape.gradient(value, list(inputs))
    ]


def in_a_session(multiply: Multiply, arrays: Sequence[Array], order: int) -> list[Any]:
    """Return what `derivatives` does, by gradients of gradients in a TF1 graph."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = [tf.compat.v1.placeholder(x.dtype, x.shape) for x in arrays]
        values = [multiply(*inputs)]
        for _ in range(order):
            gradients = tf.gradients(total(values), inputs)
            values = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        exist = [value for value in values if value is not None]
        computed = iter(session.run(exist, dict(zip(inputs, arrays, strict=True))))
        return [None if value is None else next(computed) for value in values]


def in_mode(mode: Any, multiply: Multiply, arrays: Sequence[Array], order: int) -> list[Any]:
    if mode is GRAPH:
        return in_a_session(multiply, arrays, order)
    if mode is EAGER:
        return derivatives(multiply, [tf.constant(x) for x in arrays], order)
    if mode is OUTSIDE_FUNCTION:
        multiply = tf.function(multiply)
        return derivatives(multiply, [tf.constant(x) for x in arrays], order)
    function = tf.function(
        lambda *inputs: derivatives(multiply, inputs, order), jit_compile=mode is COMPILED
    )
    return list(function(*map(tf.constant, arrays)))


def assert_same(ours: Sequence[Any], stock_s: Sequence[Any]) -> None:
    for index, (mine, due) in enumerate(zip(ours, stock_s, strict=True)):
        if due is None or mine is None:
            assert mine is due, index
            continue
        scale = max(1.0, float(np.max(np.abs(due), initial=0)))
        np.testing.assert_allclose(mine, due, rtol=1e-9, atol=1e-10 * scale, err_msg=str(index))


def problem_of(
    rng: np.random.Generator, activation: str, dtype: str = "float64", **options: Any
) -> Problem:
    shapes = options.pop("shapes", ((3, 4), (4, 2)))
    return reference.random_problem(
        rng, *shapes, dtype, bias=options.pop("bias", True), activation=activation, **options
    )


@every_mode
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_second_and_third_order(mode: Any, activation: str, rng: np.random.Generator) -> None:
    problem = problem_of(rng, activation)
    arrays = stock.operands_of(problem)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, **stock.options_of(problem))

    def stocks(*operands: Any) -> Any:
        return stock.matmul(problem, operands)

    for order in (2, 3):
        # Where nothing is connected, a function called under a tape gives zeros for None.
        stocks_mode = OUTSIDE_FUNCTION if mode is OUTSIDE_FUNCTION else EAGER
        due = in_mode(stocks_mode, stocks, arrays, order)
        assert_same(in_mode(mode, ours, arrays, order), due)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize(
    "blocked", [("a",), ("b",), ("bias",), ("a", "bias"), ("b", "bias")], ids="+".join
)
def test_third_order_of_what_is_not_blocked_in_a_session(
    activation: str, blocked: tuple[str, ...], rng: np.random.Generator
) -> None:
    problem = problem_of(rng, activation)
    arrays = stock.operands_of(problem)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        options = stock.options_of(problem)
        return sg.matmul(a, b, bias=bias, stop_gradient=blocked, **options)

    due = in_a_session(lambda *x: stock.matmul(problem, x, blocked), arrays, 3)
    assert_same(in_a_session(ours, arrays, 3), due)


ZEROS = [
    ((), ("a",)),
    ((), ("b",)),
    ((), ("bias",)),
    ((), ("a", "b")),
    ((), ("a", "b", "bias")),
    (("a",), ("b",)),
    (("b",), ("a", "bias")),
    (("bias",), ("a", "b")),
    (("a", "b"), ("bias",)),
]


@every_mode
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu"])
@pytest.mark.parametrize(("blocked", "zero"), ZEROS)
def test_a_scale_known_to_be_zero_gives_zeros_where_stock_does_and_none_where_it_does(
    mode: Any,
    order: int,
    activation: str,
    blocked: tuple[str, ...],
    zero: tuple[str, ...],
    rng: np.random.Generator,
) -> None:
    problem = problem_of(rng, activation)
    arrays, scales = stock.operands_of(problem), dict.fromkeys(zero, 0.0)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        options = stock.options_of(problem)
        return sg.matmul(a, b, bias=bias, stop_gradient=blocked, gradient_scale=scales, **options)

    def stocks(*operands: Any) -> Any:
        return stock.matmul(problem, operands, blocked, scales)

    result, due = in_mode(mode, ours, arrays, order), in_mode(EAGER, stocks, arrays, order)
    if mode is OUTSIDE_FUNCTION:
        # A function under a tape may give zeros for None, but no others than stock ops in one.
        most = in_mode(mode, stocks, arrays, order)
        assert all(x is None for x, y in zip(result, most, strict=True) if y is None)
        due = [np.zeros_like(x) if y is None else y for x, y in zip(result, due, strict=True)]
        due = [None if x is None and not np.any(y) else y for x, y in zip(result, due, strict=True)]
    assert_same(result, due)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_what_a_zero_gradient_multiplies_is_connected_without_another_tape(
    compiled: bool, rng: np.random.Generator
) -> None:
    """The outer tape watches a factor of the upstream gradient, and neither operand."""
    a, b, factor = (tf.constant(rng.standard_normal(s)) for s in ((3, 4), (4, 2), (3, 2)))

    def gradient(factor: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(factor)
            with tf.GradientTape() as inner:
                inner.watch(b)
                value = tf.reduce_sum(factor * sg.matmul(a, b, gradient_scale={"b": 0.0}))
            zeros = inner.gradient(value, b)
        return outer.gradient(zeros, factor)

    result = (tf.function(gradient) if compiled else gradient)(factor)
    np.testing.assert_array_equal(result, np.zeros((3, 2)))


SHAPES = [
    ((2, 3, 4), (4, 2), "normal", "normal"),
    ((3, 1, 3, 4), (2, 4, 2), "normal", "normal"),
    ((3, 4), (2, 2, 4), "normal", "transpose"),
    ((2, 4, 3), (2, 2, 4), "adjoint", "adjoint"),
    ((4, 3), (4, 2), "transpose", "normal"),
]


@pytest.mark.parametrize("mode", [EAGER, IN_FUNCTION], ids=mode_id)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("case", SHAPES)
def test_batches_layouts_and_complex_numbers(
    mode: Any, dtype: str, case: Any, rng: np.random.Generator
) -> None:
    a, b, layout_a, layout_b = case
    activation = "linear" if dtype == "complex128" else "gelu"
    shapes = reference.stored_shape(a, "normal"), reference.stored_shape(b, "normal")
    problem = Problem(
        reference.random_array(rng, shapes[0], dtype),
        reference.random_array(rng, shapes[1], dtype),
        reference.random_array(rng, (2,), dtype),
        layout_a,
        layout_b,
        activation,
    )
    arrays = stock.operands_of(problem)
    due = in_mode(EAGER, lambda *x: tf.math.conj(stock.matmul(problem, x)) * 1.5, arrays, 2)
    options = stock.options_of(problem)
    result = in_mode(
        mode, lambda a, b, c: tf.math.conj(sg.matmul(a, b, bias=c, **options)) * 1.5, arrays, 2
    )
    assert_same(result, due)


@pytest.mark.parametrize("mode", [EAGER, IN_FUNCTION], ids=mode_id)
@pytest.mark.parametrize("seed", range(24))
def test_whatever_controls_the_gradients(mode: Any, seed: int) -> None:
    """Scales, rows, regions and blocked operands together, at random."""
    case: Case = Chooser(np.random.default_rng(seed)).case("float64")
    problem = case.problem
    arrays = stock.operands_of(problem)
    due = in_mode(
        EAGER,
        lambda *x: stock.matmul(problem, x, case.blocked, case.scales, case.rows, case.masks),
        arrays,
        2,
    )
    result = in_mode(mode, call_of(case), arrays, 2)
    assert_same(result, due)


@pytest.mark.parametrize("mode", [EAGER, IN_FUNCTION], ids=mode_id)
@pytest.mark.parametrize("activation", ["sigmoid", "elu", "gelu"])
def test_weights_of_rows_count_once_in_every_term(
    mode: Any, activation: str, rng: np.random.Generator
) -> None:
    """What the activation's derivative is read from is y before its rows are weighted."""
    problem = problem_of(rng, activation)
    arrays, rows = stock.operands_of(problem), np.array([0.5, 0.0, -2.0])
    due = in_mode(EAGER, lambda *x: stock.matmul(problem, x, rows=rows), arrays, 3)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation=activation, gradient_rows=rows)

    assert_same(in_mode(mode, ours, arrays, 3), due)


def call_of(case: Case) -> Multiply:
    def call(a: Any, b: Any, bias: Any = None) -> Any:
        scale = written(case.gradient_scale, EAGER)
        return sg.matmul(a, b, bias=bias, gradient_scale=scale, **case.options)

    return call


def test_a_persistent_tape_and_what_it_does_not_watch() -> None:
    x, w = tf.constant([[1.0, 2.0]]), tf.Variable([[3.0], [4.0]])
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(x)
            y = sg.matmul(x, w, activation="softplus")
        dx = inner.gradient(y, x)
        assert inner.__class__ is tf.GradientTape
    gate = 1 / (1 + np.exp(-11.0))
    np.testing.assert_allclose(dx, [[3 * gate, 4 * gate]], rtol=1e-6)
    slope = gate * (1 - gate)
    np.testing.assert_allclose(outer.gradient(dx, x), slope * np.array([[21.0, 28.0]]), rtol=1e-4)
    np.testing.assert_allclose(
        outer.gradient(dx, w), [[gate + slope * 7], [gate + slope * 14]], rtol=1e-5
    )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_xla)])
def test_forward_mode_alone_and_over_backward(compiled: bool, rng: np.random.Generator) -> None:
    """A Hessian times a vector, and a Jacobian times a vector."""
    problem = problem_of(rng, "tanh")
    a, b, bias = map(tf.constant, stock.operands_of(problem))
    v = tf.constant(rng.standard_normal(b.shape))

    def products(multiply: Multiply) -> Any:
        with tf.autodiff.ForwardAccumulator(b, v) as accumulator:
            y = multiply(a, b, bias)
        with tf.autodiff.ForwardAccumulator(b, v) as over:
            with tf.GradientTape() as tape:
                tape.watch(b)
                value = total([multiply(a, b, bias)])
            gradient = tape.gradient(value, b)
        return accumulator.jvp(y), over.jvp(gradient)

    def ours(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation="tanh")

    run = tf.function(products, jit_compile=True) if compiled else products
    due = products(lambda *operands: stock.matmul(problem, operands))
    for mine, exact in zip(run(ours), due, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-9, atol=1e-12)


def test_tf_hessians_in_a_graph(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 3))
    w = rng.standard_normal((3, 2))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        b = tf.constant(w)

        def hessian(y: tf.Tensor) -> Any:
            return tf.hessians(total([y]), b)[0]

        mine = hessian(sg.matmul(tf.constant(x), b, activation="gelu"))
        due = hessian(tf.nn.gelu(tf.constant(x) @ b))
        np.testing.assert_allclose(*session.run([mine, due]), rtol=1e-6)
        h = sg.matmul(tf.constant(x), b, activation="gelu")
        assert tf.gradients(sg.matmul(h, tf.constant(w.T)), b, stop_gradients=[h]) == [None]
        y = sg.matmul(h, tf.transpose(b))
        stopped, free = (tf.gradients(y, b, stop_gradients=s)[0] for s in ([h], []))
        due_stopped = tf.gradients(tf.stop_gradient(h) @ tf.transpose(b), b)[0]
        np.testing.assert_allclose(*session.run([stopped, due_stopped]))
        assert not np.allclose(*session.run([stopped, free]))
        assert tf.gradients(sg.matmul(tf.constant(x), b, stop_gradient="b"), b) == [None]


@pytest.mark.parametrize("order", [2, 3])
def test_none_stays_none(order: int, rng: np.random.Generator) -> None:
    inputs = [tf.constant(rng.standard_normal(shape)) for shape in ((3, 4), (4, 2))]
    found = derivatives(
        lambda a, b: sg.matmul(a, b, activation="tanh", stop_gradient="a"), inputs, order
    )
    assert found[0] is None
    assert found[1] is not None


# In a function TensorFlow itself differentiates what it recomputes once only.
@pytest.mark.parametrize(
    ("mode", "order"), [(EAGER, 1), (EAGER, 2), (IN_FUNCTION, 1)], ids=["eager", "2", "function"]
)
@pytest.mark.parametrize("blocked", [(), ("a",), ("bias",)], ids="+".join)
def test_recomputing_and_gradients_of_users_own(
    mode: Any, order: int, blocked: tuple[str, ...], rng: np.random.Generator
) -> None:
    problem = problem_of(rng, "silu")
    arrays = stock.operands_of(problem)

    def doubled(multiply: Multiply) -> Multiply:
        @tf.custom_gradient
        def function(a: Any, b: Any, bias: Any) -> Any:
            operands = [a, b, bias]
            with tf.GradientTape() as tape:
                tape.watch(operands)
                y = multiply(*operands)

            def gradients(dy: Any) -> Any:
                found = tape.gradient(y, operands, dy)
                return [None if g is None else 2 * g for g in found]

            return y, gradients

        return function

    def ours(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation="silu", stop_gradient=blocked)

    def stocks(*operands: Any) -> Any:
        return stock.matmul(problem, operands, blocked)

    for wrap in (doubled, tf.recompute_grad) if order == 1 else (tf.recompute_grad,):
        due = in_mode(mode, wrap(stocks), arrays, order)
        assert_same(in_mode(mode, wrap(ours), arrays, order), due)


def unconnected(multiply: Multiply, a: Any, b: Any, bias: Any) -> list[Any]:
    """Ask a persistent tape twice, once with zeros for what nothing is connected to."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        doubled = 2 * a
        tape.watch([doubled, b])  # and neither a nor the bias
        y = multiply(doubled, b, bias)
    zero = tf.UnconnectedGradients.ZERO
    sources = [a, doubled, b, bias]
    return [*tape.gradient(y, sources), *tape.gradient(y, sources, unconnected_gradients=zero)]


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("blocked", [(), ("a",), ("b",), ("a", "b")], ids="+".join)
def test_what_nothing_is_connected_to_is_none_or_zeros_as_the_tape_is_asked(
    in_function: bool, blocked: tuple[str, ...], rng: np.random.Generator
) -> None:
    problem = problem_of(rng, "tanh")
    operands = list(map(tf.constant, stock.operands_of(problem)))

    def ours(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation="tanh", stop_gradient=blocked)

    due = unconnected(lambda *x: stock.matmul(problem, x, blocked), *operands)
    run = tf.function(unconnected) if in_function else unconnected
    assert_same(run(ours, *operands), due)


@pytest.mark.parametrize("blocked", [(), ("a",), ("b",), ("a", "b", "bias")], ids="+".join)
def test_unconnected_gradients_in_a_session(
    blocked: tuple[str, ...], rng: np.random.Generator
) -> None:
    problem = problem_of(rng, "elu")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        operands = list(map(tf.constant, stock.operands_of(problem)))
        a, b, bias = operands
        mine = sg.matmul(a, b, bias=bias, activation="elu", stop_gradient=blocked)
        due = stock.matmul(problem, operands, blocked)
        found, exact = (
            tf.gradients(y, operands, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            for y in (mine, due)
        )
        for result, expected in zip(session.run(found), session.run(exact), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("use_pfor", [True, False])
def test_jacobians(use_pfor: bool, rng: np.random.Generator) -> None:
    a, b = (tf.constant(rng.standard_normal(shape)) for shape in ((3, 4), (4, 2)))

    def jacobians(multiply: Multiply) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([a, b])
            y = multiply(a, b)
        each = tape.jacobian(y, [a, b], experimental_use_pfor=use_pfor)
        return *each, tape.batch_jacobian(y, a, experimental_use_pfor=use_pfor)

    ours = jacobians(lambda a, b: sg.matmul(a, b, activation="gelu_tanh"))
    due = jacobians(lambda a, b: tf.nn.gelu(a @ b, approximate=True))
    for mine, exact in zip(ours, due, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-6, atol=1e-7)


def test_vectorized_map(rng: np.random.Generator) -> None:
    a, b = (tf.constant(rng.standard_normal(shape)) for shape in ((5, 3, 4), (4, 2)))
    result = tf.vectorized_map(lambda a: sg.matmul(a, b, activation="relu"), a)
    np.testing.assert_allclose(result, np.maximum(a @ b, 0))
