"""How many floating-point operations the ops are, for TensorFlow's profiler.

Counted as TensorFlow counts its own ops: 2 m n k for each matrix product, also where it is complex,
an addition for each element that gets a bias, and nothing for activations.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops

from stopgrad_op._regions import Selection, select


@ops.RegisterStatistics("StopgradOp>FusedMatMul", "flops")
def _count_forward(graph: tf.Graph, node: Any) -> Any:
    op = graph.get_operation_by_name(node.name)
    a, y = _known(op.inputs[0].shape), _known(op.outputs[0].shape)
    k = a[-1] if op.get_attr("layout_a") == b"normal" else a[-2]
    additions = math.prod(y) if op.get_attr("num_bias") else 0
    return ops.OpStats("flops", 2 * math.prod(y) * k + additions)


@ops.RegisterStatistics("StopgradOp>FusedMatMulGrad", "flops")
def _count_backward(graph: tf.Graph, node: Any) -> Any:
    """Count the products that are needed, where something learns, and the sum for a bias.

    What is decided at run time is counted as if all learned: scales that are no constants, rows.
    """
    op = graph.get_operation_by_name(node.name)
    inputs = iter(op.inputs)
    dy = _known(next(inputs).shape)
    factors = {name: next(inputs) for name in ("a", "b") if op.get_attr(f"num_{name}")}
    for name in ("saved", "shape_a", "shape_b"):
        for _ in range(op.get_attr(f"num_{name}")):
            next(inputs)
    scales = {name: tf.get_static_value(next(inputs)) for name in _names(op, "scaled")}
    for _ in op.get_attr("row_types"):
        next(inputs)
    selected = {axis: _known(next(inputs).shape)[0] for axis in _names(op, "indexed")}
    slices = op.get_attr("slices")
    bounds = {axis: slices[3 * i : 3 * i + 3] for i, axis in enumerate(_names(op, "sliced"))}

    def learning(axis: str, extent: int) -> int:
        if axis in bounds:
            return len(select(Selection("rows", tuple(bounds[axis]), None), extent))
        return selected.get(axis, extent)

    def count(name: str) -> int:
        rows, columns = math.prod(dy[:-1]), dy[-1]
        if name == "bias":  # a sum has one addition fewer than it has terms
            return max(0, rows - 1) * learning("bias", columns)
        # Of the other factor k is known, the dimension that dy does not have.
        other = "b" if name == "a" else "a"
        shape = _known(factors[other].shape)
        is_stored = op.get_attr(f"layout_{other}") == b"normal"
        k = shape[-2 if (other == "b") == is_stored else -1]
        result = [dy[-2], k] if name == "a" else [k, columns]
        terms = columns if name == "a" else dy[-2]
        if op.get_attr(f"layout_{name}") != b"normal":
            result.reverse()
        size = learning(f"{name}_rows", result[0]) * learning(f"{name}_columns", result[1])
        return 2 * size * terms * math.prod(dy[:-2])

    due = [name for name in _names(op, "needed") if name != "z" and scales.get(name) != 0]
    return ops.OpStats("flops", sum(map(count, due)))


def _names(op: tf.Operation, attribute: str) -> list[str]:
    return [tf.compat.as_str(name) for name in op.get_attr(attribute)]


def _known(shape: tf.TensorShape) -> list[int]:
    shape.assert_is_fully_defined()  # the profiler takes a ValueError for "unknown"
    sizes: list[int] = shape.as_list()
    return sizes
