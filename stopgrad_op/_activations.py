"""Which activation a user means: a name, or a function of TensorFlow or Keras."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import tensorflow as tf

from stopgrad_op._library import load_kernels

# What backward reads of each activation: "nothing", "output" or "preactivation". The table itself
# stands in csrc/core/activation.h.
SAVED: dict[str, str] = load_kernels().activations()

# Other spellings, Keras's among them.
ALIASES = {"swish": "silu"}


@cache
def _functions() -> dict[Callable[..., Any], str]:
    """Map the functions of TensorFlow and Keras to names."""
    named = {
        getattr(module, name): ALIASES.get(name, name)
        for module in (tf.nn, keras.activations, keras.ops)
        for name in (*SAVED, *ALIASES)
        if hasattr(module, name)
    }
    named[keras.ops.gelu] = "gelu_tanh"  # there alone, the approximate one is the default
    return named


def canonical_name(activation: str | Callable[..., Any] | None) -> str:
    """Return the name in the table of activations.

    Raises
    ------
    ValueError
        If the name or function is none of the table, with the nearest name that is.
    TypeError
        If it is neither `None` nor a name nor a function.
    """
    if activation is None:
        return "linear"
    if isinstance(activation, str):
        name = ALIASES.get(activation, activation)
        if name in SAVED:
            return name
        near = difflib.get_close_matches(activation.lower(), (*SAVED, *ALIASES), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else "."
        raise ValueError(
            f'`activation` "{activation}" is unknown{hint} Due is None or one of'
            f" {', '.join((*SAVED, *ALIASES))}."
        )
    if callable(activation):
        try:
            known = _functions().get(activation)
        except TypeError:  # not hashable, so none of these
            known = None
        if known is None:
            raise ValueError(
                f"`activation` is the function {getattr(activation, '__name__', activation)!r},"
                f" which cannot be fused. Due is None, one of {', '.join(SAVED)}, or the tf.nn or"
                " Keras function of that meaning; apply any other function to the result."
            )
        return known
    raise TypeError(
        f"`activation` has type {type(activation).__name__}; due is None, a name or a function."
    )


def derivative(activation: str, saved: tf.Tensor) -> tf.Tensor:
    """Return f'(z), from what `SAVED` says of f, in TensorFlow's operations."""
    return _DERIVATIVES[activation](saved)


def _number(value: float, like: tf.Tensor) -> tf.Tensor:
    return tf.constant(value, like.dtype)


def _step(condition: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(condition, like.dtype)


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_SCALE_ALPHA = 1.7580993408473768599402175208123
_GELU_TANH_LINEAR = 1.5957691216057307117  # 2 sqrt(2 / pi)
_GELU_TANH_CUBIC = 0.044715 * _GELU_TANH_LINEAR


def _gelu(z: tf.Tensor) -> tf.Tensor:
    # Phi(z) + z phi(z); erfc keeps the digits where z is negative.
    distribution = 0.5 * tf.math.erfc(_number(-(0.5**0.5), z) * z)
    density = _number(0.39894228040143267794, z) * tf.exp(-0.5 * z * z)
    return distribution + z * density


def _gelu_tanh(z: tf.Tensor) -> tf.Tensor:
    # f(z) = z sigmoid(v) with v = linear z + cubic z^3.
    linear, cubic = _number(_GELU_TANH_LINEAR, z), _number(_GELU_TANH_CUBIC, z)
    gate = tf.sigmoid(z * (linear + cubic * z * z))
    return gate * (1 + (1 - gate) * z * (linear + 3 * cubic * z * z))


def _silu(z: tf.Tensor) -> tf.Tensor:
    gate = tf.sigmoid(z)
    return gate * (1 + (1 - gate) * z)


# Formulas and kinks as in csrc/cpu/activation_functions.h.
_DERIVATIVES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": lambda y: _step(y > 0, y),
    "relu6": lambda y: _step((y > 0) & (y < 6), y),
    "leaky_relu": lambda y: tf.where(y > 0, _number(1, y), _number(0.2, y)),
    "elu": lambda y: tf.where(y > 0, tf.ones_like(y), y + 1),
    "selu": lambda y: tf.where(y < 0, y + _number(_SELU_SCALE_ALPHA, y), _number(_SELU_SCALE, y)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: (1 - y) * (1 + y),
    "silu": _silu,
    "softplus": lambda y: -tf.math.expm1(-y),
}
