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

    def forward(self) -> None:
        a_shape, b_shape, _, layout_a, layout_b = self.problem()
        a, b = (self.numbers(self.shape(shape)) for shape in (a_shape, b_shape))
        n = b_shape[-1] if layout_b == "normal" else b_shape[-2]
        bias = self.several(lambda: self.numbers(self.shape((n,))), self.chance(0.5))
        scaled = self.names(OPERANDS)
        activation = self.one_of(sorted(ACTIVATIONS))
        y, z = ops.stopgrad_op_fused_mat_mul(
            a=a,
            b=b,
            bias=list(map(tf.constant, bias)),
            scales=[tf.constant(0.5, tf.float64) for _ in scaled],
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
        results = ops.stopgrad_op_fused_mat_mul_grad(
            dy=dy,
            a=inputs_a,
            b=inputs_b,
            saved=self.several(lambda: tf.constant(saved), activation != "linear"),
            shape_a=[tf.constant(sizes, tf.int64) for sizes in sizes_a],
            shape_b=[tf.constant(sizes, tf.int64) for sizes in sizes_b],
            scales=[tf.constant(0.5, tf.float64) for _ in scaled],
            num_needed=len(needed) if self.chance(0.97) else self.one_of([0, 1, 2, 3]),
            needed=needed,
            layout_a=layout_a,
            layout_b=layout_b,
            activation=activation,
            scaled=scaled,
        )
        dz = dy * derivative(activation, saved)
        if "a" in needed or "b" in needed:
            # A factor that is not read has the shape that was given, or is a matrix that fits.
            if not inputs_a:
                k = reference.apply_layout(b, layout_b).shape[-2]
                matrix = reference.stored_shape((dy.shape[-2], k), layout_a)
                a = np.ones(sizes_a[0] if sizes_a else matrix)
            if not inputs_b:
                k = reference.apply_layout(a, layout_a).shape[-1]
                matrix = reference.stored_shape((k, dy.shape[-1]), layout_b)
                b = np.ones(sizes_b[0] if sizes_b else matrix)
            problem = reference.Problem(a, b, layout_a=layout_a, layout_b=layout_b)
            exact = reference.gradients(problem, dz, dict.fromkeys(scaled, 0.5))
        else:
            columns = dz.reshape(-1, dz.shape[-1]) if dz.size else np.zeros((0, dz.shape[-1]))
            total = columns.sum(axis=0) * (0.5 if "bias" in scaled else 1)
            exact = {
                "z": reference.Exact(dz, np.abs(dz) + 1, 1),
                "bias": reference.Exact(total, np.abs(total) + 1, len(columns)),
            }
        for name, result in zip(needed, results, strict=True):
            check(result, exact[name])


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
