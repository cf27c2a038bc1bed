"""Kernels beside the reference, on one problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import reference
from reference import Array, Problem

from stopgrad_op import _kernels

# Shapes across the borders of what the CPU's product is divided into.
BORDERS = {
    "strips, panels": ((129, 65), (65, 97)),
    "blocks of rows": ((1100, 43), (43, 33)),
    "slices of rows": ((4001, 30), (30, 20)),
    "blocks of columns": ((43, 33), (33, 901)),
    "ranges of panels": ((700, 290), (290, 300)),
}


def options_of(problem: Problem) -> dict[str, Any]:
    return {
        "layout_a": problem.layout_a,
        "layout_b": problem.layout_b,
        "activation": problem.activation,
    }


def check_forward(problem: Problem, dtype: str, threads: int = 1) -> None:
    y = _kernels.matmul(
        problem.a, problem.b, problem.bias, **options_of(problem), threads=threads, poison=True
    )
    reference.assert_close(y, reference.forward(problem), dtype, what="y")


def gradients_of(
    problem: Problem, dy: Array, z: Array, needed: Sequence[str], **options: Any
) -> dict[str, Array]:
    """Run the kernels on no more than the gradients that are `needed` read."""
    saved = {
        "nothing": None,
        "preactivation": z,
        "output": reference.activate(problem.activation, reference.widen(z)).astype(z.dtype),
    }[_kernels.activations()[problem.activation]]
    return _kernels.matmul_gradient(
        dy,
        problem.a if "b" in needed else None,
        problem.b if "a" in needed else None,
        saved,
        needed=needed,
        **options_of(problem),
        a_shape=problem.a.shape,
        b_shape=problem.b.shape,
        poison=True,
        **options,
    )


def check_gradients(
    problem: Problem,
    dtype: str,
    rng: np.random.Generator,
    scales: dict[str, float] | None = None,
    threads: int = 1,
) -> None:
    z = reference.preactivation(problem).value.astype(reference.numpy_dtype(dtype))
    dy = reference.random_array(rng, z.shape, dtype)
    exact = reference.gradients(problem, dy, scales, z)
    for needed in (["a", "b", "bias", "z"], ["a"], ["b"], ["bias"], ["b", "bias"]):
        results = gradients_of(problem, dy, z, needed, scales=scales or {}, threads=threads)
        assert results.keys() == set(needed)
        for name in needed:
            reference.assert_close(results[name], exact[name], dtype, what=f"gradient of {name}")
