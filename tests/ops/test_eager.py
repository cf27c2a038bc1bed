"""Eager calls: one step of TensorFlow each, however the operands are held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

import stopgrad_op as sg
from stopgrad_op import _tensorflow

FORWARD, BACKWARD = "StopgradOp>FusedMatMulEager", "StopgradOp>FusedMatMulGrad"
SHAPES = ((5, 7), (7, 3), (3,))


@contextmanager
def executed_ops() -> Iterator[list[str]]:
    """Collect the types of the ops that run."""
    types: list[str] = []

    def note(op_type: Any, *_: Any) -> None:
        types.append(tf.compat.as_str(op_type))

    op_callbacks.add_op_callback(note)
    try:
        yield types
    finally:
        op_callbacks.remove_op_callback(note)


def arrays(rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    return [rng.standard_normal(shape) for shape in SHAPES]


KINDS = {
    "tensor": tf.constant,
    "variable": tf.Variable,
    "keras_variable": lambda x: keras.Variable(x, dtype="float64"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_a_call_is_one_op_and_so_is_its_gradient(
    rng: np.random.Generator, kind: str, activation: str | None
) -> None:
    a, b, bias = map(KINDS[kind], arrays(rng))
    dy = tf.ones((5, 3), tf.float64)
    with executed_ops() as types:
        sg.matmul(a, b, bias=bias, activation=activation)
        assert types == [FORWARD]
        sources = [x.value if kind == "keras_variable" else x for x in (a, b, bias)]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y = sg.matmul(a, b, bias=bias, activation=activation)
        assert types == [FORWARD] * 2
        tape.gradient(y, sources, output_gradients=dy)
        assert types == [FORWARD] * 2 + [BACKWARD]


def test_an_array_beside_variables_adds_no_reading_of_them(rng: np.random.Generator) -> None:
    a, b, bias = arrays(rng)
    b, bias = tf.Variable(b), tf.Variable(bias)
    with executed_ops() as types:
        sg.matmul(a, b, bias=bias)
    assert "ReadVariableOp" not in types


@every_kind
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("in_one_step", [True, False])
def test_gradients_of_whatever_holds_the_operands(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    activation: str | None,
    persistent: bool,
    in_one_step: bool,
) -> None:
    if not in_one_step:  # as where the op does not go
        monkeypatch.setattr(_tensorflow, "run_op", lambda *arguments: arguments[-1]())
    values = arrays(rng)
    problem = reference.Problem(*values, activation=activation or "linear")
    dy = rng.standard_normal((5, 3))
    a, b, bias = map(KINDS[kind], values)
    sources = [x.value if kind == "keras_variable" else x for x in (a, b, bias)]
    with tf.GradientTape(persistent=persistent) as tape:
        tape.watch(sources)
        y = sg.matmul(a, b, bias=bias, activation=activation)
    np.testing.assert_allclose(y, reference.forward(problem).value, rtol=1e-12, atol=1e-13)
    exact = reference.gradients(problem, dy)
    gradients = tape.gradient(y, sources, output_gradients=tf.constant(dy))
    for name, gradient in zip(("a", "b", "bias"), gradients, strict=True):
        np.testing.assert_allclose(gradient, exact[name].value, rtol=1e-11, atol=1e-12)


def test_an_operand_may_be_both_factors(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 4))
    w = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = sg.matmul(w, w)
    ones = np.ones((4, 4))
    np.testing.assert_allclose(tape.gradient(y, w), ones @ x.T + x.T @ ones)


ASSIGNMENTS = {
    "assign": lambda w: w.assign(tf.zeros_like(w)),
    "assign_add": lambda w: w.assign_add(tf.ones_like(w)),
    "scatter": lambda w: w.scatter_nd_update([[0], [2]], tf.zeros((2, 3), tf.float64)),
}


@pytest.mark.parametrize("before", [None, *ASSIGNMENTS])
@pytest.mark.parametrize("after", ASSIGNMENTS)
def test_backward_reads_the_variable_as_forward_did(
    rng: np.random.Generator, before: str | None, after: str
) -> None:
    a, b, _ = arrays(rng)
    x, w = tf.constant(a), tf.Variable(b)
    if before is not None:  # a scattered assignment changes how the variable is read from then on
        ASSIGNMENTS[before](w)
    value = w.numpy().copy()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = sg.matmul(x, w)
    ASSIGNMENTS[after](w)
    dx, dw = tape.gradient(y, [x, w])
    np.testing.assert_allclose(dx, np.ones((5, 3)) @ value.T)
    np.testing.assert_allclose(dw, a.T @ np.ones((5, 3)))


@pytest.mark.parametrize("stop_gradient", [None, "b", True])
def test_tape_sees_the_variables_that_a_call_uses(
    rng: np.random.Generator, stop_gradient: Any
) -> None:
    a, b, bias = arrays(rng)
    w, fixed = tf.Variable(b), tf.Variable(bias, trainable=False)
    with tf.GradientTape() as tape:
        sg.matmul(a, w, bias=fixed, stop_gradient=stop_gradient)
    assert [x.ref() for x in tape.watched_variables()] == [w.ref()]


def test_a_variable_that_is_not_trainable_has_a_gradient_if_it_is_watched(
    rng: np.random.Generator,
) -> None:
    a, b, _ = arrays(rng)
    w = tf.Variable(b, trainable=False)
    for watched in (False, True):
        with tf.GradientTape() as tape:
            if watched:
                tape.watch(w)
            y = sg.matmul(a, w)
        assert (tape.gradient(y, w) is not None) == watched


def test_recording_goes_on_after_an_error_and_stays_stopped_where_it_was() -> None:
    w = tf.Variable(tf.ones((3, 2)))
    with tf.GradientTape() as tape:
        with tape.stop_recording():
            unseen = sg.matmul(tf.ones((1, 3)), w)
            unseen += tf.matmul(tf.ones((1, 3)), w)
        with pytest.raises(tf.errors.InvalidArgumentError):
            sg.matmul(tf.ones((1, 4)), w)
        seen = tf.matmul(tf.ones((1, 3)), w)
    np.testing.assert_array_equal(tape.gradient(seen, w), np.ones((3, 2)))
    with tf.GradientTape() as tape, tape.stop_recording():
        with pytest.raises(tf.errors.InvalidArgumentError):
            sg.matmul(tf.ones((1, 4)), w)
        unseen = tf.matmul(tf.ones((1, 3)), w)
    assert tape.gradient(unseen, w) is None


def test_wrong_variables_are_named() -> None:
    with pytest.raises(TypeError, match="`b` has dtype float64 and `a` has float32"):
        sg.matmul(tf.ones((2, 3)), tf.Variable(np.ones((3, 2))))
    with pytest.raises(ValueError, match='`activation` "relu" needs a real floating dtype'):
        sg.matmul(tf.Variable([[1]]), tf.Variable([[1]]), activation="relu")
    with pytest.raises(tf.errors.InvalidArgumentError, match="`b` must have as many rows"):
        sg.matmul(tf.Variable(np.ones((2, 3))), tf.Variable(np.ones((2, 3))))


def test_forward_mode_through_a_variable(rng: np.random.Generator) -> None:
    a, b, _ = arrays(rng)
    w, v = tf.Variable(b), rng.standard_normal(b.shape)
    with tf.autodiff.ForwardAccumulator(w, tf.constant(v)) as accumulator:
        y = sg.matmul(a, w)
    np.testing.assert_allclose(accumulator.jvp(y), a @ v, rtol=1e-5)


def test_gradient_taken_inside_a_function_of_a_call_outside(rng: np.random.Generator) -> None:
    a, b, bias = arrays(rng)
    w = tf.Variable(b)
    with tf.GradientTape() as tape:
        y = sg.matmul(a, w, bias=bias, activation="gelu")
    dy = rng.standard_normal((5, 3))
    gradient = tf.function(lambda dy: tape.gradient(y, w, output_gradients=dy))(tf.constant(dy))
    exact = reference.gradients(reference.Problem(a, b, bias, activation="gelu"), dy)
    np.testing.assert_allclose(gradient, exact["b"].value, rtol=1e-11, atol=1e-12)


def test_variable_that_is_written_in_place_is_read_as_it_was(rng: np.random.Generator) -> None:
    """After an update of some rows TensorFlow writes a variable where it lies; readers copy."""
    a, b, _ = arrays(rng)
    variable = tf.Variable(b)
    x = tf.Variable(a)
    variable.scatter_nd_add([[0]], np.zeros((1, 3)))  # from here on it is written in place
    with tf.GradientTape() as tape:
        y = sg.matmul(x, variable)
    variable.scatter_nd_add([[1]], np.full((1, 3), 1e6))
    exact = reference.gradients(reference.Problem(a, b), np.ones((5, 3)))["a"]
    reference.assert_close(tape.gradient(y, x).numpy(), exact, "float64")
