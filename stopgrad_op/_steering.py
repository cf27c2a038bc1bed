"""What steers gradients at run time: scales, rows and indices, checked and turned into tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from stopgrad_op import _tensorflow
from stopgrad_op._library import load_gpu
from stopgrad_op._options import OPERANDS, GradientPolicy, MatMulOptions, Steering, operand_of
from stopgrad_op._regions import Indices, Selection, check_extent

_ROWS_DTYPES = (tf.bool, tf.float16, tf.bfloat16, tf.float32, tf.float64)


def check_steering(steering: Steering, options: MatMulOptions, operands: Sequence[Any]) -> Steering:
    """Check all that can be known now, the operands being tensors or variables.

    Returns
    -------
    Steering
        The same, its rows a tensor.

    Raises
    ------
    ValueError, TypeError
        With the name of the option, what came and what is due.
    """
    policy = options.policy
    at_run_time = [
        name for name, scale in zip(policy.scaled, policy.scales, strict=True) if scale is None
    ]
    for name, scale in zip(at_run_time, steering.scales, strict=True):
        _check_scale(scale, name)
    _check_regions(policy, steering.indices, operands)
    if steering.rows is None:
        return steering
    rows = _to_rows(steering.rows)
    _check_rows(rows, _shape_of_rows(operands, options.layout_a))
    return steering._replace(rows=rows)


def read_scales(policy: GradientPolicy, steering: Steering | None) -> list[tf.Tensor | float]:
    """Return every scale of the policy, those that come at run time as they are now.

    In eager mode that is a number, elsewhere a tensor of float64.
    """
    at_run_time = () if steering is None else steering.scales
    # Where one scale is that of several operands it is read once.
    different = {id(scale): scale for scale in at_run_time}
    read = {number: _read_scale(scale) for number, scale in different.items()}
    values = iter([read[id(scale)] for scale in at_run_time])
    return [next(values) if scale is None else scale for scale in policy.scales]


def _read_scale(scale: Any) -> tf.Tensor | float:
    if isinstance(scale, keras.Variable):
        scale = scale.value
    if not tf.executing_eagerly():
        with _on_host():
            return tf.cast(scale, tf.float64)
    # A tenth of the time that a cast takes. A scale of 0 is known here, and needs no kernel.
    return float(_tensorflow.read_eagerly(scale).numpy())


def index_tensor(indices: Indices) -> tf.Tensor:
    """Return the indices of a region as a tensor, in eager mode the same one at each call."""
    if not tf.executing_eagerly():
        with _on_host():
            return tf.constant(indices, tf.int64)
    # An array is not hashable. Its number is nobody else's as long as it lives.
    known = _index_tensors.get(id(indices))
    if known is None:
        with tf.device("CPU:0"):
            known = tf.constant(indices, tf.int64)
        weakref.finalize(indices, _index_tensors.pop, id(indices), None).atexit = False
        _index_tensors[id(indices)] = known
    return known


_index_tensors: dict[int, tf.Tensor] = {}


def _on_host() -> AbstractContextManager[Any]:
    """Make what steers a call in the host's memory, where the kernels of a GPU read it too."""
    return tf.device("CPU:0") if load_gpu() is None else nullcontext()


def _check_scale(scale: Any, name: str) -> None:
    what = f"`gradient_scale` of `{name}`"
    try:
        dtype, shape = tf.as_dtype(scale.dtype), tf.TensorShape(scale.shape)
    except (AttributeError, TypeError):
        raise TypeError(
            f"{what} has type {type(scale).__name__}; due is a real number, or a scalar tensor."
        ) from None
    if not (dtype.is_floating or dtype.is_integer):
        raise TypeError(f"{what} has dtype {dtype.name}; due is a real floating or integer dtype.")
    if shape.rank not in (0, None):
        raise ValueError(f"{what} has shape {shape.as_list()}; due is a scalar.")


def _check_regions(
    policy: GradientPolicy, indices: Sequence[Indices], operands: Sequence[Any]
) -> None:
    def check(axis: str, bounds: Any, indices: Indices | None) -> None:
        name = operand_of(axis)
        shape = operands[OPERANDS.index(name)].shape
        if shape.rank is None or shape.rank < (1 if name == "bias" else 2):
            return  # nothing is known, or what comes is no matrix, and the op says so
        rows = axis.endswith("rows")
        extent = shape[-2 if rows else -1]
        if extent is not None:
            selection = Selection("rows" if rows else "columns", bounds, indices)
            check_extent(selection, extent, f"`trainable` of `{name}`")

    for i, axis in enumerate(policy.sliced):
        check(axis, policy.slices[3 * i : 3 * i + 3], None)
    for axis, each in zip(policy.indexed, indices, strict=True):
        check(axis, None, each)
    for name in policy.indexed_slices:
        rank = operands[OPERANDS.index(name)].shape.rank
        if rank not in (2, None):
            raise ValueError(
                f"`trainable` of `{name}` has `indexed_slices`, and `{name}` has rank {rank}; due"
                " is a matrix."
            )


def _to_rows(rows: Any) -> tf.Tensor:
    try:
        # A tensor stays where it is.
        with _on_host():
            return tf.convert_to_tensor(rows.value if isinstance(rows, keras.Variable) else rows)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`gradient_rows` has type {type(rows).__name__} and cannot be made a tensor; due is"
            " a bool or floating tensor."
        ) from error


def _check_rows(rows: tf.Tensor, due: tf.TensorShape) -> None:
    if rows.dtype not in _ROWS_DTYPES:
        raise TypeError(
            f"`gradient_rows` has dtype {rows.dtype.name}; due is one of"
            f" {', '.join(dtype.name for dtype in _ROWS_DTYPES)}."
        )
    if rows.shape.rank is None or due.rank is None:
        return
    missing = due.rank - rows.shape.rank
    if missing < 0 or any(
        extent is not None and extent != 1 and due_extent not in (extent, None)
        for extent, due_extent in zip(rows.shape, due[missing:], strict=True)
    ):
        raise ValueError(
            f"`gradient_rows` has shape {rows.shape.as_list()}, and the rows of the result have"
            f" shape {due.as_list()}; due is a shape that broadcasts to it."
        )


def _shape_of_rows(operands: Sequence[Any], layout_a: str) -> tf.TensorShape:
    """Return the shape of the result without its last axis, as far as it is known."""
    a, b = operands[0].shape, operands[1].shape
    if a.rank is None or b.rank is None or a.rank < 2 or b.rank < 2:
        return tf.TensorShape(None)
    try:
        batch = tf.broadcast_static_shape(a[:-2], b[:-2])
    except ValueError:  # which the op has words for
        return tf.TensorShape(None)
    return batch.concatenate(a[-2:-1] if layout_a == "normal" else a[-1:])
