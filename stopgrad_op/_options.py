"""The options of `sg.matmul`, read once into what the ops take as attributes."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from stopgrad_op._activations import SAVED, canonical_name

OPERANDS = ("a", "b", "bias")


@dataclass(frozen=True)
class GradientPolicy:
    """What each operand's gradient is.

    Attributes
    ----------
    blocked
        The operands whose gradient is `None`.
    scaled, scales
        The operands whose gradient is multiplied by a number, and the numbers.
    """

    blocked: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()


@dataclass(frozen=True)
class MatMulOptions:
    """Everything about one kind of call that is not a tensor."""

    layout_a: str
    layout_b: str
    activation: str
    policy: GradientPolicy

    @property
    def saves_preactivation(self) -> bool:
        """Whether backward reads the pre-activation, which nobody else wants."""
        return SAVED[self.activation] == "preactivation"


class _Items(tuple[tuple[Any, Any, type], ...]):
    """A dict's items, which unlike the dict a cache can look up, and the types of the values.

    The cache would take True for 1.
    """


def _hashable(value: object) -> object:
    """Turn the containers that users write into ones that a cache can look up."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if isinstance(value, (str, float, tuple)) or hasattr(value, "shape"):
        return value
    if isinstance(value, Mapping):
        return _Items((key, item, type(item)) for key, item in value.items())
    return tuple(value) if isinstance(value, Iterable) else value


def _type_name(value: object) -> str:
    return "dict" if isinstance(value, _Items) else type(value).__name__


def _operands(has_bias: bool) -> tuple[str, ...]:
    return OPERANDS if has_bias else OPERANDS[:2]


def _operand(name: object, argument: str, has_bias: bool) -> str:
    if not isinstance(name, str):
        raise TypeError(
            f"`{argument}` names an operand by {name!r}; due is one of"
            f" {', '.join(map(repr, OPERANDS))}."
        )
    if name not in OPERANDS:
        near = difflib.get_close_matches(name.lower(), OPERANDS, n=1, cutoff=0.3)
        hint = f'; did you mean "{near[0]}"?' if near else "."
        raise ValueError(
            f'`{argument}` names the operand "{name}"{hint} Due is one of'
            f" {', '.join(map(repr, OPERANDS))}."
        )
    if name == "bias" and not has_bias:
        raise ValueError(f'`{argument}` names the operand "bias", and the call has no bias.')
    return name


def _layout(operand: str, transpose: object, adjoint: object) -> str:
    for option, value in (("transpose", transpose), ("adjoint", adjoint)):
        if not isinstance(value, (bool, np.bool_, int)):
            raise TypeError(
                f"`{option}_{operand}` has type {type(value).__name__}; due is True or False."
            )
    if transpose and adjoint:
        raise ValueError(
            f"`transpose_{operand}` and `adjoint_{operand}` are both set; due is at most one"
            " (an adjoint is a conjugated transpose)."
        )
    return "transpose" if transpose else "adjoint" if adjoint else "normal"


def _blocked(stop_gradient: object, has_bias: bool) -> tuple[str, ...]:
    if stop_gradient is None:
        return ()
    if isinstance(stop_gradient, (bool, np.bool_)):
        return _operands(has_bias) if stop_gradient else ()
    if isinstance(stop_gradient, str):
        stop_gradient = (stop_gradient,)
    if not isinstance(stop_gradient, tuple) or isinstance(stop_gradient, _Items):
        raise TypeError(
            f"`stop_gradient` has type {_type_name(stop_gradient)}; due is None, True, False, one"
            f" of {', '.join(map(repr, OPERANDS))}, or several of them."
        )
    names = {_operand(name, "stop_gradient", has_bias) for name in stop_gradient}
    return tuple(name for name in OPERANDS if name in names)


def _scale(value: object, name: str) -> float:
    what = f"`gradient_scale` of `{name}`"
    if hasattr(value, "shape") and not isinstance(value, (np.ndarray, np.generic)):
        raise NotImplementedError(
            f"{what} is a tensor ({type(value).__name__}); a scale that is read at run time is not"
            " built yet. Due is a number."
        )
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} is {value!r}; due is a real number.")
    try:
        scale = float(value)
    except OverflowError:
        scale = math.inf
    if not math.isfinite(scale):
        raise ValueError(f"{what} is {scale}; due is a finite number.")
    return scale


def _scales(gradient_scale: object, has_bias: bool) -> dict[str, float]:
    if gradient_scale is None:
        return {}
    if isinstance(gradient_scale, _Items):
        return {
            _operand(name, "gradient_scale", has_bias): _scale(value, name)
            for name, value, _ in gradient_scale
        }
    if isinstance(gradient_scale, tuple):
        raise TypeError(
            "`gradient_scale` is a sequence; due is a number for all operands, or a dict from"
            " operands to numbers."
        )
    return {name: _scale(gradient_scale, name) for name in _operands(has_bias)}


@lru_cache(maxsize=4096, typed=True)
def _resolve(
    transpose_a: bool,
    transpose_b: bool,
    adjoint_a: bool,
    adjoint_b: bool,
    has_bias: bool,
    activation: str | Callable[..., Any] | None,
    stop_gradient: object,
    gradient_scale: object,
) -> MatMulOptions:
    blocked = _blocked(stop_gradient, has_bias)
    # A blocked operand has no gradient to scale, and a scale of 1 is none.
    scales = {
        name: scale
        for name, scale in _scales(gradient_scale, has_bias).items()
        if name not in blocked and scale != 1
    }
    return MatMulOptions(
        layout_a=_layout("a", transpose_a, adjoint_a),
        layout_b=_layout("b", transpose_b, adjoint_b),
        activation=canonical_name(activation),
        policy=GradientPolicy(blocked, tuple(scales), tuple(scales.values())),
    )


def resolve_options(
    transpose_a: bool,
    transpose_b: bool,
    adjoint_a: bool,
    adjoint_b: bool,
    has_bias: bool,
    activation: str | Callable[..., Any] | None,
    stop_gradient: object,
    gradient_scale: object,
) -> MatMulOptions:
    """Check the options and return them in one immutable object, the same for equal options.

    Raises
    ------
    ValueError, TypeError
        With the name of the option, what came and what is due.
    NotImplementedError
        For a gradient scale that is a tensor.
    """
    # Before anything else, None: what nearly every call has, and each call pays for.
    key = (
        transpose_a,
        transpose_b,
        adjoint_a,
        adjoint_b,
        has_bias,
        activation,
        None if stop_gradient is None else _hashable(stop_gradient),
        None if gradient_scale is None else _hashable(gradient_scale),
    )
    try:
        return _resolve(*key)
    except TypeError:  # a wrong option, or one that is not hashable: a tensor, a list in a list
        return _resolve.__wrapped__(*key)
