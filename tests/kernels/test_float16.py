"""The 16-bit types: every bit pattern in, every rounding out."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from instructions import as_multiplied
from reference import Array

from stopgrad_op import _kernels

both = pytest.mark.parametrize("dtype", ["float16", "bfloat16"], indirect=True)


def every_number(dtype: str) -> Array:
    return np.arange(1 << 16, dtype=np.uint16).view(reference.numpy_dtype(dtype))


def bits_of(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.uint16)


def is_nan(x: Array) -> Array:
    return (bits_of(x) & 0x7FFF) > int(bits_of(np.array([np.inf], x.dtype))[0])


def is_zero(x: Array) -> Array:
    return (bits_of(x) & 0x7FFF) == 0


def finite_numbers(dtype: str) -> Array:
    x = every_number(dtype)
    return x[(bits_of(x) & 0x7FFF) < bits_of(np.array([np.inf], x.dtype))[0]]


def same_numbers(actual: Array, due: Array) -> None:
    """Assert equal bits; of NaNs, that they are NaNs."""
    nan = is_nan(due)
    np.testing.assert_array_equal(is_nan(actual), nan)
    np.testing.assert_array_equal(bits_of(actual)[~nan], bits_of(due)[~nan])


@both
def test_every_bit_pattern_survives_a_product_with_one(dtype: str) -> None:
    x = every_number(dtype)
    one = np.ones((1, 1), x.dtype)
    y = _kernels.matmul(x.reshape(-1, 1), one, poison=True).ravel()
    due = as_multiplied(x)
    zero = is_zero(due)  # a sum that begins with +0 has no negative zero
    same_numbers(y[~zero], due[~zero])
    assert np.all(is_zero(y[zero]))


@both
def test_every_bit_pattern_survives_one_by_itself(dtype: str) -> None:
    """One row this time, where the loops take whole vectors."""
    x = every_number(dtype)
    one = np.ones((1, 1), x.dtype)
    y = _kernels.matmul(one, x.reshape(1, -1), poison=True).ravel()
    due = as_multiplied(x)
    zero = is_zero(due)
    same_numbers(y[~zero], due[~zero])
    assert np.all(is_zero(y[zero]))


@both
def test_every_bit_pattern_survives_the_gradient_pass(dtype: str) -> None:
    x = every_number(dtype)
    dz = _kernels.matmul_gradient(x.reshape(64, -1), needed=["z"], poison=True)["z"].ravel()
    same_numbers(dz, x)


def rounded(wide: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        return wide.astype(np.float32).astype(reference.numpy_dtype(dtype))


@both
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_results_round_to_nearest_and_ties_to_even(dtype: str, sign: float) -> None:
    """Sums of two numbers that lie on, just above and just below the middle of two neighbours."""
    numbers = finite_numbers(dtype)
    x = numbers[reference.widen(numbers) > 0][:-1]
    wide = reference.widen(x)
    # The distance to the next number, taken from the bits.
    distance = reference.widen((bits_of(x) + 1).view(x.dtype)) - wide
    for part in (0.5, 0.25, 0.75, 1.5):
        step = distance * part
        addend = step.astype(x.dtype)
        # Subnormal steps have no half.
        kept = reference.widen(addend) == step
        a = np.stack([x[kept], addend[kept]], axis=1)
        b = np.full((2, 1), sign, x.dtype)
        y = _kernels.matmul(a, b, poison=True).ravel()
        # Both terms are exact in float32, and so is their sum.
        terms = reference.widen(as_multiplied(a))
        same_numbers(y, rounded(sign * terms.sum(axis=1), dtype))


@both
def test_overflow_rounds_to_infinity_where_the_middle_does(dtype: str) -> None:
    largest = float(reference.widen(finite_numbers(dtype)).max())
    step = reference.unit_in_the_last_place(largest, dtype)
    number = reference.numpy_dtype(dtype).type
    sums = [(largest, step * part) for part in (0.25, 0.5, 0.75)]
    a = np.array([[number(x), number(y)] for x, y in sums], dtype=number)
    y = _kernels.matmul(a, np.ones((2, 1), number)).ravel()
    np.testing.assert_array_equal(reference.widen(y), [largest, np.inf, np.inf])


@both
def test_products_of_subnormal_numbers_round_right(dtype: str) -> None:
    numbers = every_number(dtype)
    tiny = numbers[1 : 1 << 7]
    factors = np.array([0.5, 0.75, 1.5, -0.5, -1.5, 100.0], numbers.dtype)
    y = _kernels.matmul(tiny.reshape(-1, 1), factors.reshape(1, -1))
    exact = np.outer(reference.widen(as_multiplied(tiny)), reference.widen(factors)) + 0.0
    same_numbers(y.ravel(), rounded(exact, dtype).ravel())


def units_off(y: Array, exact: Array, dtype: str) -> float:
    """Return the largest error, in units in the last place of the exact numbers, none of them 0."""
    exponent = np.floor(np.log2(np.abs(exact)))
    return float(
        np.max(np.abs(reference.widen(y) - exact) / (reference.epsilon(dtype) * 2**exponent))
    )


@both
def test_products_of_all_significands_are_rounded_once(dtype: str) -> None:
    """No bit of a factor is left out, whatever it is made of when it is multiplied."""
    one, two = bits_of(np.array([1, 2], reference.numpy_dtype(dtype)))
    x = every_number(dtype)[one:two]
    y = _kernels.matmul(x.reshape(-1, 1), x.reshape(1, -1))
    exact = np.multiply.outer(reference.widen(x), reference.widen(x))
    assert units_off(y, exact, dtype) == 0.5


@both
@pytest.mark.parametrize("layout_b", ["normal", "transpose"])
@pytest.mark.parametrize("layout_a", ["normal", "transpose"])
def test_sums_are_rounded_once(
    rng: np.random.Generator, dtype: str, layout_a: str, layout_b: str
) -> None:
    problem = reference.random_problem(
        rng, (45, 133), (133, 67), dtype, layout_a=layout_a, layout_b=layout_b, bias=False
    )
    a, b = np.abs(problem.a), np.abs(problem.b)  # so that terms do not cancel
    y = _kernels.matmul(a, b, layout_a=layout_a, layout_b=layout_b)
    wide = [
        reference.apply_layout(reference.widen(x), layout)
        for x, layout in ((a, layout_a), (b, layout_b))
    ]
    assert units_off(y, wide[0] @ wide[1], dtype) <= 0.5 + 2**-7


@both
def test_sums_of_zeros_are_zero_without_a_sign(dtype: str) -> None:
    a = np.array([[0.0], [-0.0]], reference.numpy_dtype(dtype))
    b = finite_numbers(dtype).reshape(1, -1)
    y = _kernels.matmul(a, b)
    np.testing.assert_array_equal(bits_of(y), np.zeros_like(bits_of(y)))


@both
def test_infinity_times_every_number(dtype: str) -> None:
    """As a factor on either side, in a sum with other terms."""
    x = every_number(dtype)
    infinite = np.array([[np.inf], [-np.inf]], x.dtype)
    ones = np.ones_like(x)
    a = np.concatenate([infinite, np.ones_like(infinite)], axis=1)
    y = _kernels.matmul(a, np.stack([x, ones]), poison=True)
    turned = _kernels.matmul(np.stack([x, ones], axis=1), np.ascontiguousarray(a.T), poison=True)
    with np.errstate(invalid="ignore"):
        due = reference.widen(infinite) * reference.widen(as_multiplied(x)) + 1
    due = due.astype(x.dtype)
    same_numbers(y, due)
    same_numbers(turned, np.ascontiguousarray(due.T))


@both
def test_sums_are_kept_in_float32(dtype: str) -> None:
    """4096 ones and as many halves of the dtype's epsilon: in the dtype, each addition is lost."""
    count = 4096
    small = reference.epsilon(dtype) / 4
    a = np.array([[1.0, *[small] * count]]).astype(reference.numpy_dtype(dtype))
    b = np.ones((count + 1, 1), a.dtype)
    due = rounded(np.array([1 + count * small]), dtype)
    same_numbers(_kernels.matmul(a, b).ravel(), due)
    bias = _kernels.matmul_gradient(np.ascontiguousarray(a.T), needed=["bias"])["bias"]
    same_numbers(bias, due)
