"""What every result is compared with: the op in float64 NumPy, and how far a result may be off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

try:
    from ml_dtypes import bfloat16
except (
    ModuleNotFoundError
):  # comes with TensorFlow, and a build without TensorFlow need not have it
    bfloat16 = None

Array = np.ndarray[Any, Any]

FLOATING = ("float32", "float64", "float16", "bfloat16")
COMPLEX = ("complex64", "complex128")
INTEGERS = ("int32", "int64")
LAYOUTS = ("normal", "transpose", "adjoint")


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(bfloat16 if name == "bfloat16" else name)


# Relative distance of neighbouring numbers, and the smallest number: as stored, and of the type
# that sums are kept in.
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}
_PART = {"complex64": "float32", "complex128": "float64"}
_ACCUMULATOR = {"float16": "float32", "bfloat16": "float32"}


def epsilon(dtype: str) -> float:
    return _EPSILON[_PART.get(dtype, dtype)]


def accumulator_epsilon(dtype: str) -> float:
    return epsilon(_ACCUMULATOR.get(dtype, dtype))


def unit_in_the_last_place(magnitude: float, dtype: str) -> float:
    """Return the distance from `magnitude` to the next number of the dtype."""
    part = _PART.get(dtype, dtype)
    if magnitude == 0 or not math.isfinite(magnitude):
        return _SMALLEST[part]
    return max(_SMALLEST[part], _EPSILON[part] * 2.0 ** math.floor(math.log2(magnitude)))


# --- Activations -----------------------------------------------------------------------------
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Activation:
    """A function of the pre-activation and its derivative."""

    value: Function
    derivative: Function


_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _sigmoid(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return np.where(z < 0, small, 1.0) / (1 + small)


def _normal_distribution(z: Array) -> Array:
    return 0.5 * _erfc(-z / math.sqrt(2))


def _gelu_derivative(z: Array) -> Array:
    return _normal_distribution(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


# 1 + tanh(u) = 2 sigmoid(2 u), which keeps its digits where u is negative.
def _gelu_tanh_gate(z: Array) -> Array:
    return _sigmoid(2 * _SQRT_2_OVER_PI * (z + 0.044715 * z**3))


def _gelu_tanh_slope(z: Array) -> Array:
    return 2 * _SQRT_2_OVER_PI * (1 + 3 * 0.044715 * z * z)


def _gelu_tanh_derivative(z: Array) -> Array:
    gate = _gelu_tanh_gate(z)
    return gate + z * gate * (1 - gate) * _gelu_tanh_slope(z)


def _silu_derivative(z: Array) -> Array:
    gate = _sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _expm1_below_0(z: Array) -> Array:
    return np.expm1(np.minimum(z, 0))


# At a kink the derivative is the one that stock TensorFlow's gradients have.
ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda z: z, np.ones_like),
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "relu6": Activation(
        lambda z: np.minimum(np.maximum(z, 0), 6), lambda z: np.where((z > 0) & (z < 6), 1.0, 0.0)
    ),
    "leaky_relu": Activation(
        lambda z: np.where(z > 0, z, 0.2 * z), lambda z: np.where(z > 0, 1.0, 0.2)
    ),
    "elu": Activation(
        lambda z: np.where(z < 0, _expm1_below_0(z), z),
        lambda z: np.where(z < 0, _expm1_below_0(z) + 1, 1.0),
    ),
    "selu": Activation(
        lambda z: _SELU_SCALE * np.where(z < 0, _SELU_ALPHA * _expm1_below_0(z), z),
        lambda z: _SELU_SCALE * np.where(z < 0, _SELU_ALPHA * (_expm1_below_0(z) + 1), 1.0),
    ),
    "gelu": Activation(lambda z: z * _normal_distribution(z), _gelu_derivative),
    "gelu_tanh": Activation(lambda z: z * _gelu_tanh_gate(z), _gelu_tanh_derivative),
    "sigmoid": Activation(_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "silu": Activation(lambda z: z * _sigmoid(z), _silu_derivative),
    "softplus": Activation(lambda z: np.logaddexp(0, z), _sigmoid),
}


def activate(name: str, z: Array) -> Array:
    if name == "linear":
        return z
    with np.errstate(all="ignore"):
        return ACTIVATIONS[name].value(z)


# --- The op ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Problem:
    """A fused matmul: its operands in any dtype, as they are stored, and its options."""

    a: Array
    b: Array
    bias: Array | None = None
    layout_a: str = "normal"
    layout_b: str = "normal"
    activation: str = "linear"


@dataclass(frozen=True)
class Exact:
    """A result in float64, and what bounds the roundings of any way to compute it.

    Attributes
    ----------
    value
        The result.
    magnitude
        The sum of the magnitudes of everything that was added up, element by element.
    terms
        How many terms were added up.
    """

    value: Array
    magnitude: Array
    terms: int


def widen(x: Array) -> Array:
    kind = x.dtype.kind
    return x.astype(np.complex128 if kind == "c" else np.uint64 if kind in "iu" else np.float64)


def apply_layout(x: Array, layout: str) -> Array:
    """Read a stored operand; storing what was read is the same operation."""
    if layout == "normal":
        return x
    x = np.swapaxes(x, -1, -2)
    return np.conj(x) if layout == "adjoint" else x


def sum_to_shape(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the dimensions along which an operand of that shape was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    stretched = tuple(i for i, extent in enumerate(shape) if extent != x.shape[i])
    return x.sum(axis=stretched, keepdims=True) if stretched else x


def _product(a: Array, b: Array) -> Exact:
    return Exact(a @ b, np.abs(a) @ np.abs(b), a.shape[-1])


def preactivation(problem: Problem) -> Exact:
    a = apply_layout(widen(problem.a), problem.layout_a)
    b = apply_layout(widen(problem.b), problem.layout_b)
    product = _product(a, b)
    if problem.bias is None:
        return product
    bias = widen(problem.bias)
    return Exact(product.value + bias, product.magnitude + np.abs(bias), product.terms + 1)


def forward(problem: Problem) -> Exact:
    z = preactivation(problem)
    if problem.activation == "linear":
        return z
    y = activate(problem.activation, z.value)
    # No activation is steeper than this, nor is y further from 0 than z, but for softplus.
    return Exact(y, 1.8 * z.magnitude + np.abs(y), z.terms)


def gradients(
    problem: Problem,
    dy: Array,
    scales: Mapping[str, float] | None = None,
    z: Array | None = None,
    rows: Any = None,
    regions: Mapping[str, Array] | None = None,
) -> dict[str, Exact]:
    """Return the gradients of a, b and bias, and as "z" that of the pre-activation.

    Forward rounds the pre-activation, which may carry it over a kink; `z` says where it went.
    `rows` broadcasts against the rows of y, and a row at 0 sends nothing back, not even a NaN; the
    gradient of z is that of all rows. `regions` maps operands to masks of their stored shapes.
    """
    scales = scales or {}
    a = apply_layout(widen(problem.a), problem.layout_a)
    b = apply_layout(widen(problem.b), problem.layout_b)
    dy = widen(dy)
    z = preactivation(problem).value if z is None else widen(z)
    derivative = np.ones(z.shape)
    if problem.activation != "linear":
        derivative = ACTIVATIONS[problem.activation].derivative(z)
    with np.errstate(invalid="ignore"):  # an infinite dy where the derivative is 0
        dz = dy * derivative
    # A derivative in [-0.2, 1.8] that was computed from a rounded y or z is off by the roundings of
    # numbers of about 1, however small itself. The tanh form multiplies 1 - tanh^2 by a cubic.
    size = 1.8 * np.abs(dy)
    if problem.activation == "gelu_tanh":
        size = size * (1 + np.abs(z) * _gelu_tanh_slope(z))
    adjoint = lambda x: np.conj(np.swapaxes(x, -1, -2))  # noqa: E731
    results = {"z": Exact(dz, size, 1)}
    if rows is not None:
        factor = np.broadcast_to(widen(np.asarray(rows)), dz.shape[:-1])[..., None]
        with np.errstate(invalid="ignore"):  # what stands in a row at 0 does not count
            dz = np.where(factor == 0, 0, dz * factor)
            size = np.where(factor == 0, 0, size * np.abs(factor))

    def add(name: str, value: Array, magnitude: Array, terms: int) -> None:
        scale = scales.get(name, 1.0)
        if regions is not None and name in regions:
            value = np.where(regions[name], value, 0)
            magnitude = np.where(regions[name], magnitude, 0)
        results[name] = Exact(scale * value, abs(scale) * magnitude, terms)

    def add_factor(name: str, stored: Array, layout: str, product: Exact) -> None:
        value = sum_to_shape(apply_layout(product.value, layout), stored.shape)
        magnitude = sum_to_shape(apply_layout(product.magnitude, layout), stored.shape)
        summed = product.value.size // max(1, stored.size)
        add(name, value, magnitude, product.terms * max(1, summed))

    product_a, bound_a = dz @ adjoint(b), size @ adjoint(np.abs(b))
    product_b, bound_b = adjoint(a) @ dz, adjoint(np.abs(a)) @ size
    add_factor("a", problem.a, problem.layout_a, Exact(product_a, bound_a, dz.shape[-1]))
    add_factor("b", problem.b, problem.layout_b, Exact(product_b, bound_b, dz.shape[-2]))
    rows = tuple(range(dz.ndim - 1))
    add("bias", dz.sum(axis=rows), size.sum(axis=rows), dz.size // max(1, dz.shape[-1]))
    return results


# --- The rule --------------------------------------------------------------------------------
def error_of(result: Array, exact: Exact) -> float:
    """Return the largest distance from the exact result."""
    return float(np.abs(widen(result) - exact.value).max(initial=0))


def allowed_error(exact: Exact, dtype: str, stock_error: float | None = None) -> Array | float:
    """Return how far a result in that dtype may be from the exact one.

    Twice the error of the stock computation in the same precision on the same inputs, plus one unit
    in the last place of the largest result, or of a term of mean size where all results are
    smaller: terms that cancel are rounded in one order and not in another. Where there is no stock
    result, what the roundings of a sum of n terms t can be: the accumulator's epsilon times n sum
    |t|, and for what is rounded to storage (the result, and before it dz or y) the epsilon of the
    storage times the same sum. Eight more terms stand for an elementary function's error. By the
    same bound the exact result is not exact, but in float64.
    """
    chain = (exact.terms + 8) * exact.magnitude
    if stock_error is not None:
        mean_term = exact.magnitude / max(1, exact.terms)
        unit = max(
            unit_in_the_last_place(float(np.abs(sizes).max(initial=0)), dtype)
            for sizes in (exact.value, mean_term)
        )
        return 2 * stock_error + unit + chain * epsilon("float64")
    rounded = 2 * epsilon(dtype) * exact.magnitude + unit_in_the_last_place(0, dtype)
    return chain * accumulator_epsilon(dtype) + rounded


def assert_close(
    actual: Array,
    exact: Exact,
    dtype: str,
    stock_error: float | None = None,
    what: str = "result",
) -> None:
    """Assert the rule, and that shape and dtype are right."""
    assert actual.dtype == numpy_dtype(dtype), f"{what}: dtype {actual.dtype}, due {dtype}"
    assert actual.shape == exact.value.shape, f"{what}: {actual.shape}, due {exact.value.shape}"
    if actual.size == 0:
        return
    if dtype in INTEGERS:
        np.testing.assert_array_equal(actual, exact.value.astype(actual.dtype), err_msg=what)
        return
    error = np.abs(widen(actual) - exact.value)
    allowed = np.broadcast_to(allowed_error(exact, dtype, stock_error), error.shape)
    # Written so that a NaN fails.
    if not np.all(error <= allowed):
        excess = np.where(np.isnan(error), np.inf, error / allowed)
        at = np.unravel_index(np.argmax(excess), error.shape)
        raise AssertionError(
            f"{what} {dtype}{list(actual.shape)} at {[int(i) for i in at]}: {actual[at]}, due"
            f" {exact.value[at]}, error {error[at]:.3g}, allowed {allowed[at]:.3g}"
        )


# --- Inputs ----------------------------------------------------------------------------------
def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers, none of them 0."""
    if dtype in INTEGERS:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    x = rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)
    if dtype in COMPLEX:
        x = x + 1j * rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)
    return x.astype(numpy_dtype(dtype))


def stored_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return shape if layout == "normal" else (*shape[:-2], shape[-1], shape[-2])


def random_problem(
    rng: np.random.Generator,
    a: tuple[int, ...],
    b: tuple[int, ...],
    dtype: str,
    *,
    bias: bool = False,
    layout_a: str = "normal",
    layout_b: str = "normal",
    activation: str = "linear",
) -> Problem:
    """Make a problem whose operands have these shapes when they are read."""
    return Problem(
        random_array(rng, stored_shape(a, layout_a), dtype),
        random_array(rng, stored_shape(b, layout_b), dtype),
        random_array(rng, b[-1:], dtype) if bias else None,
        layout_a,
        layout_b,
        activation,
    )


def nearby(problem: Problem, rng: np.random.Generator) -> Problem:
    """Return a problem of the same size, its numbers up to a tenth larger or smaller."""

    def vary(x: Array) -> Array:
        return (widen(x) * rng.uniform(0.9, 1.1, x.shape)).astype(x.dtype)

    bias = None if problem.bias is None else vary(problem.bias)
    return replace(problem, a=vary(problem.a), b=vary(problem.b), bias=bias)


def crosses_no_kink(problem: Problem, dtype: str) -> bool:
    """Whether every pre-activation stays on its side of a kink when it is rounded."""
    z = preactivation(problem)
    near_0 = np.abs(z.value) <= 64 * accumulator_epsilon(dtype) * z.magnitude
    near_6 = np.abs(z.value - 6) <= 12 * epsilon(dtype)
    kinks = {"relu": near_0, "leaky_relu": near_0, "selu": near_0, "relu6": near_0 | near_6}
    return not np.any(kinks.get(problem.activation, False))
