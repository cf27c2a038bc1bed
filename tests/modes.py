"""The ways in which TensorFlow runs a function and its gradients, one class each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from stopgrad_op._library import load_xla

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]
Gradients = list["Array | None"]


def to_numpy(tensor: Any) -> Any:
    """Turn a tensor, or None, into an array."""
    return None if tensor is None else tensor.numpy()


class Eager:
    """Everything runs when it is called."""

    name = "eager"

    def run(self, function: Function, *inputs: Array) -> Array:
        result: Array = function(*map(tf.constant, inputs)).numpy()
        return result

    def gradients(
        self, function: Function, inputs: Sequence[Array], dy: Array
    ) -> tuple[Array, Gradients]:
        """Return `function(*inputs)` and its gradients, None where there are none."""
        y, gradients = self._tape(function, [tf.constant(x) for x in inputs], tf.constant(dy))
        return to_numpy(y), [to_numpy(gradient) for gradient in gradients]

    def _tape(self, function: Function, inputs: list[tf.Tensor], dy: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        return y, tape.gradient(y, inputs, output_gradients=dy)


class TapeInFunction(Eager):
    """Forward and backward pass are one `tf.function`."""

    name = "tape_in_function"

    def run(self, function: Function, *inputs: Array) -> Array:
        return super().run(tf.function(function), *inputs)

    def _tape(self, function: Function, inputs: list[tf.Tensor], dy: tf.Tensor) -> Any:
        tape = super()._tape
        return tf.function(lambda inputs, dy: tape(function, inputs, dy))(inputs, dy)


class Compiled(Eager):
    """Forward and backward pass are one `tf.function` that XLA compiles."""

    name = "compiled"

    def run(self, function: Function, *inputs: Array) -> Array:
        return super().run(tf.function(function, jit_compile=True), *inputs)

    def _tape(self, function: Function, inputs: list[tf.Tensor], dy: tf.Tensor) -> Any:
        tape = super()._tape
        compiled = tf.function(lambda inputs, dy: tape(function, inputs, dy), jit_compile=True)
        return compiled(inputs, dy)


class TapeOutsideFunction(TapeInFunction):
    """An eager tape watches a `tf.function`, which keeps what backward may read."""

    name = "tape_outside_function"

    def _tape(self, function: Function, inputs: list[tf.Tensor], dy: tf.Tensor) -> Any:
        return Eager._tape(self, tf.function(function), inputs, dy)


class Graph:
    """A TF1 graph, placeholders and a session."""

    name = "graph"

    def run(self, function: Function, *inputs: Array) -> Array:
        with tf.Graph().as_default():
            placeholders = [tf.compat.v1.placeholder(x.dtype, x.shape) for x in inputs]
            y = function(*placeholders)
            with tf.compat.v1.Session() as session:
                result: Array = session.run(y, dict(zip(placeholders, inputs, strict=True)))
        return result

    def gradients(
        self, function: Function, inputs: Sequence[Array], dy: Array
    ) -> tuple[Array, Gradients]:
        with tf.Graph().as_default():
            placeholders = [tf.compat.v1.placeholder(x.dtype, x.shape) for x in inputs]
            y = function(*placeholders)
            gradients = tf.gradients(y, placeholders, grad_ys=tf.constant(dy))
            exist = [gradient for gradient in gradients if gradient is not None]
            with tf.compat.v1.Session() as session:
                feed = dict(zip(placeholders, inputs, strict=True))
                y_value, *values = session.run([y, *exist], feed)
        return y_value, [None if gradient is None else values.pop(0) for gradient in gradients]


Mode = Eager | Graph
EAGER, IN_FUNCTION, OUTSIDE_FUNCTION, GRAPH = (
    Eager(),
    TapeInFunction(),
    TapeOutsideFunction(),
    Graph(),
)
COMPILED = Compiled()
# Those in which the kernels run, and count what they do; XLA makes kernels of its own.
KERNEL_MODES: tuple[Mode, ...] = (EAGER, IN_FUNCTION, OUTSIDE_FUNCTION, GRAPH)
MODES: tuple[Mode, ...] = KERNEL_MODES if load_xla() else (*KERNEL_MODES, COMPILED)
needs_xla = pytest.mark.skipif(load_xla() is not None, reason=f"without XLA: {load_xla()}")


def mode_id(mode: Mode) -> str:
    return mode.name


def unguarded(x: tf.Tensor) -> tf.Tensor:
    """Return what a tensor of a graph is, behind operations that only concern its gradient."""
    while x.op.type in ("Identity", "IdentityN", "StopGradient"):
        x = x.op.inputs[x.value_index]
    return x
