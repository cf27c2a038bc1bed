"""Long sums, where the order of additions decides, against stock TensorFlow's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import COMPLEX, FLOATING, Array

import stopgrad_op as sg

# More digits than float64 has; on some platforms there are none.
LONG = {"f": np.longdouble, "c": np.clongdouble}
pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).eps >= reference.epsilon("float64"),
    reason="long double is double on this platform",
)


def largest_error(result: Any, exact: Array) -> float:
    return float(np.abs(reference.widen(result.numpy()) - exact).max())


@pytest.mark.cpu_only("cublasLt adds in whatever order is fastest")
@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(64, 1000, 64), (8, 10_000, 8), (1, 10_000, 1), (200, 3000, 5)]
)
@pytest.mark.parametrize("of", ["y", "b"])
def test_long_sum_is_as_near_as_stock(
    rng: np.random.Generator, dtype: str, m: int, k: int, n: int, of: str
) -> None:
    x, w = reference.random_array(rng, (m, k), dtype), reference.random_array(rng, (k, n), dtype)
    long = LONG[reference.widen(x).dtype.kind]
    exact = reference.widen(x).astype(long) @ reference.widen(w).astype(long)
    if of == "y":
        ours, stock = sg.matmul(x, w), tf.matmul(x, w)
    else:
        # The gradient of a weight matrix sums over the rows, which are k here.
        a, dy = tf.constant(np.conj(x.T)), tf.constant(w)
        b = tf.zeros((m, n), a.dtype)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(b)
            y, z = sg.matmul(a, b), tf.matmul(a, b)
        ours, stock = (tape.gradient(result, b, output_gradients=dy) for result in (y, z))
    unit = reference.unit_in_the_last_place(float(np.abs(exact).max()), dtype)
    assert largest_error(ours, exact) <= 2 * largest_error(stock, exact) + unit
