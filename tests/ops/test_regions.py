"""What a region selects, and what is said about one that is wrong."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from stopgrad_op._regions import (
    NO_END,
    Selection,
    check_extent,
    columns,
    parse_region,
    rows,
    select,
)

WHAT = "`trainable` of `b`"


def check(region: Any, extents: tuple[int, int] = (10, 6), *, is_vector: bool = False) -> None:
    for selection in parse_region(region, WHAT, is_vector=is_vector):
        check_extent(selection, extents[selection.axis == "columns"], WHAT)


def plain(selections: tuple[Selection, ...]) -> list[tuple[Any, ...]]:
    return [(s.axis, s.bounds if s.indices is None else s.indices.tolist()) for s in selections]


@pytest.mark.parametrize(
    ("region", "due"),
    [
        (np.s_[2:5], [("rows", (2, 5, 1))]),
        (np.s_[2:], [("rows", (2, NO_END, 1))]),
        (np.s_[:-2], [("rows", (0, -2, 1))]),
        (np.s_[-3:], [("rows", (-3, NO_END, 1))]),
        (np.s_[::3], [("rows", (0, NO_END, 3))]),
        (np.s_[4:4], [("rows", (4, 4, 1))]),
        (np.s_[np.int32(2) : np.uint8(5)], [("rows", (2, 5, 1))]),
        ((np.s_[2:5],), [("rows", (2, 5, 1))]),
        (np.s_[:, 1:], [("columns", (1, NO_END, 1))]),
        (np.s_[2:, :3], [("rows", (2, NO_END, 1)), ("columns", (0, 3, 1))]),
        (np.s_[:], []),
        (np.s_[0:, ::1], []),
        (rows([7, 0, 3]), [("rows", [0, 3, 7])]),
        (rows(range(2, 4)), [("rows", [2, 3])]),
        (rows({5}), [("rows", [5])]),
        (rows([]), [("rows", [])]),
        (rows(np.array([1, 0], np.uint64)), [("rows", [0, 1])]),
        (rows(tf.constant([4, 2])), [("rows", [2, 4])]),
        (columns([5, 1]), [("columns", [1, 5])]),
    ],
)
def test_region_is_read(region: Any, due: list[Any]) -> None:
    assert plain(parse_region(region, WHAT)) == due
    check(region)


@pytest.mark.parametrize(
    ("region", "due"),
    [
        (np.s_[2:5], [("columns", (2, 5, 1))]),
        ((np.s_[2:5],), [("columns", (2, 5, 1))]),
        (columns([5, 1]), [("columns", [1, 5])]),
        (np.s_[:], []),
    ],
)
def test_region_of_a_vector_is_one_of_columns(region: Any, due: list[Any]) -> None:
    assert plain(parse_region(region, WHAT, is_vector=True)) == due


FORMS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "is None of type NoneType; due is a slice of rows"),
    (3, TypeError, "is 3 of type int; due is a slice"),
    ([1, 2], TypeError, r"is a value of type list; due is .*sg.rows\(\[...\]\) or sg.columns"),
    (np.ones((10, 6), bool), TypeError, "is a value of type ndarray; due is"),
    ((), ValueError, "is a tuple of 0 slices; due is"),
    (np.s_[:, :, 1:], ValueError, "is a tuple of 3 slices; due is"),
    (np.s_[..., 1:], TypeError, "is a tuple with Ellipsis of type ellipsis; due is"),
    (np.s_[2, 1:], TypeError, "is a tuple with 2 of type int; due is"),
    ((rows([1]), np.s_[1:]), TypeError, "is a tuple with a value of type Rows; due is"),
    (np.s_[::0], ValueError, "slice of rows whose step is 0; due is 1 or more"),
    (np.s_[:, ::-1], ValueError, "slice of columns whose step is -1; due is 1 or more"),
    (np.s_[5:2], ValueError, "is reversed: .*slice 5:2 of rows; due is a begin"),
    (np.s_[-2:-5], ValueError, "is reversed: .*slice -2:-5 of rows; due is a begin"),
    (np.s_[1.5:], TypeError, "slice of rows whose begin is 1.5; due is an integer or None"),
    (np.s_[:True], TypeError, "slice of rows whose end is True; due is an integer or None"),
    (np.s_[:, : 2**63], ValueError, "slice of columns whose end is 9223372036854775808; due"),
]


@pytest.mark.parametrize(("region", "error", "message"), FORMS)
def test_wrong_form_is_named(region: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^`trainable` of `b` .*{message}"):
        parse_region(region, WHAT)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.s_[1:, 1:], r"is a tuple of 2 slices; due is a slice .* or sg.columns"),
        (rows([1]), r"selects rows of a vector; due is a slice .* or sg.columns"),
    ],
)
def test_wrong_form_for_a_vector_is_named(region: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_region(region, WHAT, is_vector=True)


RANGES: list[tuple[Any, str]] = [
    (rows([0, 12, 10]), r"selects row 10, and `b` has 10 rows; due are 0 to 9\.$"),
    (columns([6]), r"selects column 6, and `b` has 6 columns; due are 0 to 5\.$"),
    (np.s_[11:], r"begins at row 11, and `b` has 10 rows; due are -10 to 10\.$"),
    (np.s_[-11:], r"begins at row -11, and `b` has 10 rows; due are -10 to 10\.$"),
    (np.s_[:, :7], r"ends at column 7, and `b` has 6 columns; due are -6 to 6\.$"),
    (np.s_[:, 2:-7], r"ends at column -7, and `b` has 6 columns; due are"),
    (np.s_[8:-5], "is reversed: .*slice 8:-5 of rows, and `b` has 10 rows; due is"),
    (np.s_[-2:5], "is reversed: .*slice -2:5 of rows, and `b` has 10 rows; due is"),
]


@pytest.mark.parametrize(("region", "message"), RANGES)
def test_region_out_of_range_is_named(region: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^`trainable` of `b` {message}"):
        check(region)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (rows([0]), "selects row 0, and `b` has 0 rows; due is none"),
        (np.s_[1:], "begins at row 1, and `b` has 0 rows; due is 0"),
    ],
)
def test_nothing_can_be_selected_of_nothing(region: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(region, (0, 6))
    check(rows([]), (0, 6))
    check(np.s_[0:0], (0, 6))


@pytest.mark.parametrize("make", [rows, columns])
@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([1, 1], ValueError, "has 1 more than once; due are different numbers"),
        ([2, -1], ValueError, "has -1; due are numbers from 0"),
        ([0.5], TypeError, "has dtype float64; due are integers in one dimension"),
        (["a"], TypeError, "has dtype <U1; due are integers"),
        ([True, False], TypeError, "is a mask; due are integers .*np.flatnonzero"),
        (3, ValueError, r"has shape \[\]; due are integers in one dimension"),
        ([[1, 2]], ValueError, r"has shape \[1, 2\]; due are"),
        ([[1], [1, 2]], TypeError, "cannot be made an array now; due are"),
        ([2**63 - 1], ValueError, "has 9223372036854775807; due are numbers below"),
        ([2**63], ValueError, "has 9223372036854775808; due are numbers below"),
        ([2**64], TypeError, "has dtype object; due are integers"),
    ],
)
def test_wrong_indices_are_named(
    make: Any, indices: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^`indices` of `sg.{make.__name__}` {message}"):
        make(indices)


def test_tensor_of_a_graph_has_no_indices() -> None:
    with pytest.raises(TypeError, match=r"`indices` of `sg.rows` cannot be made an array now"):
        tf.function(lambda: rows(tf.range(3)))()


def test_indexed_slices_is_true_or_false() -> None:
    with pytest.raises(TypeError, match=r"`indexed_slices` of `sg.rows` is 1; due is True or"):
        rows([0], indexed_slices=1)  # type: ignore[arg-type]


def test_rows_cannot_be_changed() -> None:
    source = np.array([3, 1])
    region = rows(source, indexed_slices=True)
    source[:] = 0
    assert region.indices.tolist() == [1, 3]
    assert region.indices.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        region.indices[0] = 2
    for name in ("indices", "indexed_slices", "new"):
        with pytest.raises(AttributeError, match=r"sg.rows\(...\) cannot be changed"):
            setattr(region, name, None)
    with pytest.raises(AttributeError, match="cannot be changed"):
        del region.indices


def test_equal_regions_are_one_key() -> None:
    assert len({rows([1, 2]), rows([2, 1]), rows(np.array([1, 2]))}) == 1
    different = [rows([1, 2]), rows([1]), rows([1, 2], indexed_slices=True), columns([1, 2])]
    assert len(set(different)) == len(different)
    assert rows([1, 2]) != columns([1, 2])
    for region in different:
        assert pickle.loads(pickle.dumps(region)) == region


def test_region_shows_what_was_written() -> None:
    assert repr(rows([2, 0])) == "sg.rows([0, 2])"
    assert repr(columns(range(100))) == "sg.columns([0, 1, 2, ..., 99])"


bound = st.none() | st.integers(-12, 12)


@given(bound, bound, st.none() | st.integers(1, 12), st.integers(0, 10))
def test_slice_selects_what_python_does_or_is_refused(
    begin: int | None, end: int | None, step: int | None, extent: int
) -> None:
    part = slice(begin, end, step)
    in_range = all(x is None or -extent <= x <= extent for x in (begin, end))
    first, last, _ = part.indices(extent)
    try:
        selections = parse_region(part, WHAT)
        for selection in selections:
            check_extent(selection, extent, WHAT)
    except ValueError:
        assert not in_range or first > last
        return
    assert in_range
    assert first <= last
    selected = select(selections[0], extent) if selections else np.arange(extent)
    np.testing.assert_array_equal(selected, np.arange(extent)[part])
