"""Values and derivatives of the activations where formulas break: kinks, limits, NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from instructions import as_multiplied
from reference import FLOATING, Array

from stopgrad_op import _kernels

ACTIVATIONS = sorted(_kernels.activations())
every_dtype = pytest.mark.parametrize("dtype", FLOATING, indirect=True)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

# z times a gate that is 0 at minus infinity: there the formula is infinity times 0, as in stock
# TensorFlow, and the limit may become NaN.
GATED = ("gelu", "gelu_tanh", "silu")


def value(z: Array, activation: str) -> Array:
    """Run the activation alone, on the product of a column by 1."""
    one = np.ones((1, 1), z.dtype)
    y: Array = _kernels.matmul(z.reshape(-1, 1), one, activation=activation, poison=True)
    return y.reshape(z.shape)


def derivative(z: Array, activation: str) -> Array:
    saved = z if _kernels.activations()[activation] == "preactivation" else value(z, activation)
    ones = np.ones((1, z.size), z.dtype)
    result: Array = _kernels.matmul_gradient(
        ones, saved=saved.reshape(1, -1), needed=["z"], activation=activation, poison=True
    )["z"]
    return result.reshape(z.shape)


def numbers(dtype: str, *values: float) -> Array:
    return np.array(values).astype(reference.numpy_dtype(dtype))


def test_the_table_holds_eleven_activations_and_linear() -> None:
    assert set(ACTIVATIONS) == set(reference.ACTIVATIONS)
    assert len(ACTIVATIONS) == 12


@every_activation
@every_dtype
def test_a_whole_range_is_right(dtype: str, activation: str) -> None:
    z = np.linspace(-12, 12, 4999).astype(reference.numpy_dtype(dtype))
    exact = reference.ACTIVATIONS[activation]
    wide = reference.widen(z)
    # Some units in the last place of 1 for the elementary functions, besides the rounding of y.
    few = 8 * reference.accumulator_epsilon(dtype)
    y = exact.value(wide)
    due = few * np.maximum(1, np.abs(y)) + reference.epsilon(dtype) * np.abs(y)
    assert np.all(np.abs(value(z, activation) - y) <= due)
    # What backward reads was rounded once more. 1 - tanh^2 is multiplied by up to 12^3.
    few = 2 * reference.epsilon(dtype) + few * (16 if activation == "gelu_tanh" else 1)
    assert np.all(np.abs(derivative(z, activation) - exact.derivative(wide)) <= few)


@every_activation
@every_dtype
def test_large_numbers_reach_the_limit(dtype: str, activation: str) -> None:
    z = numbers(dtype, -1e4, 1e4, -60.0, 60.0)
    exact = reference.ACTIVATIONS[activation]
    wide = reference.widen(z)
    np.testing.assert_allclose(
        reference.widen(value(z, activation)),
        exact.value(wide),
        rtol=reference.epsilon(dtype),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        reference.widen(derivative(z, activation)),
        exact.derivative(wide),
        rtol=4 * reference.epsilon(dtype),
        atol=reference.epsilon(dtype),
    )


@every_activation
@every_dtype
def test_infinities_reach_the_limit(dtype: str, activation: str) -> None:
    low, high = reference.widen(value(numbers(dtype, -math.inf, math.inf), activation))
    assert high == {"relu6": 6, "sigmoid": 1, "tanh": 1}.get(activation, math.inf)
    limits = {
        "linear": -math.inf,
        "leaky_relu": -math.inf,
        "elu": -1,
        "selu": -1.0507009873554805 * 1.6732632423543772,
        "tanh": -1,
    }
    if activation in GATED:
        assert abs(low) < 1e-30 or np.isnan(low)
    else:
        assert low == pytest.approx(limits.get(activation, 0), rel=reference.epsilon(dtype))


@every_activation
@every_dtype
def test_infinities_have_the_limit_of_the_derivative(dtype: str, activation: str) -> None:
    slopes = reference.widen(derivative(numbers(dtype, -math.inf, math.inf), activation))
    low = {"linear": 1, "leaky_relu": 0.2}.get(activation, 0)
    high = {"relu6": 0, "sigmoid": 0, "tanh": 0, "selu": 1.0507009873554805}.get(activation, 1)
    # The saved limit of selu was rounded.
    due = pytest.approx([low, high], rel=reference.epsilon(dtype), abs=reference.epsilon(dtype))
    nan_allowed = activation in GATED
    assert np.where(np.isnan(slopes) & nan_allowed, [low, high], slopes) == due


@every_activation
@every_dtype
def test_nan_stays_nan(dtype: str, activation: str) -> None:
    z = numbers(dtype, *[math.nan] * 37)
    assert np.all(np.isnan(value(z, activation)))


SMOOTH = ("gelu", "gelu_tanh", "sigmoid", "tanh", "silu", "softplus")


@pytest.mark.parametrize("activation", SMOOTH)
@every_dtype
def test_slope_at_nan_is_nan(dtype: str, activation: str) -> None:
    assert np.all(np.isnan(derivative(numbers(dtype, *[math.nan] * 37), activation)))


@every_activation
@every_dtype
def test_a_nan_reaches_no_neighbour(dtype: str, activation: str) -> None:
    z = numbers(dtype, *np.linspace(-3, 3, 67))
    due, due_slope = value(z, activation), derivative(z, activation)
    z[33] = math.nan
    others = np.arange(67) != 33
    np.testing.assert_array_equal(value(z, activation)[others], due[others])
    np.testing.assert_array_equal(derivative(z, activation)[others], due_slope[others])


@every_activation
@every_dtype
def test_zero_has_the_derivative_of_stock_tensorflow(dtype: str, activation: str) -> None:
    z = numbers(dtype, 0.0, -0.0)
    exact = reference.ACTIVATIONS[activation]
    zeros = np.zeros(2)
    np.testing.assert_allclose(
        reference.widen(value(z, activation)),
        exact.value(zeros),
        rtol=reference.epsilon(dtype),
    )
    np.testing.assert_allclose(
        reference.widen(derivative(z, activation)),
        exact.derivative(zeros),
        rtol=reference.epsilon(dtype),
    )


@every_dtype
def test_relu6_has_no_slope_at_its_upper_kink(dtype: str) -> None:
    assert derivative(numbers(dtype, 6.0), "relu6")[0] == 0


@every_activation
@every_dtype
def test_subnormal_numbers_are_kept(dtype: str, activation: str) -> None:
    smallest = reference.unit_in_the_last_place(0, dtype)
    z = numbers(dtype, *(sign * smallest * count for sign in (1, -1) for count in (1, 2, 3, 101)))
    wide = reference.widen(as_multiplied(z))
    exact = reference.ACTIVATIONS[activation].value(wide)
    y = reference.widen(value(z, activation))
    # An odd half of the smallest number rounds either way.
    due = reference.epsilon(dtype) * np.abs(exact) + smallest
    assert np.all(np.abs(y - exact) <= due)
    slope = reference.ACTIVATIONS[activation].derivative(wide)
    np.testing.assert_allclose(
        reference.widen(derivative(z, activation)), slope, rtol=4 * reference.epsilon(dtype)
    )


@pytest.mark.parametrize("activation", ["elu", "selu", "tanh", "gelu", "silu"])
def test_small_numbers_keep_their_digits(activation: str) -> None:
    z = np.array([1e-12, -1e-12, 1e-30, -1e-30])
    exact = reference.ACTIVATIONS[activation].value(z)
    np.testing.assert_allclose(value(z, activation), exact, rtol=1e-15)


@pytest.mark.parametrize("activation", ["gelu", "sigmoid", "softplus", "silu"])
def test_tails_keep_their_digits(activation: str) -> None:
    """1 + erf(z) or log(1 + e^z), computed as written, would be 0 here."""
    z = np.array([-9.0, -15.0, -25.0])
    exact = reference.ACTIVATIONS[activation].value(z)
    np.testing.assert_allclose(value(z, activation), exact, rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative_is_the_slope_of_the_value(activation: str) -> None:
    z = np.linspace(-5, 5, 400)  # misses the kinks
    step = 1e-6
    slope = (value(z + step, activation) - value(z - step, activation)) / (2 * step)
    np.testing.assert_allclose(derivative(z, activation), slope, atol=1e-8)
