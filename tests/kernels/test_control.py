"""Gradients of some rows of y and of regions of a, b and bias, against float64.

What is left out is exactly zero, and nothing of it is read.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference
from checks import BORDERS, gradients_of
from reference import COMPLEX, FLOATING, LAYOUTS, Array, Problem

from stopgrad_op import _kernels

every_dtype = pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
AXES = ("a_rows", "a_columns", "b_rows", "b_columns", "bias")

# The shapes of a and b as they are read. Those beyond a few rows have some left out by gathering,
# not only by writing zeros.
SHAPES = [
    ((1, 1), (1, 1)),
    ((7, 1), (1, 5)),
    ((17, 13), (13, 1)),
    ((40, 33), (33, 40)),
    ((11, 5, 7), (7, 3)),
    ((3, 20, 30), (30, 40)),
    ((5, 7), (11, 7, 3)),
    ((11, 5, 7), (11, 7, 3)),
    ((2, 1, 5, 7), (3, 7, 2)),
    ((4, 1, 30, 60), (5, 60, 40)),
    ((6, 60, 64), (6, 64, 60)),
    ((2, 3, 4, 5), (2, 3, 5, 6)),
    ((0, 3), (3, 4)),
    ((3, 4), (4, 0)),
    ((2, 0, 3, 2), (2, 1, 2, 4)),
]


def random_selection(rng: np.random.Generator, extent: int) -> Any:
    """A slice or a list, as `_kernels` takes them."""
    if rng.random() < 0.5:
        begin, end = sorted(int(x) for x in rng.integers(0, extent + 1, 2))
        step = int(rng.integers(1, 4))
        return (begin - extent if rng.random() < 0.3 and extent else begin, end, step)
    chosen = np.flatnonzero(rng.random(extent) < rng.choice([0.2, 0.6, 1.0]))
    return chosen.astype(np.int64)


def mask_of(selection: Any, extent: int) -> Array:
    mask = np.zeros(extent, bool)
    mask[slice(*selection) if isinstance(selection, tuple) else selection] = True
    return mask


def masks_of(regions: dict[str, Any], problem: Problem, columns: int) -> dict[str, Array]:
    """For each operand, which of its elements learn."""
    masks = {
        "a": np.ones(problem.a.shape, bool),
        "b": np.ones(problem.b.shape, bool),
        "bias": np.ones(columns, bool),
    }
    for axis, selection in regions.items():
        operand, _, unit = axis.partition("_")
        mask = masks[operand]
        extent = mask.shape[-2] if unit == "rows" else mask.shape[-1]
        selected = mask_of(selection, extent)
        masks[operand] = mask & (selected[:, None] if unit == "rows" else selected)
    return masks


def extent_of(axis: str, problem: Problem, columns: int) -> int:
    if axis == "bias":
        return columns
    shape = (problem.a if axis[0] == "a" else problem.b).shape
    return int(shape[-2 if axis.endswith("rows") else -1])


def random_rows(rng: np.random.Generator, shape: tuple[int, ...]) -> Array | None:
    """Weights of rows of that shape, or of a shape that broadcasts to it."""
    kind = rng.integers(6)
    if kind == 0:
        return None
    if rng.random() < 0.3:
        shape = shape[int(rng.integers(len(shape) + 1)) :]
    elif rng.random() < 0.2:
        shape = tuple(1 if rng.random() < 0.5 else extent for extent in shape)
    share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    active = rng.random(shape) < share
    if kind < 4:
        return active
    return active * rng.choice([1.0, 0.5, -2.0, 0.25], shape)


def check(
    rng: np.random.Generator,
    problem: Problem,
    dtype: str,
    rows: Array | None,
    regions: dict[str, Any],
    needed: tuple[str, ...],
    scales: dict[str, float] | None = None,
    threads: int = 1,
) -> None:
    z = reference.preactivation(problem).value.astype(reference.numpy_dtype(dtype))
    dy = reference.random_array(rng, z.shape, dtype)
    if rows is not None and dtype in FLOATING and "z" not in needed and rng.random() < 0.5:
        # What a row at 0 sends back is never looked at.
        dy[np.broadcast_to(rows == 0, dy.shape[:-1])] = np.nan
    masks = masks_of(regions, problem, z.shape[-1])
    results = gradients_of(
        problem,
        dy,
        z,
        needed,
        scales=scales or {},
        rows=rows,
        regions=regions,
        threads=threads,
    )
    with np.errstate(invalid="ignore"):
        exact = reference.gradients(problem, dy, scales, z, rows=rows, regions=masks)
    for name in needed:
        reference.assert_close(results[name], exact[name], dtype, what=f"gradient of {name}")
        if name != "z":
            assert not np.any(results[name][~masks[name]]), name


@every_dtype
@pytest.mark.parametrize("case", range(15))
def test_rows_and_regions_combined(rng: np.random.Generator, dtype: str, case: int) -> None:
    for a, b in SHAPES:
        problem = reference.random_problem(
            rng,
            a,
            b,
            dtype,
            layout_a=LAYOUTS[rng.integers(3)],
            layout_b=LAYOUTS[rng.integers(3)],
            activation=rng.choice(["linear", "elu", "gelu"]) if dtype in FLOATING else "linear",
        )
        y = reference.preactivation(problem).value.shape
        regions = {
            axis: random_selection(rng, extent_of(axis, problem, y[-1]))
            for axis in AXES
            if rng.random() < 0.4
        }
        needed = [("a", "b", "bias"), ("a",), ("b",), ("bias",), ("a", "b"), ("b", "bias")][
            rng.integers(6)
        ]
        scales = {"a": -0.5, "b": 2.0, "bias": 0.25} if rng.random() < 0.3 else None
        rows = random_rows(rng, y[:-1])
        check(rng, problem, dtype, rows, regions, needed, scales, threads=1 + case % 3)


@every_dtype
@pytest.mark.parametrize("layout", ["normal", "adjoint"])
@pytest.mark.parametrize("border", BORDERS)
def test_lists_across_a_border(
    rng: np.random.Generator, dtype: str, border: str, layout: str
) -> None:
    a, b = BORDERS[border]
    activation = "gelu" if dtype in FLOATING else "linear"
    for activation_or_none, needed in itertools.product(
        {activation, "linear"}, [("a",), ("b",), ("a", "b", "bias")]
    ):
        problem = reference.random_problem(
            rng, a, b, dtype, layout_a=layout, layout_b=layout, activation=activation_or_none
        )
        rows = rng.random(a[0]) < 0.5
        rows[40:90] = True  # a run that is read where it lies
        regions = {
            axis: np.flatnonzero(rng.random(extent_of(axis, problem, b[1])) < 0.7)
            for axis in ("a_columns", "b_rows", "b_columns", "bias")
        }
        check(rng, problem, dtype, rows, regions, needed, threads=3)
        check(rng, problem, dtype, rows, {}, needed, threads=2)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("selection", [(3, 9, 1), (0, None, 4), np.array([0, 5, 6, 11])], ids=str)
def test_compact_result_is_the_region_alone(
    rng: np.random.Generator, dtype: str, layout: str, selection: Any
) -> None:
    """Of stored rows: what tf.IndexedSlices holds, with gradient rows or without."""
    problem = reference.random_problem(
        rng, (12, 12), (12, 12), dtype, layout_a=layout, layout_b=layout
    )
    dy = reference.random_array(rng, (12, 12), dtype)
    columns = (2, 11, 1)
    for rows, b_columns in itertools.product((None, np.arange(12) % 3 > 0), (None, columns)):
        results = _kernels.matmul_gradient(
            dy,
            problem.a,
            problem.b,
            needed=["a", "b"],
            layout_a=layout,
            layout_b=layout,
            rows=rows,
            regions={"a_rows": selection, "b_rows": selection}
            | ({} if b_columns is None else {"b_columns": b_columns}),
            compact=["a", "b"],
            poison=True,
        )
        masks = {"b": np.broadcast_to(mask_of(b_columns or (0, 12, 1), 12), (12, 12))}
        exact = reference.gradients(problem, dy, rows=rows, regions=masks)
        chosen = mask_of(selection, 12)
        for name in ("a", "b"):
            due = reference.Exact(
                exact[name].value[chosen], exact[name].magnitude[chosen], exact[name].terms
            )
            reference.assert_close(results[name], due, dtype, what=name)


def test_large_compact_result_of_gathered_rows(rng: np.random.Generator) -> None:
    problem = reference.random_problem(rng, (300, 90), (90, 80), "float64")
    dy = reference.random_array(rng, (300, 80), "float64")
    rows, chosen = rng.random(300) < 0.3, np.flatnonzero(rng.random(300) < 0.5)
    result = _kernels.matmul_gradient(
        dy, None, problem.b, needed=["a"], rows=rows, regions={"a_rows": chosen}, compact=["a"],
        poison=True,
    )["a"]  # fmt: skip
    exact = reference.gradients(problem, dy, rows=rows)["a"]
    due = reference.Exact(exact.value[chosen], exact.magnitude[chosen], exact.terms)
    reference.assert_close(result, due, "float64")


@every_dtype
@pytest.mark.parametrize("needed", [("a",), ("b",), ("a", "b", "bias")], ids=str)
@pytest.mark.parametrize("batch_b", [(7,), ()], ids=["batches", "batch and matrix"])
def test_matrices_of_a_batch_without_an_active_row(
    rng: np.random.Generator, dtype: str, needed: tuple[str, ...], batch_b: tuple[int, ...]
) -> None:
    """Each of the others has rows of its own; with seven of them each thread takes a matrix."""
    problem = reference.random_problem(rng, (7, 60, 64), (*batch_b, 64, 60), dtype)
    rows = rng.random((7, 60)) < 0.4
    rows[[1, 4, 6]] = False
    for threads in (1, 3, 8):
        check(rng, problem, dtype, rows, {}, needed, threads=threads)


def test_regions_and_rows_of_very_many_empty_rows_take_no_memory() -> None:
    """Of an operand without columns: no list is made as long as it has rows."""
    dy = np.empty((2**40, 0), np.float32)
    a = np.empty((2**40, 0), np.float32)
    b = np.empty((0, 0), np.float32)
    result = _kernels.matmul_gradient(
        dy, a, b, needed=["a", "b"], rows=np.ones(1), regions={"a_rows": (0, None, 2)}
    )
    assert result["a"].shape == (2**40, 0)
    assert result["b"].shape == (0, 0)


def test_gradient_of_z_is_that_of_all_rows(rng: np.random.Generator) -> None:
    problem = reference.random_problem(rng, (9, 5), (5, 4), "float64", activation="elu")
    check(rng, problem, "float64", np.arange(9) % 2, {}, ("a", "b", "bias", "z"))


def test_scale_that_is_not_a_number_stays_in_the_region(rng: np.random.Generator) -> None:
    problem = reference.random_problem(rng, (9, 5), (5, 4), "float32")
    dy = reference.random_array(rng, (9, 4), "float32")
    result = _kernels.matmul_gradient(
        dy,
        problem.a,
        needed=["b", "bias"],
        scales={"b": float("nan"), "bias": float("nan")},
        regions={"b_columns": (1, 3, 1)},
        poison=True,
    )
    assert np.isnan(result["b"][:, 1:3]).all()
    assert not np.any(np.delete(result["b"], [1, 2], axis=1))
    assert np.isnan(result["bias"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": np.ones(4)}, r"`gradient_rows` must broadcast.*\[5\]; its shape is \[4\]"),
        ({"rows": np.ones((1, 5))}, r"`gradient_rows` must broadcast.*shape is \[1, 5\]"),
        ({"rows": np.array([1, np.nan, 0, 0, 1])}, "`gradient_rows` is NaN at row 1"),
        ({"regions": {"b_rows": (0, 8, 1)}}, "`trainable` of `b` .* row 8, and `b` has 7 rows"),
        ({"regions": {"a_columns": (-8, None, 1)}}, "`a` .*column -8, and `a` has 7 columns"),
        ({"regions": {"b_columns": (2, 1, 1)}}, "`b` is a reversed slice, from column 2 to 1"),
        ({"regions": {"b_columns": (0, 1, 0)}}, "`b` is a slice with step 0; due is 1 or more"),
        ({"regions": {"b_rows": np.array([1, 7])}}, "`b` selects row 7, .* due are 0 to 6"),
        ({"regions": {"a_rows": np.array([-1])}}, "`a` selects row -1, .* due are 0 to 4"),
        ({"regions": {"a_rows": np.array([2, 2])}}, "row 2 behind 2; due are different"),
        ({"regions": {"a_rows": np.array([3, 2])}}, "row 2 behind 3; due are different"),
        ({"regions": {"bias": (0, 4, 1)}}, "`bias` .* element 4, and `bias` has 3 elements"),
        ({"regions": {"c_rows": (0, 4, 1)}}, '`regions` has "c_rows"; due are a_rows'),
        ({"compact": ["bias"]}, '`compact` has "bias"'),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _kernels.matmul_gradient(
            np.ones((5, 3)), np.ones((5, 7)), np.ones((7, 3)), needed=["a", "b", "bias"], **options
        )
