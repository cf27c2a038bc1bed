"""The same computation in stock TensorFlow, as the design defines it, to measure errors by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import reference
import tensorflow as tf
from modes import EAGER
from reference import Array, Problem

# tf.nn's gelu and leaky_relu, and on a GPU its selu, have constants that were rounded to float32,
# also in float64; the formulas below are the same without that.
_ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "linear": lambda z: z,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "leaky_relu": lambda z: tf.nn.relu(z) + _times(z - tf.nn.relu(z), 0.2),
    "elu": tf.nn.elu,
    "selu": lambda z: tf.where(
        z < 0, _times(tf.nn.elu(z), 1.7580993408473766), _times(z, 1.0507009873554805)
    ),
    "gelu": lambda z: z * tf.constant(0.5, z.dtype) * (1 + tf.math.erf(_times(z, 0.5**0.5))),
    "gelu_tanh": lambda z: (
        z
        * tf.constant(0.5, z.dtype)
        * (1 + tf.math.tanh(_times(z + _times(z**3, 0.044715), 0.7978845608028654)))
    ),
    "sigmoid": tf.nn.sigmoid,
    "tanh": tf.nn.tanh,
    "silu": tf.nn.silu,
    "softplus": tf.nn.softplus,
}


def _times(z: tf.Tensor, number: float) -> tf.Tensor:
    return tf.constant(number, z.dtype) * z


def _read(x: tf.Tensor, layout: str) -> tf.Tensor:
    return {"normal": lambda x: x, "transpose": tf.linalg.matrix_transpose, "adjoint": _adjoint}[
        layout
    ](x)


def _adjoint(x: tf.Tensor) -> tf.Tensor:
    return tf.math.conj(tf.linalg.matrix_transpose(x))


def _with_batch(x: tf.Tensor, batch: tf.TensorShape) -> tf.Tensor:
    """Broadcast in a step of its own: oneDNN's products in float32 get it wrong."""
    return x if x.shape[:-2] == batch else tf.broadcast_to(x, batch + x.shape[-2:])


def matmul(
    problem: Problem,
    operands: Sequence[tf.Tensor],
    blocked: Sequence[str] = (),
    scales: Mapping[str, float] = {},
    rows: Array | None = None,
    regions: Mapping[str, Array] = {},
) -> tf.Tensor:
    """Compute the product; `regions` are masks of the operands as they are stored."""

    def prepare(name: str, x: tf.Tensor) -> tf.Tensor:
        if name in blocked:
            return tf.stop_gradient(x)
        if name in regions:
            x = tf.where(regions[name], x, tf.stop_gradient(x))
        if name in scales:
            scale = tf.constant(scales[name], x.dtype)
            return scale * x + tf.stop_gradient((1 - scale) * x)
        return x

    a, b, *bias = (prepare(name, x) for name, x in zip(("a", "b", "bias"), operands, strict=False))
    a, b = _read(a, problem.layout_a), _read(b, problem.layout_b)
    batch = tf.broadcast_static_shape(a.shape[:-2], b.shape[:-2])
    z = tf.matmul(_with_batch(a, batch), _with_batch(b, batch))
    for x in bias:
        z += x
    y = _ACTIVATIONS[problem.activation](z)
    if rows is None:
        return y
    factor = tf.cast(rows, y.dtype)[..., None]
    return factor * y + tf.stop_gradient((1 - factor) * y)


# How many problems next to the one at hand are computed too: with few numbers the roundings of one
# may cancel by luck, and twice nothing is nothing.
NEIGHBOURS = 15


def errors(
    problem: Problem,
    dtype: str,
    dy: Array,
    blocked: Sequence[str] = (),
    scales: Mapping[str, float] = {},
    rows: Array | None = None,
    regions: Mapping[str, Array] = {},
) -> dict[str, float]:
    """Return the largest errors of stock TensorFlow's y and gradients, by name."""
    rng = np.random.default_rng(0)
    neighbours = [reference.nearby(problem, rng) for _ in range(NEIGHBOURS)]
    worst: dict[str, float] = {}
    for each in (problem, *filter(lambda p: reference.crosses_no_kink(p, dtype), neighbours)):
        y, gradients = EAGER.gradients(
            lambda *operands, each=each: matmul(each, operands, blocked, scales, rows, regions),
            operands_of(each),
            dy,
        )
        gradients_of_each = reference.gradients(each, dy, scales, rows=rows, regions=regions)
        exact = {"y": reference.forward(each), **gradients_of_each}
        results = {"y": y, **dict(zip(("a", "b", "bias"), gradients, strict=False))}
        for name, result in results.items():
            if result is not None:
                error = reference.error_of(result, exact[name])
                worst[name] = max(worst.get(name, 0.0), error)
    return worst


def operands_of(problem: Problem) -> list[Array]:
    arrays = [problem.a, problem.b]
    return arrays if problem.bias is None else [*arrays, problem.bias]


def options_of(problem: Problem) -> dict[str, Any]:
    """Return what `sg.matmul` calls the options of the problem."""
    options: dict[str, Any] = {"activation": problem.activation}
    for operand, layout in (("a", problem.layout_a), ("b", problem.layout_b)):
        if layout != "normal":
            options[f"{layout}_{operand}"] = True
    return options
