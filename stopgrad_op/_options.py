"""The options of `sg.matmul`, read once into what the ops take as attributes."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from stopgrad_op._activations import SAVED, canonical_name
from stopgrad_op._regions import Indices, Rows, parse_region

OPERANDS = ("a", "b", "bias")


@dataclass(frozen=True)
class GradientPolicy:
    """What each operand's gradient is.

    It holds no tensor and no array, so that a cache may hold it; `Steering` has those. An axis is
    "a_rows", "a_columns", "b_rows", "b_columns" or "bias", of the operand as it is stored.

    Attributes
    ----------
    blocked
        The operands whose gradient is `None`.
    scaled, scales
        The operands whose gradient is multiplied by a number, and the numbers, `None` where it
        comes at run time.
    sliced, slices
        The axes of which a slice learns, and begin, end and step of each.
    indexed
        The axes of which some learn by index.
    indexed_slices
        The operands whose gradient is a `tf.IndexedSlices` of its rows that learn.
    """

    blocked: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()
    scales: tuple[float | None, ...] = ()
    sliced: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()
    indexed: tuple[str, ...] = ()
    indexed_slices: tuple[str, ...] = ()


class Steering(NamedTuple):
    """What steers the gradients of one call beside its options, as it came.

    Attributes
    ----------
    scales
        A tensor or variable for each scale of the policy that is `None`.
    rows
        The gradient rows, if there are any.
    indices
        Those of each axis that the policy calls indexed.
    """

    scales: tuple[Any, ...] = ()
    rows: Any = None
    indices: tuple[Indices, ...] = ()


def operand_of(axis: str) -> str:
    """Return the operand that an axis belongs to."""
    return axis.partition("_")[0]


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
    if isinstance(value, (str, float, tuple, _AtRunTime)) or hasattr(value, "shape"):
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


class _AtRunTime:
    """Stands for a tensor or variable where only what kind of scale there is matters."""


_AT_RUN_TIME = _AtRunTime()


def _is_at_run_time(scale: object) -> bool:
    return hasattr(scale, "shape") and not isinstance(scale, (np.ndarray, np.generic))


def _without_tensors(gradient_scale: Any) -> Any:
    """Replace what is read at run time, and would keep a cache from letting it go."""
    if isinstance(gradient_scale, Mapping):
        return {
            name: _AT_RUN_TIME if _is_at_run_time(scale) else scale
            for name, scale in gradient_scale.items()
        }
    return _AT_RUN_TIME if _is_at_run_time(gradient_scale) else gradient_scale


def _scale(value: object, name: str) -> float | None:
    what = f"`gradient_scale` of `{name}`"
    if value is _AT_RUN_TIME:
        return None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} is {value!r}; due is a real number, or a scalar tensor.")
    try:
        scale = float(value)
    except OverflowError:
        scale = math.inf
    if not math.isfinite(scale):
        raise ValueError(f"{what} is {scale}; due is a finite number.")
    return scale


def _scales(gradient_scale: object, has_bias: bool) -> dict[str, float | None]:
    if gradient_scale is None:
        return {}
    if isinstance(gradient_scale, _Items):
        return {
            _operand(name, "gradient_scale", has_bias): _scale(value, name)
            for name, value, _ in gradient_scale
        }
    if isinstance(gradient_scale, tuple):
        raise TypeError(
            "`gradient_scale` is a sequence; due is a number or a scalar tensor for all operands,"
            " or a dict from operands to those."
        )
    return {name: _scale(gradient_scale, name) for name in _operands(has_bias)}


class _Region(NamedTuple):
    """A region of an operand without its indices, so that a cache may hold it."""

    operand: str
    axes: tuple[tuple[str, tuple[int, int, int] | None], ...]  # bounds, None where by index
    indexed_slices: bool


def _regions(trainable: object, has_bias: bool) -> tuple[tuple[_Region, ...], dict[str, Indices]]:
    """Return the regions in the order of the operands, and beside them the indices by axis."""
    if not isinstance(trainable, Mapping):
        raise TypeError(
            f"`trainable` has type {type(trainable).__name__}; due is a dict from operands to"
            " regions."
        )
    regions = {}
    indices = {}
    for name, region in trainable.items():
        _operand(name, "trainable", has_bias)
        axes = []
        selections = parse_region(region, f"`trainable` of `{name}`", is_vector=name == "bias")
        for selection in selections:
            axis = "bias" if name == "bias" else f"{name}_{selection.axis}"
            axes.append((axis, selection.bounds))
            if selection.indices is not None:
                indices[axis] = selection.indices
        if axes:
            indexed_slices = isinstance(region, Rows) and region.indexed_slices
            regions[name] = _Region(name, tuple(axes), indexed_slices)
    return tuple(regions[name] for name in OPERANDS if name in regions), indices


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
    regions: tuple[_Region, ...],
) -> MatMulOptions:
    blocked = _blocked(stop_gradient, has_bias)
    # A blocked operand has no gradient to scale or to take a part of, and a scale of 1 is none.
    scales = {
        name: scale
        for name, scale in _scales(gradient_scale, has_bias).items()
        if name not in blocked and scale != 1
    }
    regions = tuple(region for region in regions if region.operand not in blocked)
    axes = [axis for region in regions for axis in region.axes]
    return MatMulOptions(
        layout_a=_layout("a", transpose_a, adjoint_a),
        layout_b=_layout("b", transpose_b, adjoint_b),
        activation=canonical_name(activation),
        policy=GradientPolicy(
            blocked,
            tuple(scales),
            tuple(scales.values()),
            sliced=tuple(axis for axis, bounds in axes if bounds is not None),
            slices=tuple(number for _, bounds in axes if bounds is not None for number in bounds),
            indexed=tuple(axis for axis, bounds in axes if bounds is None),
            indexed_slices=tuple(region.operand for region in regions if region.indexed_slices),
        ),
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
    gradient_rows: object,
    trainable: object,
) -> tuple[MatMulOptions, Steering | None]:
    """Check the options and return them in one immutable object, the same for equal options.

    What of them is tensors and arrays stands beside it; `None` where nothing is, and no region
    needs to be checked either.

    Raises
    ------
    ValueError, TypeError
        With the name of the option, what came and what is due.
    """
    regions: tuple[_Region, ...] = ()
    indices: dict[str, Indices] = {}
    if trainable is not None:
        regions, indices = _regions(trainable, has_bias)
    # Before anything else, None: what nearly every call has, and each call pays for.
    key = (
        transpose_a,
        transpose_b,
        adjoint_a,
        adjoint_b,
        has_bias,
        activation,
        None if stop_gradient is None else _hashable(stop_gradient),
        None if gradient_scale is None else _hashable(_without_tensors(gradient_scale)),
        regions,
    )
    try:
        options = _resolve(*key)
    except TypeError:  # a wrong option, or one that is not hashable: a list in a list
        options = _resolve.__wrapped__(*key)
    policy = options.policy
    if gradient_rows is None and not regions and None not in policy.scales:
        return options, None
    scales = (
        gradient_scale[name] if isinstance(gradient_scale, Mapping) else gradient_scale
        for name, scale in zip(policy.scaled, policy.scales, strict=True)
        if scale is None
    )
    return options, Steering(
        tuple(scales), gradient_rows, tuple(indices[axis] for axis in policy.indexed)
    )
