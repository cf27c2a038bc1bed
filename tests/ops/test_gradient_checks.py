"""Gradients against numerical differences in float64, where no formula of ours is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from reference import ACTIVATIONS, LAYOUTS, random_array, stored_shape

import stopgrad_op as sg

SHAPES = [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((3, 4), (2, 4, 2)), ((2, 1, 3, 4), (3, 4, 2))]
KINKED = ("relu", "relu6", "leaky_relu", "selu")


def layout_options(layout_a: str, layout_b: str) -> dict[str, bool]:
    return {
        f"{layout}_{operand}": True
        for operand, layout in (("a", layout_a), ("b", layout_b))
        if layout != "normal"
    }


def check(function: Any, inputs: list[Any], tolerance: float = 1e-7) -> None:
    analytic, numeric = tf.test.compute_gradient(function, inputs, delta=1e-6)
    for ours, differences in zip(analytic, numeric, strict=True):
        scale = max(1.0, float(np.abs(differences).max(initial=0)))
        np.testing.assert_allclose(ours, differences, atol=tolerance * scale)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activation_gradients_match_differences(activation: str, rng: np.random.Generator) -> None:
    # Far enough from a kink for the differences not to step over it.
    a, b = rng.uniform(0.5, 1, (3, 4)), rng.uniform(0.2, 0.5, (4, 2)) * [1, -1]
    bias = np.array([0.1, -0.1])
    z = a @ b + bias
    assert activation not in KINKED or min(np.abs(z).min(), np.abs(z - 6).min()) > 1e-3
    check(lambda a, b, bias: sg.matmul(a, b, bias=bias, activation=activation), [a, b, bias])


@pytest.mark.parametrize("layout_a", LAYOUTS)
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"], indirect=True)
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_layout_and_batch_gradients_match_differences(
    rng: np.random.Generator,
    a: tuple[int, ...],
    b: tuple[int, ...],
    layout_a: str,
    layout_b: str,
    dtype: str,
) -> None:
    options = layout_options(layout_a, layout_b)
    operands = [
        random_array(rng, stored_shape(a, layout_a), dtype),
        random_array(rng, stored_shape(b, layout_b), dtype),
        random_array(rng, (2,), dtype),
    ]
    check(lambda a, b, bias: sg.matmul(a, b, bias=bias, **options), operands)


@pytest.mark.parametrize("pass_batch", [False, True])
def test_jacobian_without_pfor(rng: np.random.Generator, pass_batch: bool) -> None:
    a = tf.constant(rng.standard_normal((2, 3, 4) if pass_batch else (3, 4)))
    w = tf.Variable(rng.standard_normal((4, 2)))
    with tf.GradientTape(persistent=True) as tape:
        y = sg.matmul(a, w, activation="tanh")
        stock = tf.tanh(tf.matmul(a, w))
    ours = tape.jacobian(y, w, experimental_use_pfor=False)
    due = tape.jacobian(stock, w, experimental_use_pfor=False)
    np.testing.assert_allclose(ours, due, rtol=1e-12, atol=1e-14)
