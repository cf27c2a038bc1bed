"""Regions of a matrix or vector: what a user writes, checked and in the terms of the ops."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Axis = Literal["rows", "columns"]
Indices = npt.NDArray[np.int64]

# An end that is not given, in the op attribute `slices`.
NO_END = 2**63 - 1

_DUE = (
    "due is a slice of rows (np.s_[512:]), a tuple of one or two slices (np.s_[:, 512:]),"
    " sg.rows([...]) or sg.columns([...])"
)
_DUE_OF_VECTOR = "due is a slice (np.s_[512:]) or sg.columns([...])"


class _Lines:
    """Rows or columns by index. Equal ones are the same to a cache."""

    __slots__ = ("_hash", "indices")

    indices: Indices
    _hash: int

    def __init__(self, indices: object) -> None:
        object.__setattr__(self, "indices", _checked_indices(indices, type(self).__name__.lower()))
        object.__setattr__(self, "_hash", hash((type(self), self.indices.tobytes())))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"sg.{type(self).__name__.lower()}(...) cannot be changed.")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.indices,)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Lines) or type(self) is not type(other):
            return False
        return np.array_equal(self.indices, other.indices)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"sg.{type(self).__name__.lower()}({_short(self.indices)})"


class Rows(_Lines):
    """Rows by index.

    Attributes
    ----------
    indices
        Ascending, int64, not writeable.
    indexed_slices
        Whether the gradient is a `tf.IndexedSlices` of these rows alone.
    """

    __slots__ = ("indexed_slices",)

    indexed_slices: bool

    def __init__(self, indices: object, indexed_slices: bool = False) -> None:
        if not isinstance(indexed_slices, (bool, np.bool_)):
            raise TypeError(
                f"`indexed_slices` of `sg.rows` is {indexed_slices!r}; due is True or False."
            )
        super().__init__(indices)
        object.__setattr__(self, "indexed_slices", bool(indexed_slices))

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.indices, self.indexed_slices)

    def __eq__(self, other: object) -> bool:
        same_flag = isinstance(other, Rows) and self.indexed_slices == other.indexed_slices
        return same_flag and super().__eq__(other)

    __hash__ = _Lines.__hash__


class Columns(_Lines):
    """Columns by index, in a vector its entries.

    Attributes
    ----------
    indices
        Ascending, int64, not writeable.
    """

    __slots__ = ()


def rows(indices: Iterable[int], *, indexed_slices: bool = False) -> Rows:
    """Select rows of an operand by index, for `trainable` of `sg.matmul` and `sg.keep_frozen`.

    Parameters
    ----------
    indices
        Integers, none negative, none twice, in any order.
    indexed_slices
        The gradient is a `tf.IndexedSlices` that holds these rows alone, in ascending order, and
        not a tensor with zeros elsewhere. For an operand of rank 2.

    Returns
    -------
    Rows
        It cannot be changed, and equal ones are equal.

    Raises
    ------
    TypeError, ValueError
        For indices that are not integers in one dimension, that are negative, or there twice.
    """
    return Rows(indices, indexed_slices)


def columns(indices: Iterable[int]) -> Columns:
    """Select columns of an operand by index, or entries of a bias.

    Parameters
    ----------
    indices
        Integers, none negative, none twice, in any order.

    Returns
    -------
    Columns
        It cannot be changed, and equal ones are equal.

    Raises
    ------
    TypeError, ValueError
        For indices that are not integers in one dimension, that are negative, or there twice.
    """
    return Columns(indices)


class Selection(NamedTuple):
    """What a region selects of one axis: `bounds`, or else `indices`.

    Attributes
    ----------
    axis
        "rows" or "columns". A vector has columns.
    bounds
        Begin, end and step as in the op attribute `slices`: a negative bound counts from the end.
    indices
        Ascending, int64.
    """

    axis: Axis
    bounds: tuple[int, int, int] | None
    indices: Indices | None


def parse_region(region: object, what: str, *, is_vector: bool = False) -> tuple[Selection, ...]:
    """Check the form of a region and return what it selects, in the order of the axes.

    Parameters
    ----------
    region
        A slice of rows, a tuple of one or two slices, `Rows` or `Columns`; for a vector a slice,
        also alone in a tuple, or `Columns`.
    what
        Its name in messages, such as "`trainable` of `b`".
    is_vector
        Whether it is a region of a vector.

    Returns
    -------
    tuple of Selection
        One for each axis of which not everything is selected.

    Raises
    ------
    TypeError, ValueError
        With the name, what came and what is due.
    """
    due = _DUE_OF_VECTOR if is_vector else _DUE
    if isinstance(region, Columns):
        return (Selection("columns", None, region.indices),)
    if isinstance(region, Rows):
        if is_vector:
            raise ValueError(f"{what} selects rows of a vector; {due}.")
        return (Selection("rows", None, region.indices),)
    parts = region if isinstance(region, tuple) else (region,)
    axes: tuple[Axis, ...] = ("columns",) if is_vector else ("rows", "columns")
    if not all(isinstance(part, slice) for part in parts):
        wrong = next(part for part in parts if not isinstance(part, slice))
        inside = "a tuple with " if isinstance(region, tuple) else ""
        # An array in full would bury the message.
        shown = repr(wrong) if isinstance(wrong, (int, str, type(None), type(...))) else "a value"
        raise TypeError(f"{what} is {inside}{shown} of type {type(wrong).__name__}; {due}.")
    if not 1 <= len(parts) <= len(axes):
        raise ValueError(f"{what} is a tuple of {len(parts)} slices; {due}.")
    selections = []
    for axis, part in zip(axes, parts, strict=False):
        bounds = _bounds(part, axis, what)
        if bounds != (0, NO_END, 1):
            selections.append(Selection(axis, bounds, None))
    return tuple(selections)


def check_extent(selection: Selection, extent: int, what: str) -> None:
    """Check a selection against the number of rows or columns.

    Raises
    ------
    ValueError
        With the name, what came and what is due.
    """
    axis = selection.axis
    owner = what.rpartition(" of ")[2]
    has = f"{owner} has {extent} {axis if extent != 1 else axis[:-1]}"
    if selection.indices is not None:
        indices = selection.indices
        if indices.size and indices[-1] >= extent:
            first = indices[np.searchsorted(indices, extent)]
            due = f"due are 0 to {extent - 1}" if extent else "due is none"
            raise ValueError(f"{what} selects {axis[:-1]} {first}, and {has}; {due}.")
        return
    assert selection.bounds is not None
    begin, end, _ = selection.bounds
    for verb, bound in (("begins", begin), ("ends", end)):
        if not -extent <= bound <= extent and (verb, bound) != ("ends", NO_END):
            due = f"due are {-extent} to {extent}" if extent else "due is 0"
            raise ValueError(f"{what} {verb} at {axis[:-1]} {bound}, and {has}; {due}.")
    first, last = (bound + extent if bound < 0 else bound for bound in (begin, min(end, extent)))
    if first > last:
        raise ValueError(_reversed(selection.bounds, axis, what, f", and {has}"))


def select(selection: Selection, extent: int) -> Indices:
    """Return the indices that a selection, checked against the extent, has.

    Returns
    -------
    numpy.ndarray
        Ascending, int64.
    """
    if selection.indices is not None:
        return selection.indices
    assert selection.bounds is not None
    begin, end, step = selection.bounds
    return np.arange(extent, dtype=np.int64)[begin:end:step]


def _checked_indices(indices: object, name: str) -> Indices:
    what, due = f"`indices` of `sg.{name}`", "due are integers in one dimension"
    if isinstance(indices, Iterable) and not hasattr(indices, "__array__"):
        indices = tuple(indices)
    try:
        array = np.asarray(indices)
    except Exception as error:  # a ragged list, or a tensor of a graph, each of its own kind
        raise TypeError(f"{what} cannot be made an array now; {due}.") from error
    if array.ndim != 1:
        raise ValueError(f"{what} has shape {list(array.shape)}; {due}.")
    if array.dtype == np.bool_:
        raise TypeError(f"{what} is a mask; {due} (np.flatnonzero makes them of a mask).")
    if array.size == 0:
        array = array.astype(np.int64)  # [] comes as floats
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what} has dtype {array.dtype}; {due}.")
    if array.size and array.max() >= NO_END:
        raise ValueError(f"{what} has {array.max()}; due are numbers below 2**63 - 1.")
    # A copy: what the caller does to the array later is nobody's business here.
    sorted_indices: Indices = np.sort(array.astype(np.int64))
    if array.size and sorted_indices[0] < 0:
        raise ValueError(f"{what} has {sorted_indices[0]}; due are numbers from 0.")
    twice = sorted_indices[1:][np.diff(sorted_indices) == 0]
    if twice.size:
        raise ValueError(f"{what} has {twice[0]} more than once; due are different numbers.")
    sorted_indices.flags.writeable = False
    return sorted_indices


def _bounds(part: slice, axis: Axis, what: str) -> tuple[int, int, int]:
    def number(value: object, name: str, default: int) -> int:
        if value is None:
            return default
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            result = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"{what} has a slice of {axis} whose {name} is {value!r}; due is an integer or"
                " None."
            ) from None
        if not -NO_END <= result < NO_END:
            raise ValueError(
                f"{what} has a slice of {axis} whose {name} is {result}; due is a number of 63"
                " bits."
            )
        return result

    begin = number(part.start, "begin", 0)
    end = number(part.stop, "end", NO_END)
    step = number(part.step, "step", 1)
    if step < 1:
        raise ValueError(f"{what} has a slice of {axis} whose step is {step}; due is 1 or more.")
    if begin > end and (begin < 0) == (end < 0):
        raise ValueError(_reversed((begin, end, step), axis, what))
    return begin, end, step


def _reversed(bounds: tuple[int, int, int], axis: Axis, what: str, extent: str = "") -> str:
    begin, end, _ = bounds
    written = f"{begin}:{end if end != NO_END else ''}"
    return (
        f"{what} is reversed: it has the slice {written} of {axis}{extent}; due is a begin that"
        " does not lie behind the end."
    )


def _short(indices: Indices) -> str:
    if indices.size <= 8:
        return str(indices.tolist())
    return f"[{', '.join(map(str, indices[:3]))}, ..., {indices[-1]}]"
