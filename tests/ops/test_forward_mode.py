"""`tf.autodiff.ForwardAccumulator`, alone, over a tape and under one, beside stock TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference
import stock
import tensorflow as tf
from cases import Case, Chooser, written
from modes import EAGER, needs_xla
from reference import Array

import stopgrad_op as sg

Multiply = Callable[..., tf.Tensor]
M, K, N = 3, 4, 2


def weighted_sum(y: tf.Tensor) -> tf.Tensor:
    places = tf.cast(tf.range(tf.size(y)), tf.float64)
    weights = tf.cast(tf.reshape(tf.cos(places + 1), tf.shape(y)), y.dtype)
    return tf.reduce_sum(tf.math.real(weights * y))


def dense(x: Any) -> Any:
    return None if x is None else tf.convert_to_tensor(x)


def tangents(
    multiply: Multiply, operands: Sequence[Any], directions: Sequence[Any], one: int
) -> list[Any]:
    """Return the tangent of y, those of its gradients, and the gradients of the first."""
    with tf.autodiff.ForwardAccumulator(operands, directions) as alone:
        y = multiply(*operands)
    with tf.autodiff.ForwardAccumulator(operands[one], directions[one]) as over:
        with tf.GradientTape() as tape:
            tape.watch(operands)
            total = weighted_sum(multiply(*operands))
        gradients = list(map(dense, tape.gradient(total, operands)))
    with tf.GradientTape() as tape:
        tape.watch(operands)
        with tf.autodiff.ForwardAccumulator(operands, directions) as under:
            y_under = multiply(*operands)
        total = weighted_sum(under.jvp(y_under, tf.UnconnectedGradients.ZERO))
    return [
        alone.jvp(y),
        *(None if g is None else over.jvp(g) for g in gradients),
        *map(dense, tape.gradient(total, operands)),
    ]


def assert_same(ours: Sequence[Any], due: Sequence[Any], what: object = "") -> None:
    for index, (mine, exact) in enumerate(zip(ours, due, strict=True)):
        if mine is None or exact is None:  # or zeros, where something else is connected
            given = exact if mine is None else mine
            assert given is None or not np.any(given), f"{index} of {what}"
            continue
        scale = max(1.0, float(np.abs(exact).max(initial=0)))
        np.testing.assert_allclose(
            mine, exact, rtol=1e-10, atol=1e-11 * scale, err_msg=f"{index} of {what}"
        )


def call_of(case: Case) -> Multiply:
    def call(a: Any, b: Any, bias: Any = None) -> Any:
        scale = written(case.gradient_scale, EAGER)
        return sg.matmul(a, b, bias=bias, gradient_scale=scale, **case.options)

    return call


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("in_function", [False, True])
def test_tangents_are_those_of_stock_ops(in_function: bool, seed: int) -> None:
    """Blocked, scaled, restricted operands and weighted rows, at random."""
    rng = np.random.default_rng(seed)
    case = Chooser(rng).case("complex128" if seed % 6 == 0 else "float64")
    operands = list(map(tf.constant, stock.operands_of(case.problem)))
    directions = [
        tf.constant(reference.random_array(rng, tuple(x.shape), x.dtype.name)) for x in operands
    ]
    one = seed % len(operands)

    def ours() -> list[Any]:
        return tangents(call_of(case), operands, directions, one)

    def stocks(*operands: Any) -> Any:
        return stock.matmul(
            case.problem, operands, case.blocked, case.scales, case.rows, case.masks
        )

    due = tangents(stocks, operands, directions, one)
    assert_same((tf.function(ours) if in_function else ours)(), due, case)


def arrays(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    return (
        rng.standard_normal((M, K)),
        rng.standard_normal((K, N)),
        rng.standard_normal((K, N)),
    )


@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
@pytest.mark.parametrize("watch", ["accumulator", "tape"])
def test_a_blocked_operand_has_no_tangent_and_gradients_none_through_it(
    activation: str | None, watch: str, rng: np.random.Generator
) -> None:
    a, b, direction = map(tf.constant, arrays(rng))

    def gradient_of_a() -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = sg.matmul(a, b, activation=activation, stop_gradient="b")
        return y, tape.gradient(y, a)

    if watch == "accumulator":
        with tf.autodiff.ForwardAccumulator(b, direction) as accumulator:
            y, gradient = gradient_of_a()
        assert accumulator.jvp(y) is None
        assert accumulator.jvp(gradient) is None
    else:
        with tf.GradientTape() as outer:
            outer.watch(b)
            _, gradient = gradient_of_a()
        assert outer.gradient(gradient, b) is None


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize(
    ("options", "meaning"),
    [
        ({"gradient_scale": {"b": -0.5}}, {"scales": {"b": -0.5}}),
        (
            {"trainable": {"b": np.s_[1:3]}},
            {"regions": {"b": np.array([[False], [True], [True], [False]])}},
        ),
    ],
    ids=["scale", "region"],
)
def test_the_gradient_of_one_operand_depends_on_the_other_as_that_is_steered(
    in_function: bool, options: dict[str, Any], meaning: dict[str, Any], rng: np.random.Generator
) -> None:
    a, b, direction = map(tf.constant, arrays(rng))

    def run(multiply: Multiply) -> list[Any]:
        with tf.GradientTape() as outer, tf.autodiff.ForwardAccumulator(b, direction) as over:
            outer.watch(b)
            with tf.GradientTape() as tape:  # asks for nothing else
                tape.watch(a)
                total = weighted_sum(multiply(a, b))
            gradient = tape.gradient(total, a)
        return [over.jvp(gradient), outer.gradient(gradient, b)]

    problem = reference.Problem(a, b, activation="tanh")
    due = run(lambda a, b: stock.matmul(problem, (a, b), **meaning))

    def ours() -> list[Any]:
        return run(lambda a, b: sg.matmul(a, b, activation="tanh", **options))

    assert_same((tf.function(ours) if in_function else ours)(), due)


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("zero", [("a",), ("b",), ("a", "b")], ids="+".join)
def test_a_scale_known_to_be_zero_gives_tangents_of_zeros(
    in_function: bool, activation: str, zero: tuple[str, ...], rng: np.random.Generator
) -> None:
    """As stock ops do, and not None; which of all tangents and gradients are None is the same."""
    a, b, direction = map(tf.constant, arrays(rng))
    operands, directions = [a, b], [tf.ones_like(a), direction]
    problem, scales = reference.Problem(a, b, activation=activation), dict.fromkeys(zero, 0.0)

    def run(multiply: Multiply) -> list[Any]:
        return [x for one in (0, 1) for x in tangents(multiply, operands, directions, one)]

    def ours() -> list[Any]:
        return run(lambda a, b: sg.matmul(a, b, activation=activation, gradient_scale=scales))

    due = run(lambda *operands: stock.matmul(problem, operands, scales=scales))
    mine = (tf.function(ours) if in_function else ours)()
    assert [x is None for x in mine] == [x is None for x in due]
    assert_same(mine, due)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_region_whose_gradient_is_indexed_slices(
    activation: str | None, rng: np.random.Generator
) -> None:
    a, b, direction = arrays(rng)
    w, rows = tf.Variable(b), [0, 2]
    region = {"b": sg.rows(rows, indexed_slices=True)}
    inside = np.zeros((K, 1))
    inside[rows] = 1

    def run(multiply: Multiply) -> list[Any]:
        with tf.autodiff.ForwardAccumulator(w, tf.constant(direction)) as accumulator:
            with tf.GradientTape() as tape:
                y = multiply(tf.constant(a), w)
                total = weighted_sum(y * y)
            gradient = tf.convert_to_tensor(tape.gradient(total, w))
        return [y, accumulator.jvp(y), gradient, dense(accumulator.jvp(gradient))]

    problem = reference.Problem(a, b, activation=activation or "linear")
    due = run(lambda a, w: stock.matmul(problem, (a, w), regions={"b": inside == 1}))
    mine = run(lambda a, w: sg.matmul(a, w, activation=activation, trainable=region))
    assert_same(mine, due)


def test_second_order_of_indexed_slices(rng: np.random.Generator) -> None:
    a, b, _ = arrays(rng)
    region = {"b": sg.rows([1, 3], indexed_slices=True)}
    inside = np.array([[False], [True], [False], [True]])

    def run(multiply: Multiply) -> list[Any]:
        x, w = tf.constant(a), tf.constant(b)
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as inner:
                inner.watch([x, w])
                total = weighted_sum(multiply(x, w))
            first = list(map(dense, inner.gradient(total, [x, w])))
            penalty = tf.add_n([tf.reduce_sum(g**2) for g in first])
        return [*first, *map(dense, outer.gradient(penalty, [x, w]))]

    problem = reference.Problem(a, b, activation="gelu")
    due = run(lambda a, w: stock.matmul(problem, (a, w), regions={"b": inside}))
    assert_same(run(lambda a, w: sg.matmul(a, w, activation="gelu", trainable=region)), due)


def test_a_call_that_no_accumulator_watches_is_not_recorded_for_one(
    rng: np.random.Generator,
) -> None:
    a, b, direction = map(tf.constant, arrays(rng))
    with tf.autodiff.ForwardAccumulator(direction, tf.ones_like(direction)) as accumulator:
        y = sg.matmul(a, b)
    assert accumulator.jvp(y) is None


@needs_xla
@pytest.mark.parametrize("activation", ["relu", "gelu", "sigmoid"])
def test_a_hessian_times_a_vector_compiled_by_xla(
    activation: str, rng: np.random.Generator
) -> None:
    a, b, direction = map(tf.constant, arrays(rng))

    def product(multiply: Multiply) -> Any:
        with tf.autodiff.ForwardAccumulator(b, direction) as accumulator:
            with tf.GradientTape() as tape:
                tape.watch(b)
                total = tf.reduce_sum(multiply(a, b) ** 2)
            gradient = tape.gradient(total, b)
        return accumulator.jvp(gradient)

    problem = reference.Problem(a, b, activation=activation)
    due = product(lambda a, b: stock.matmul(problem, (a, b)))
    compiled = tf.function(product, jit_compile=True)
    result = compiled(lambda a, b: sg.matmul(a, b, activation=activation))
    np.testing.assert_allclose(result, due, rtol=1e-9, atol=1e-12)
