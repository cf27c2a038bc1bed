"""Float32 activations in units in the last place, over all magnitudes of a float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
from reference import ACTIVATIONS, Array

from stopgrad_op import _kernels

# Where something happens: zeros, kinks, zeros of derivatives, ends of polynomials, the last normal
# and the last subnormal result.
PLACES = (0, 0.3466, 0.5, 0.7518, 1, 1.2785, 2, 8, 9.68, 13.16, 14.75, 20, 87.33, 103.97, 3.4e38)


def floats(from_bits: float, to_bits: float, step: int) -> Array:
    first, last = np.array([from_bits, to_bits], np.float32).view(np.uint32).astype(np.int64)
    return np.arange(first, last, step).astype(np.uint32).view(np.float32)


def dense_inputs() -> Array:
    """Floats of every magnitude, more of those that activations bend at, and all near PLACES."""
    positive = [floats(0, np.inf, 49_999), floats(2**-8, 128, 997)]
    for place in PLACES:
        bits = int(np.float32(place).view(np.uint32))
        near = np.arange(max(0, bits - 500), min(bits + 500, 0x7F7FFFFF))
        positive.append(near.astype(np.uint32).view(np.float32))
    x = np.concatenate(positive)
    return np.concatenate([x, -x])


def value(z: Array, activation: str) -> Array:
    """Run the activation alone, on the product of 1 by a row, which runs as vectors."""
    y: Array = _kernels.matmul(np.ones((1, 1), z.dtype), z[None], activation=activation)
    return y[0]


def derivative(saved: Array, activation: str) -> Array:
    dz: Array = _kernels.matmul_gradient(
        np.ones((1, saved.size), saved.dtype),
        saved=saved[None],
        needed=["z"],
        activation=activation,
    )["z"]
    return dz[0]


def units(actual: Array, exact: Array, terms: Array | None = None) -> float:
    """Return the largest error in units in the last place of the exact result, or of its terms."""
    magnitude = np.abs(exact if terms is None else terms)
    assert np.all(np.isfinite(actual))
    return float(np.max(np.abs(reference.widen(actual) - exact) / ulp(magnitude)))


def ulp(magnitude: Array) -> Array:
    # That of the power of two at or below: rounding to float32 could reach the next one.
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, -126)
    return np.ldexp(1.0, exponent - 23)


@pytest.mark.parametrize(
    "activation",
    ["elu", "selu", "gelu", "gelu_tanh", "sigmoid", "tanh", "silu", "softplus"],
)
def test_value_is_within_4_units_in_the_last_place(activation: str) -> None:
    z = dense_inputs()
    with np.errstate(over="ignore", under="ignore"):
        exact = ACTIVATIONS[activation].value(reference.widen(z))
    representable = np.abs(exact) < np.finfo(np.float32).max
    assert units(value(z, activation)[representable], exact[representable]) <= 4


# Of what is saved: the output y, or z.
DERIVATIVES: dict[str, tuple[float, float, Callable[[Array], Array]]] = {
    "elu": (-1, np.inf, lambda y: np.where(y > 0, 1, 1 + y)),
    "gelu": (-np.inf, np.inf, ACTIVATIONS["gelu"].derivative),
    "sigmoid": (0, 1, lambda y: y * (1 - y)),
    "tanh": (-1, 1, lambda y: (1 - y) * (1 + y)),
    "softplus": (0, np.inf, lambda y: -np.expm1(-y)),
}


@pytest.mark.parametrize("activation", DERIVATIVES)
def test_derivative_is_within_4_units_in_the_last_place(activation: str) -> None:
    """That of gelu also next to its zero, where its two terms cancel."""
    low, high, formula = DERIVATIVES[activation]
    saved = dense_inputs()
    saved = saved[(saved >= low) & (saved <= high)]
    with np.errstate(over="ignore", under="ignore"):
        exact = formula(reference.widen(saved))
    assert units(derivative(saved, activation), exact) <= 4


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
def test_derivative_is_within_6_units_of_its_larger_term(activation: str) -> None:
    """The gate and z times its slope have different signs where z is negative."""
    z = dense_inputs()
    wide = np.clip(reference.widen(z), -1e3, 1e3)  # beyond, the limit
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = ACTIVATIONS[activation].derivative(wide)
        gate = np.where(wide == 0, 0.5, ACTIVATIONS[activation].value(wide) / wide)
    terms = np.maximum(np.abs(gate), np.abs(exact - gate))
    assert units(derivative(z, activation), exact, terms) <= 6
