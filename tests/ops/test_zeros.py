"""Gradients that are wholly zero are tensors like others, though nobody has written them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import stopgrad_op as sg

# A gradient below and one above the size from which zeros are fresh pages.
SHAPES = [(8, 16), (300, 400)]


def zero_gradient(shape: tuple[int, int], dtype: Any = tf.float32) -> tf.Tensor:
    w = tf.Variable(tf.ones(shape, dtype))
    with tf.GradientTape() as tape:
        y = sg.matmul(tf.ones((2, shape[0]), dtype), w, gradient_scale=tf.zeros(()))
    return tape.gradient(y, w)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.half, tf.bfloat16, tf.complex128])
def test_every_element_is_zero(shape: tuple[int, int], dtype: Any) -> None:
    gradient = zero_gradient(shape, dtype)
    assert gradient.dtype == dtype
    assert gradient.shape == shape
    assert not np.any(gradient.numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_who_writes_to_one_changes_no_other(shape: tuple[int, int]) -> None:
    first, other = zero_gradient(shape), zero_gradient(shape)
    ones = tf.ones((1, shape[1]))
    written = tf.raw_ops.InplaceAdd(x=first, i=[0], v=ones)
    np.testing.assert_array_equal(written[0], ones[0])
    assert not np.any(other.numpy())
    assert not np.any(zero_gradient(shape).numpy())


def test_it_outlives_all_else_and_can_be_computed_with() -> None:
    gradients = [zero_gradient((300, 400)) for _ in range(50)]
    w = tf.Variable(tf.ones((300, 400)))
    for gradient in gradients:
        w.assign_sub(0.1 * gradient)
    w.assign(gradients[0])
    w.assign_add(tf.ones_like(w))
    np.testing.assert_array_equal(w, np.ones((300, 400)))
    assert not np.any(gradients[0].numpy())
