"""Gradients that are wholly zero are tensors like others, though nobody has written them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import stopgrad_op as sg
from stopgrad_op._library import load_ops

# A gradient below and one above the size from which zeros are fresh pages.
SHAPES = [(8, 16), (300, 400)]


def zero_gradient(shape: tuple[int, int], dtype: Any = tf.float32) -> tf.Tensor:
    """Return a gradient that is known to be zeros before a kernel runs, here by its scale."""
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
def test_the_gradient_kernel_gives_the_same(shape: tuple[int, int]) -> None:
    """Inside a function a scale is known at run time only, and where no row is active too."""
    w = tf.Variable(tf.ones(shape))

    @tf.function
    def gradient(scale: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            y = sg.matmul(tf.ones((2, shape[0])), w, gradient_scale=scale, gradient_rows=rows)
        return tape.gradient(y, w)

    ones = np.full(shape, 2.0)
    np.testing.assert_array_equal(gradient(tf.ones(()), tf.ones(2)), ones)
    assert not np.any(gradient(tf.zeros(()), tf.ones(2)).numpy())
    assert not np.any(gradient(tf.ones(()), tf.zeros(2)).numpy())


@pytest.mark.parametrize("shape", [(300, 400), (3, 5), (0, 7), ()])
def test_the_op_takes_any_shape(shape: tuple[int, ...]) -> None:
    zeros = load_ops().stopgrad_op_zeros(T=tf.float64, shape=shape)
    assert zeros.dtype == tf.float64
    np.testing.assert_array_equal(zeros, np.zeros(shape))


def test_a_shape_that_is_not_known_is_an_error() -> None:
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError, TypeError), match=r"[Ss]hape"):
        load_ops().stopgrad_op_zeros(T=tf.float32, shape=[None, 3])


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
