"""Activations of 16-bit numbers, which are computed less exactly than float32 ones: all of them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import reference
from reference import Array

# For each, the magnitude of the terms that its derivative is the sum of: where they cancel, an
# error of them is large beside what is left.
TERMS = {
    "gelu": lambda z: reference.activate("gelu", z) / z + abs(z) * np.exp(-0.5 * z * z),
    "gelu_tanh": lambda z: np.abs(reference.activate("gelu_tanh", z) / z) * (1 + 3 * z * z),
    "silu": lambda z: reference.activate("sigmoid", z) * (1 + abs(z)),
    "sigmoid": lambda z: reference.activate("sigmoid", z),
}


def every_number(dtype: str) -> Array:
    """Return all finite numbers but 0 and subnormal ones, as a column."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(reference.numpy_dtype(dtype))
    sizes = np.abs(reference.widen(numbers))
    smallest = 2.0**-14 if dtype == "float16" else 2.0**-126
    return numbers[np.isfinite(sizes) & (sizes >= smallest)][:, None]


def half_a_unit(exact: Array, dtype: str) -> Array:
    """Return what rounding alone may cost."""
    smallest = 2.0**-14 if dtype == "float16" else 2.0**-126
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), smallest)))
    return 0.5 * reference.epsilon(dtype) * 2.0**exponent


def assert_rounded_well(result: Array, exact: Array, terms: Array, z: Array, dtype: str) -> None:
    """Assert that beyond rounding there is an error of at most 2^-15 of the terms.

    What float32 has as subnormal numbers only may become 0, also as a factor, beside up to z^3.
    """
    error = np.abs(reference.widen(result) - exact)
    lost = 2.0**-126 * (1 + np.minimum(np.abs(z), 100)) ** 3
    allowed = half_a_unit(exact, dtype) + 2.0**-15 * np.abs(terms) + lost
    worst = int(np.argmax(error / allowed))
    assert error.flat[worst] <= allowed.flat[worst], (exact.flat[worst], result.flat[worst])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"], indirect=True)
@pytest.mark.parametrize("activation", TERMS)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:underflow", "ignore:invalid")
def test_every_number(cuda: ModuleType, dtype: str, activation: str) -> None:
    z = every_number(dtype)
    wide = reference.widen(z)
    y = cuda.activate(cuda.to_device(z), activation=activation).numpy()
    exact = reference.activate(activation, wide)
    assert_rounded_well(y, exact, exact, wide, dtype)
    if activation == "sigmoid":  # its derivative is made of y
        return
    dy = np.ones_like(z)
    dz = cuda.matmul_gradient(
        cuda.to_device(dy), saved=cuda.to_device(z), needed=["z"], activation=activation,
        poison=True,
    )["z"].numpy()  # fmt: skip
    exact = reference.ACTIVATIONS[activation].derivative(wide)
    terms = TERMS[activation](wide)
    assert_rounded_well(dz, exact, np.nan_to_num(terms), wide, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"], indirect=True)
@pytest.mark.parametrize("activation", [*TERMS, "softplus"])
def test_infinities_and_nan(cuda: ModuleType, dtype: str, activation: str) -> None:
    z = np.array([[np.inf, -np.inf, np.nan]]).astype(reference.numpy_dtype(dtype))
    y = reference.widen(cuda.activate(cuda.to_device(z), activation=activation).numpy())
    np.testing.assert_array_equal(y, [[1 if activation == "sigmoid" else np.inf, 0, np.nan]])
