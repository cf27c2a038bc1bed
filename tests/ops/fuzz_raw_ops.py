"""Call the raw ops at random; whatever they accept must be right.

A result is compared with NumPy on the same numbers: what was read outside a buffer is not among
them. Run by tests/ops/test_raw_ops.py; prints how many calls were accepted and rejected.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import reference
import tensorflow as tf
from reference import ACTIVATIONS, LAYOUTS, Array

from stopgrad_op._library import load_ops

ops = load_ops()
EXTENTS = [0, 1, 1, 2, 2, 3, 5]
OPERANDS = ["a", "b", "bias"]


class Fuzzer:
    """One random stream of calls."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def one_of(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def shape(self, near: tuple[int, ...]) -> tuple[int, ...]:
        """Return that shape, or now and then another one."""
        kind = self.rng.random()
        if kind < 0.85:
            return near
        if kind < 0.92 and near:
            changed = list(near)
            changed[int(self.rng.integers(len(near)))] = self.one_of(EXTENTS)
            return tuple(changed)
        if kind < 0.96:
            return near[1:]
        return (self.one_of(EXTENTS), *near)

    def numbers(self, shape: tuple[int, ...]) -> Array:
        return self.rng.uniform(0.5, 1.5, shape)

    def several(self, make: Any, usual: bool) -> list[Any]:
        """Return one if that is usual and none otherwise, with exceptions."""
        count = int(usual) if self.chance(0.93) else int(self.rng.integers(3))
        return [make() for _ in range(count)]

    def names(self, pool: list[str]) -> list[str]:
        if self.chance(0.1):
            return [self.one_of([*pool, "z", "y"]) for _ in range(int(self.rng.integers(4)))]
        return [name for name in pool if self.chance(0.5)]

    def problem(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str, str]:
        """Return the shapes of a, b and y and the layouts, mostly of a product that exists."""
        m, k, n = (self.one_of(EXTENTS) for _ in range(3))
        batch = tuple(self.one_of(EXTENTS) for _ in range(self.one_of([0, 0, 1, 2])))
        part = [tuple(e if self.chance(0.6) else 1 for e in batch) for _ in range(2)]
        # Of which the leading dimensions may be left out.
        part = [p[self.one_of(range(len(p) + 1)) :] if self.chance(0.5) else p for p in part]
        layouts = self.one_of(LAYOUTS), self.one_of(LAYOUTS)
        a = reference.stored_shape((*part[0], m, k), layouts[0])
        b = reference.stored_shape((*part[1], k, n), layouts[1])
        y = (*np.broadcast_shapes(*part), m, n)
        return a, b, y, *layouts

    def sizes(self, shape: tuple[int, ...]) -> list[int]:
        sizes = list(self.shape(shape))
        if sizes and self.chance(0.1):
            sizes[0] = self.one_of([-1, 2**31, 2**40, 2**62, -(2**63), 1000])
        return sizes

    def rows(self, shape: tuple[int, ...]) -> list[Array]:
        """Return rows of y, of a result of that shape, mostly."""

        def make() -> Array:
            full = self.shape(shape[:-1])
            part = tuple(extent if self.chance(0.8) else 1 for extent in full)
            part = part[self.one_of(range(len(part) + 1)) :] if self.chance(0.3) else part
            if self.chance(0.5):
                return self.rng.random(part) < 0.5
            values = [0.0, 0.0, 1.0, 0.5, -2.0] + [np.nan] * self.chance(0.05)
            return self.rng.choice(values, part).astype(self.one_of([np.float32, np.float64]))

        return self.several(make, usual=self.chance(0.5))

    def indices(self, extent: int) -> Array:
        """Return what selects some of so many, mostly."""
        count = int(self.rng.integers(extent + 1))
        chosen = np.sort(self.rng.permutation(extent)[:count]).astype(np.int64)
        kind = self.rng.random()
        if chosen.size and kind < 0.1:
            bad = [-1, extent, 2**62, -(2**63), 2**63 - 1, chosen[0]]
            chosen[int(self.rng.integers(chosen.size))] = self.one_of(bad)
        elif kind < 0.12:
            chosen = chosen[::-1].copy()
        elif kind < 0.14:
            chosen = chosen.reshape(-1, 1)
        return chosen

    def bounds(self, extent: int) -> list[int]:
        begin, end = sorted(int(x) for x in self.rng.integers(0, extent + 1, 2))
        bounds = [
            self.one_of([begin, begin - extent if begin < extent else begin]),
            self.one_of([end, end - extent if end < extent else 2**63 - 1]),
            self.one_of([1, 1, 2, 3, 2**40]),
        ]
        if self.chance(0.05):
            bad = [-1, 0, -extent - 1, extent + 1, 2**62, -(2**63), 2**63 - 1, 7]
            bounds[int(self.rng.integers(3))] = self.one_of(bad)
        return bounds

    def regions(self, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], list[Array]]:
        """Return the attributes of regions, mostly of operands of these shapes, and the indices."""
        axes = {
            f"{name}_{axis}" if name != "bias" else name: shape[position]
            for name, shape in shapes.items()
            for position, axis in ((-1, "columns"), (-2, "rows"))
            if len(shape) >= -position and (name != "bias" or position == -1)
        }
        sliced = [axis for axis in axes if self.chance(0.2)]
        indexed = [axis for axis in axes if axis not in sliced and self.chance(0.2)]
        slices = [number for axis in sliced for number in self.bounds(axes[axis])]
        indices = [self.indices(axes[axis]) for axis in indexed]
        compact = [x for x in "ab" if f"{x}_rows" in indexed and self.chance(0.4)]
        if self.chance(0.02):
            slices = slices[:-1] if self.chance(0.5) else [*slices, 1]
        if self.chance(0.02):
            sliced = [*sliced, self.one_of(["a_rows", "b_columns", "bias", "bias_rows", "", "c"])]
        if self.chance(0.02):
            indexed = [*indexed, self.one_of(["a_rows", "b_columns", "bias", "x"])]
        if self.chance(0.02):
            compact = self.one_of([["a"], ["b"], ["a", "a"], ["bias"]])
        return {
            "sliced": sliced,
            "slices": slices,
            "indexed": indexed,
            "indexed_slices": compact,
        }, indices

    def forward(self) -> None:
        a_shape, b_shape, _, layout_a, layout_b = self.problem()
        a, b = (self.numbers(self.shape(shape)) for shape in (a_shape, b_shape))
        n = b_shape[-1] if layout_b == "normal" else b_shape[-2]
        bias = self.several(lambda: self.numbers(self.shape((n,))), self.chance(0.5))
        scaled = self.names(OPERANDS)
        activation = self.one_of(sorted(ACTIVATIONS))
        attributes, indices = self.regions({"a": a.shape, "b": b.shape, "bias": (n,)})
        y, z = ops.stopgrad_op_fused_mat_mul(
            a=a,
            b=b,
            bias=list(map(tf.constant, bias)),
            scales=[tf.constant(0.5, tf.float64) for _ in scaled],
            rows=list(map(tf.constant, self.rows((*a_shape[:-2], n, n)))),
            indices=list(map(tf.constant, indices)),
            **attributes,
            num_z=self.one_of([0, 1, 2]),
            layout_a=layout_a,
            layout_b=layout_b,
            activation=activation,
            blocked=self.names(OPERANDS),
            scaled=scaled,
        )
        problem = reference.Problem(a, b, bias[0] if bias else None, layout_a, layout_b, activation)
        check(y, reference.forward(problem))
        for each in z:
            check(each, reference.preactivation(problem))

    def eager(self) -> None:
        a_shape, b_shape, _, layout_a, layout_b = self.problem()
        n = b_shape[-1] if layout_b == "normal" else b_shape[-2]
        shapes = [a_shape, b_shape, *([(n,)] if self.chance(0.5) else [])]
        operands = [self.numbers(self.shape(shape)) for shape in shapes]
        variables = {i: tf.Variable(x) for i, x in enumerate(operands) if self.chance(0.5)}
        values = [operands[i] for i in variables]
        count = self.one_of([0, len(values), len(values) + 1])
        count = count if self.chance(0.93) else self.one_of([0, 1, 2, 3])
        activation = self.one_of(sorted(ACTIVATIONS))
        y, *others = ops.stopgrad_op_fused_mat_mul_eager(
            operands=[
                variables[i].handle if i in variables else tf.constant(x)
                for i, x in enumerate(operands)
            ],
            result_types=[tf.float64] * (1 + count),
            layout_a=layout_a,
            layout_b=layout_b,
            activation=activation,
        )
        bias = operands[2] if len(operands) > 2 else None
        problem = reference.Problem(*operands[:2], bias, layout_a, layout_b, activation)
        check(y, reference.forward(problem))
        if count > len(values):
            check(others.pop(), reference.preactivation(problem))
        for each, value in zip(others, values if others else [], strict=True):
            np.testing.assert_array_equal(each, value)

    def backward(self) -> None:
        a_shape, b_shape, y_shape, layout_a, layout_b = self.problem()
        needed = self.names([*OPERANDS, "z"])
        scaled = self.names(OPERANDS)
        activation = self.one_of(["linear", "linear", "relu", "tanh", "gelu", "silu"])
        a, b = (self.numbers(self.shape(shape)) for shape in (a_shape, b_shape))
        dy, saved = (self.numbers(self.shape(y_shape)) for _ in range(2))
        inputs_a = self.several(lambda: tf.constant(a), "b" in needed or self.chance(0.5))
        inputs_b = self.several(lambda: tf.constant(b), "a" in needed or self.chance(0.5))
        sizes_a = self.several(lambda: self.sizes(a_shape), not inputs_a)
        sizes_b = self.several(lambda: self.sizes(b_shape), not inputs_b)
        attributes, indices = self.regions({"a": a_shape, "b": b_shape, "bias": y_shape[-1:]})
        rows = self.rows(y_shape)
        results = ops.stopgrad_op_fused_mat_mul_grad(
            dy=dy,
            a=inputs_a,
            b=inputs_b,
            saved=self.several(lambda: tf.constant(saved), activation != "linear"),
            shape_a=[tf.constant(sizes, tf.int64) for sizes in sizes_a],
            shape_b=[tf.constant(sizes, tf.int64) for sizes in sizes_b],
            scales=[tf.constant(0.5, tf.float64) for _ in scaled],
            rows=list(map(tf.constant, rows)),
            indices=list(map(tf.constant, indices)),
            **attributes,
            num_needed=len(needed) if self.chance(0.97) else self.one_of([0, 1, 2, 3]),
            needed=needed,
            layout_a=layout_a,
            layout_b=layout_b,
            activation=activation,
            scaled=scaled,
        )
        dz = dy * derivative(activation, saved)
        if "a" in needed or "b" in needed:
            # A factor that is not read has the shape that was given, or the batch of dy where the
            # other one is a matrix and has none, or else is a matrix itself.
            if not inputs_a:
                k = reference.apply_layout(b, layout_b).shape[-2]
                batch = dy.shape[:-2] if b.ndim == 2 else ()
                missing = reference.stored_shape((*batch, dy.shape[-2], k), layout_a)
                a = np.ones(sizes_a[0] if sizes_a else missing)
            if not inputs_b:
                k = reference.apply_layout(a, layout_a).shape[-1]
                batch = dy.shape[:-2] if a.ndim == 2 else ()
                missing = reference.stored_shape((*batch, k, dy.shape[-1]), layout_b)
                b = np.ones(sizes_b[0] if sizes_b else missing)
        else:  # the op sees dy alone, and any factors do
            a = np.ones(reference.stored_shape((*dy.shape[:-1], 1), layout_a))
            b = np.ones(reference.stored_shape((1, dy.shape[-1]), layout_b))
        problem = reference.Problem(a, b, layout_a=layout_a, layout_b=layout_b)
        shapes = {"a": a.shape, "b": b.shape, "bias": dy.shape[-1:]}
        lines = selected_lines(needed, shapes, attributes, indices)
        regions = {name: np.ones(shapes[name], bool) for name in needed if name != "z"}
        for axis, line in lines.items():
            name, _, kind = axis.partition("_")
            regions[name] &= line[:, None] if kind == "rows" else line
        exact = reference.gradients(
            problem,
            dz,
            dict.fromkeys(scaled, 0.5),
            rows=rows[0] if rows and needed != ["z"] else None,
            regions=regions,
        )
        for name, result in zip(needed, results, strict=True):
            due = exact[name]
            if name in attributes["indexed_slices"]:
                line = lines.get(f"{name}_rows", np.ones(len(due.value), bool))
                due = reference.Exact(due.value[line], due.magnitude[line], due.terms)
            check(result, due)


def selected_lines(
    needed: list[str],
    shapes: dict[str, tuple[int, ...]],
    attributes: dict[str, Any],
    indices: list[Array],
) -> dict[str, Array]:
    """Return which lines of each axis learn, as NumPy understands what the op accepted."""
    slices = attributes["slices"]
    chosen: dict[str, Any] = {}
    for i, axis in enumerate(attributes["sliced"]):
        begin, end, step = slices[3 * i : 3 * i + 3]
        chosen[axis] = slice(begin, None if end == 2**63 - 1 else end, step)
    chosen.update(zip(attributes["indexed"], indices, strict=True))
    lines = {}
    for axis, which in chosen.items():
        name, _, kind = axis.partition("_")
        if name in needed:
            lines[axis] = np.zeros(shapes[name][-2 if kind == "rows" else -1], bool)
            lines[axis][which] = True
    return lines


def derivative(activation: str, saved: Array) -> Array:
    """Return the derivative, from what the op reads."""
    if activation == "linear":
        return np.ones(())
    if activation == "tanh":
        return 1 - saved * saved
    return reference.ACTIVATIONS[activation].derivative(saved)


def check(result: tf.Tensor, exact: reference.Exact) -> None:
    generous = reference.Exact(exact.value, 64 * (exact.magnitude + 1), exact.terms)
    reference.assert_close(result.numpy(), generous, "float64")


def main(calls: int) -> None:
    rejections = (ValueError, TypeError, tf.errors.InvalidArgumentError)
    counts = {"accepted": 0, "rejected": 0}
    for seed in range(calls):
        fuzzer = Fuzzer(seed)
        try:
            (fuzzer.forward, fuzzer.backward, fuzzer.eager, fuzzer.backward)[seed % 4]()
        except (*rejections, tf.errors.ResourceExhaustedError) as error:
            if isinstance(error, ValueError) and "matmul" in str(error):
                raise AssertionError(f"call {seed} was accepted, and NumPy rejects it") from error
            counts["rejected"] += 1
        except AssertionError as error:
            raise AssertionError(f"call {seed}") from error
        else:
            counts["accepted"] += 1
    print(counts["accepted"], counts["rejected"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
