"""What a policy makes of one operand's gradient, in TensorFlow's operations.

The kernels do it as they compute; this is for derivatives of higher order, and for what differs
between the steps of a vectorized loop where the kernels have one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from stopgrad_op._options import GradientPolicy, operand_of


def restrict(
    name: str,
    g: tf.Tensor,
    policy: GradientPolicy,
    scales: Mapping[str, tf.Tensor],
    indices: Mapping[str, tf.Tensor],
) -> tf.Tensor:
    """Return the gradient times its scale, and 0 outside the region; a scale of 0 gives zeros."""
    if name in scales:
        zero = tf.equal(scales[name], 0)
        g = tf.where(zero, tf.zeros_like(g), g * tf.cast(scales[name], g.dtype))
    for index, axis in enumerate(policy.sliced):
        if operand_of(axis) == name:
            g = _keep(g, axis, _in_slice(*policy.slices[3 * index : 3 * index + 3]))
    for axis, selected in indices.items():
        if operand_of(axis) == name:
            g = _keep(g, axis, _in_list(selected))
    return g


def steer(
    name: str,
    x: tf.Tensor,
    policy: GradientPolicy,
    scales: Mapping[str, tf.Tensor],
    indices: Mapping[str, tf.Tensor],
) -> tf.Tensor:
    """Return an operand that is as it was, and whose gradient the policy restricts.

    Scales may have more axes in front than the operand, and so has the result then. Where the
    operand is infinite the result is NaN.
    """
    frozen = tf.stop_gradient(x)
    if name in policy.blocked:
        return frozen
    axes = (*policy.sliced, *policy.indexed)
    if name not in scales and name not in map(operand_of, axes):
        return x
    return frozen + restrict(name, x - frozen, policy, scales, indices)


_Selects = Callable[[tf.Tensor], tf.Tensor]


def _keep(g: tf.Tensor, axis: str, selects: _Selects) -> tf.Tensor:
    """Return g with zeros where `selects(places)` is false along an axis."""
    of_rows = axis.endswith("_rows")
    places = tf.range(tf.shape(g, tf.int64)[-2 if of_rows else -1])
    mask = selects(places)
    return tf.where(mask[:, tf.newaxis] if of_rows else mask, g, tf.zeros_like(g))


def _in_slice(begin: int, end: int, step: int) -> _Selects:
    def selects(places: tf.Tensor) -> tf.Tensor:
        size = tf.size(places, tf.int64)
        first = begin + size if begin < 0 else tf.constant(begin, tf.int64)
        last = end + size if end < 0 else tf.constant(end, tf.int64)
        return (places >= first) & (places < last) & ((places - first) % step == 0)

    return selects


def _in_list(indices: tf.Tensor) -> _Selects:
    def selects(places: tf.Tensor) -> tf.Tensor:
        extent = tf.size(places, tf.int64)[tf.newaxis]
        ones = tf.ones_like(indices, tf.int32)
        return tf.scatter_nd(indices[:, tf.newaxis], ones, extent) > 0

    return selects
