"""That a peer which computes something else is found out, and rounding is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agreement import disagreement

erf = np.vectorize(math.erf, otypes=[np.float32])


def test_sums_in_another_order_agree(rng):
    a, b = (rng.standard_normal((200, 200)).astype(np.float32) for _ in range(2))
    y = np.zeros((200, 200), np.float32)
    for i in reversed(range(200)):
        y += np.outer(a[:, i], b[i])
    assert (y != a @ b).any()
    assert disagreement({"y": a @ b}, {"y": y}, "float32") is None


def test_other_form_of_gelu_does_not_agree(rng):
    z = rng.standard_normal(1000).astype(np.float32)
    exact = z * (1 + erf(z / np.float32(math.sqrt(2)))) / 2
    approximate = z * (1 + np.tanh(0.7978845608 * (z + 0.044715 * z**3))) / 2
    wrong = disagreement({"y": exact}, {"y": approximate.astype(np.float32)}, "float32")
    assert wrong is not None
    assert wrong.startswith("y is off by")


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "float16", "int32"])
def test_transposed_result_does_not_agree(rng, dtype):
    y = (10 * rng.standard_normal((20, 20))).astype(dtype)
    assert disagreement({"y": y}, {"y": y}, dtype) is None
    assert disagreement({"y": y}, {"y": y.T}, dtype) is not None


def test_gradient_that_is_missing_does_not_agree():
    y, dx = np.ones(3), np.ones(3)
    assert disagreement({"y": y, "dx": dx}, {"y": y}, "float64") == "computes y; due is dx, y"


def test_gradient_that_is_doubled_does_not_agree(rng):
    dw = rng.standard_normal((5, 5))
    assert disagreement({"dw0": dw}, {"dw0": 2 * dw}, "float64") is not None


def test_frozen_weight_that_moves_does_not_agree():
    still, moved = np.zeros(4, np.float32), np.full(4, 1e-9, np.float32)
    assert disagreement({"dw0": still}, {"dw0": still}, "float32") is None
    assert disagreement({"dw0": still}, {"dw0": moved}, "float32") is not None


@pytest.mark.parametrize("line", [np.s_[3], np.s_[:, 3]])
def test_part_that_does_not_learn_must_be_exact_zeros(rng, line):
    due = rng.standard_normal((200, 200))
    due[line] = 0
    noisy = due.copy()
    noisy[line] = 1e-9
    assert disagreement({"dw0": due}, {"dw0": due.copy()}, "float32") is None
    for one, other in ((due, noisy), (noisy, due)):
        assert "of exact zeros" in disagreement({"dw0": one}, {"dw0": other}, "float32")


def test_not_a_number_does_not_agree():
    y = np.ones(4)
    assert disagreement({"y": y}, {"y": y * np.nan}, "float64") is not None


def test_other_shape_does_not_agree():
    assert disagreement({"y": np.ones(4)}, {"y": np.ones((4, 1))}, "float64") is not None


def rounded(array, bits):
    """Round float32 to so many bits after the point, as a processor's short factors are."""
    step = 1 << (23 - bits)
    return ((array.view(np.int32) + step // 2) & -step).view(np.float32)


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 10), ("bfloat16", 7)])
def test_products_of_short_factors_agree_with_those_of_long_ones_in_that_precision(
    rng, precision, bits
):
    a, b = (rng.standard_normal((200, 200)).astype(np.float32) for _ in range(2))
    short = rounded(a, bits) @ rounded(b, bits)
    assert disagreement({"y": a @ b}, {"y": short}, precision) is None
    assert disagreement({"y": a @ b}, {"y": short}, "float32") is not None
    assert disagreement({"y": a @ b}, {"y": short * 1.05}, precision) is not None


def test_rounding_of_each_layer_counts():
    y = np.ones(100)
    assert disagreement({"y": y}, {"y": y * 1.005}, "tf32", layers=1) is not None
    assert disagreement({"y": y}, {"y": y * 1.005}, "tf32", layers=4) is None


def test_relu_of_a_short_sum_may_switch_a_row_or_two(rng):
    x, upstream = rng.standard_normal((16, 32)), rng.standard_normal((16, 32))
    switched = upstream.copy()
    switched[3, ::2] = 0
    gradients = [{"dw0": x.T @ dz} for dz in (upstream, switched)]
    assert disagreement(*gradients, "tf32", rows=16) is None
    assert disagreement(*gradients, "tf32", rows=8192) is not None
    assert disagreement(*gradients, "float32", rows=16) is not None
