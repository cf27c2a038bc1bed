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
