"""Calls of `sg.matmul` drawn at random: all that steers gradients, alone and together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import devices
import numpy as np
import reference
import stock
import tensorflow as tf
from modes import COMPILED, GRAPH, Mode
from reference import ACTIVATIONS, FLOATING, LAYOUTS, Array, Problem

import stopgrad_op as sg

OPERANDS = ("a", "b", "bias")
SIZES = [1, 2, 3, 5, 7, 13, 31]


class VariableScale(NamedTuple):
    """A variable, and what it holds for a session, which cannot read it."""

    variable: tf.Variable
    value: float


def written(scale: Any, mode: Mode) -> Any:
    if isinstance(scale, dict):
        return {name: written(each, mode) for name, each in scale.items()}
    if not isinstance(scale, VariableScale):
        return scale
    dtype = scale.variable.dtype
    if mode is COMPILED and dtype == tf.int32 and devices.ops_run_on_gpu:
        # TensorFlow has such a variable in the host's memory, from where XLA's code cannot read it.
        return tf.constant(int(scale.value), dtype)
    if mode is GRAPH:
        return tf.cast(tf.compat.v1.placeholder_with_default(scale.value, ()), dtype)
    return scale.variable


@dataclass
class Case:
    """A way to call `sg.matmul`, and what it means."""

    problem: Problem
    blocked: tuple[str, ...]
    scales: dict[str, float]
    gradient_scale: Any
    rows: Array | None
    masks: dict[str, Array]
    options: dict[str, Any]


class Chooser:
    """Draws cases from random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def one_of(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def some(self, values: Any, probability: float) -> tuple[Any, ...]:
        return tuple(value for value in values if self.chance(probability))

    def problem(self, dtype: str) -> Problem:
        full = [self.one_of([1, 2, 3]) for _ in range(self.one_of([0, 0, 1, 2]))]
        parts = []
        for _ in range(2):
            part = [extent if self.chance(0.7) else 1 for extent in full]
            parts.append(part[self.one_of(range(len(part) + 1)) :] if self.chance(0.4) else part)
        m, k, n = (self.one_of(SIZES) for _ in range(3))
        return reference.random_problem(
            self.rng,
            (*parts[0], m, k),
            (*parts[1], k, n),
            dtype,
            bias=self.chance(0.5),
            layout_a=self.one_of(LAYOUTS),
            layout_b=self.one_of(LAYOUTS),
            activation=self.one_of(sorted(ACTIVATIONS)) if dtype in FLOATING else "linear",
        )

    def scale(self) -> tuple[Any, float]:
        """Return a scale as it may be written, and its value."""
        value = self.one_of([0.0, 0.5, 1.0, -1.0, 2.0])
        way = self.one_of([float, np.float32, "float32", "float16", "float64", "int32"])
        if not isinstance(way, str):
            return way(value), value
        if way == "int32":
            value = float(int(value))
        return VariableScale(tf.Variable(tf.cast(value, way)), value), value

    def rows(self, shape: tuple[int, ...]) -> Array:
        shape = tuple(extent if self.chance(0.8) else 1 for extent in shape)
        shape = shape[self.one_of(range(len(shape) + 1)) :] if self.chance(0.3) else shape
        if self.chance(0.4):
            return self.rng.random(shape) < self.one_of([0.1, 0.5, 0.9])
        dtype = reference.numpy_dtype(self.one_of(FLOATING))
        return self.rng.choice([0.0, 0.0, 1.0, 0.5, -2.0], shape).astype(dtype)

    def slice(self, extent: int) -> slice:
        begin, end = sorted(int(x) for x in self.rng.integers(0, extent + 1, 2))
        return slice(
            self.one_of([begin, begin - extent]) if begin < extent else begin,
            self.one_of([end, end - extent]) if end < extent else None,
            self.one_of([None, 1, 1, 2, 3]),
        )

    def region(self, shape: tuple[int, ...]) -> tuple[Any, Array]:
        """Return a region of an operand and its mask."""
        mask = np.zeros(shape, bool)
        kind = self.one_of(["slice", "slices", "rows", "columns"])
        if len(shape) == 1:
            kind = self.one_of(["slice", "columns"])
        if kind == "slice":
            region: Any = self.slice(shape[max(0, len(shape) - 2)])
            mask[(region,) if len(shape) == 1 else (..., region, slice(None))] = True
        elif kind == "slices":
            region = self.slice(shape[-2]), self.slice(shape[-1])
            mask[(..., *region)] = True
        else:
            extent = shape[-2 if kind == "rows" else -1]
            chosen = self.rng.permutation(extent)[: self.rng.integers(0, extent + 1)]
            region = getattr(sg, kind)(chosen)
            mask[(..., chosen, slice(None)) if kind == "rows" else (..., chosen)] = True
        return region, mask

    def case(self, dtype: str) -> Case:
        problem = self.problem(dtype)
        arrays = dict(zip(OPERANDS, stock.operands_of(problem), strict=False))
        blocked = self.some(arrays, 0.2)
        scales, regions, masks = {}, {}, {}
        gradient_scale: Any = None
        if self.chance(0.2):
            gradient_scale, value = self.scale()
            scales = dict.fromkeys(arrays, value)
        elif self.chance(0.5):
            gradient_scale = {}
            for name in self.some(arrays, 0.5):
                gradient_scale[name], scales[name] = self.scale()
        for name in self.some(arrays, 0.5):
            regions[name], masks[name] = self.region(arrays[name].shape)
        y_shape = reference.preactivation(problem).value.shape
        rows = self.rows(y_shape[:-1]) if self.chance(0.5) else None
        options = {
            "stop_gradient": blocked,
            "gradient_rows": rows,
            "trainable": regions or self.one_of([None, {}]),
            **stock.options_of(problem),
        }
        return Case(problem, blocked, scales, gradient_scale, rows, masks, options)
