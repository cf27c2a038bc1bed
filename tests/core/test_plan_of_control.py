"""Which products scales, gradient rows and regions leave, and of which sizes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from stopgrad_op import _kernels

# Large enough for gathering to pay; none of the sizes is equal to another or its part.
M, K, N = 200, 310, 170
ROWS = np.arange(M) % 4 == 0  # 50 of them
LIST = np.array([0, 3, 5, 6, 100])


def plan(
    a: tuple[int, ...] = (M, K),
    b: tuple[int, ...] = (K, N),
    needed: Any = ("a", "b"),
    **options: Any,
) -> dict[str, Any]:
    return _kernels.plan(a, b, needed=list(needed), **options)


def sizes(planned: dict[str, Any]) -> dict[str, list[tuple[int, ...]]]:
    """For each gradient its products' sizes: outputs, terms, m, n in order, k."""
    return {
        name: [(p["outputs"], p["terms"], *sorted((p["m"], p["n"])), p["k"]) for p in products]
        for name, products in planned["products"].items()
        if name != "forward"
    }


# What an option leaves of dA [m, n, k] = [M, K, N] and of dB [K, N, M].
SCALES: dict[Any, dict[str, float]] = {"": {}, "a": {"a": 0.0}, "b": {"b": 0.0}}
REGIONS: dict[str, tuple[str, Any, int]] = {
    "no region": ("", None, 0),
    "rows of a, slice": ("a_rows", (10, 40, 1), 30),
    "rows of a, list": ("a_rows", LIST, 5),
    "columns of a, slice": ("a_columns", (-7, None, 1), 7),
    "columns of a, list": ("a_columns", LIST, 5),
    "rows of b, slice": ("b_rows", (0, 99, 3), 33),
    "rows of b, list": ("b_rows", LIST, 5),
    "columns of b, slice": ("b_columns", (20, 20, 1), 0),
    "columns of b, list": ("b_columns", LIST, 5),
}
ROW_CHOICES = {"all rows": None, "some rows": ROWS, "no row": np.zeros(M, bool)}


@pytest.mark.parametrize("needed", ["a", "b", "ab"])
@pytest.mark.parametrize("activation", ["linear", "gelu"])
@pytest.mark.parametrize("rows", ROW_CHOICES)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("zero_scale", SCALES)
def test_products_that_are_left(
    zero_scale: str, region: str, rows: str, activation: str, needed: str
) -> None:
    axis, selection, count = REGIONS[region]
    weights = ROW_CHOICES[rows]
    planned = plan(
        needed=needed,
        scales=SCALES[zero_scale],
        regions={axis: selection} if axis else {},
        rows=weights,
        activation=activation,
    )
    active = np.ones(M, bool) if weights is None else weights
    rows_of_a = active
    if axis == "a_rows":
        chosen = np.zeros(M, bool)
        chosen[slice(*selection) if isinstance(selection, tuple) else selection] = True
        rows_of_a = active & chosen
    m_a, n_a, k_a = int(rows_of_a.sum()), K, N
    m_b, n_b, k_b = K, N, int(active.sum())
    if axis == "a_columns":
        n_a = count
    if axis == "b_rows":
        m_b = count
    if axis == "b_columns":
        n_b = count
    due = {"a": (m_a, n_a, k_a), "b": (m_b, n_b, k_b)}
    assert sizes(planned) == {
        name: [(1, 1, *sorted((m, n)), k)]
        for name, (m, n, k) in due.items()
        if name in needed and name != zero_scale and m * n * k > 0
    }
    # The pass writes dZ of the active rows only, and only for a product to read.
    assert planned["writes_dz"] == (activation != "linear" and len(planned["products"]) > 1)
    if planned["writes_dz"] and rows == "some rows":
        assert planned["compacts_dz"]


@pytest.mark.parametrize(("layout", "rows", "columns"), [("normal", 5, K), ("adjoint", M, 5)])
def test_regions_are_of_operands_as_they_are_stored(layout: str, rows: int, columns: int) -> None:
    a = (M, K) if layout == "normal" else (K, M)
    planned = plan(a, layout_a=layout, needed="a", regions={"a_rows": LIST})
    assert sizes(planned) == {"a": [(1, 1, *sorted((rows, columns)), N)]}


def test_both_axes_of_a_region() -> None:
    planned = plan(
        needed="ab",
        rows=ROWS,
        regions={"a_rows": (0, 100, 1), "a_columns": LIST, "b_rows": LIST, "b_columns": (0, 9, 1)},
    )
    assert sizes(planned) == {"a": [(1, 1, 5, 25, N)], "b": [(1, 1, 5, 9, 50)]}


@pytest.mark.parametrize("layout", ["normal", "adjoint"])
@pytest.mark.parametrize("activation", ["linear", "gelu"])
def test_rows_that_hardly_save_anything_are_not_gathered(activation: str, layout: str) -> None:
    """Computing all costs less where few rows are left out.

    Where the pass writes dZ, it has zeros for them. Where it need not be written, dB's product
    reads zeros for them, and what they give to dA becomes zeros on its way out, if its rows are
    rows.
    """
    rows = np.ones(M, bool)
    rows[7] = False
    a = (M, K) if layout == "normal" else (K, M)
    planned = plan(a, layout_a=layout, rows=rows, activation=activation)
    assert sizes(planned) == {"a": [(1, 1, M, K, N)], "b": [(1, 1, N, K, M)]}
    written = activation != "linear" or layout != "normal"
    assert planned["writes_dz"] == written
    assert not planned["compacts_dz"]
    assert planned["masks_dz"] == (not written)
    assert planned["masks_da"] == (not written)


def test_weights_are_applied_once_as_dz_is_written() -> None:
    weights = np.where(ROWS, 0.5, 1.0)
    planned = plan(rows=weights)
    assert planned["writes_dz"]
    assert not planned["compacts_dz"]
    assert sizes(planned) == {"a": [(1, 1, M, K, N)], "b": [(1, 1, N, K, M)]}
    planned = plan(rows=np.where(ROWS, 0.5, 0.0))
    assert planned["compacts_dz"]
    assert sizes(planned) == {"a": [(1, 1, 50, K, N)], "b": [(1, 1, N, K, 50)]}


def test_rows_of_ones_change_nothing() -> None:
    assert plan(rows=np.ones(M)) == plan()


def test_bias_gradient_sums_active_rows_alone() -> None:
    planned = plan(needed=["bias"], rows=ROWS, activation="gelu")
    assert planned["sums_bias"]
    assert not planned["writes_dz"]
    assert not planned["compacts_dz"]
    assert not plan(needed=["bias"], rows=np.zeros(M))["pass_over_dy"]
    assert not plan(needed=["bias"], regions={"bias": (3, 3, 1)})["pass_over_dy"]


def test_rows_of_a_batch_times_a_matrix_are_one_list() -> None:
    """However they are spread over the batch: the rows of Y are those of one tall matrix."""
    rows = np.zeros((4, M), bool)
    rows[0, :10] = rows[2] = True
    planned = plan((4, M, K), rows=rows)
    assert sizes(planned) == {
        "a": [(1, 1, M + 10, K, N)],
        "b": [(1, 1, N, K, M + 10)],
    }
    # Also where the batch is stored so that its matrices are no rows of a taller one.
    planned = plan((4, K, M), layout_a="transpose", rows=rows)
    assert sizes(planned) == {
        "a": [(1, 1, M + 10, K, N)],
        "b": [(1, 1, N, K, M + 10)],
    }


def test_each_matrix_of_a_batch_has_its_own_rows() -> None:
    rows = np.zeros((3, M), bool)
    rows[0, :10] = rows[2, ::2] = True
    planned = plan((3, M, K), (3, K, N), rows=rows)
    assert sizes(planned) == {
        "a": [(1, 1, 10, K, N), (1, 1, 100, K, N)],
        "b": [(1, 1, N, K, 10), (1, 1, N, K, 100)],
    }


def test_a_matrix_that_a_batch_shares_gets_the_rows_of_all() -> None:
    """Its gradient sums over the batch, each term with other rows: dZ has zeros there."""
    rows = np.arange(3 * M).reshape(3, M) % 5 == 0
    planned = plan((M, K), (3, K, N), rows=rows)
    assert sizes(planned) == {
        "a": [(1, 3, M, K, N)],
        "b": [(1, 1, N, K, M // 5)] * 3,
    }
    assert planned["writes_dz"]
    assert not planned["compacts_dz"]


@pytest.mark.parametrize("seed", range(8))
def test_the_work_is_that_of_the_active_rows_and_selected_elements(seed: int) -> None:
    """Whatever the batch: multiply-adds are counted matrix by matrix."""
    rng = np.random.default_rng(seed)
    for batch_a, batch_b in itertools.product([(), (3,), (2, 3), (2, 1)], repeat=2):
        batch = np.broadcast_shapes(batch_a, batch_b)
        rows = rng.random((*batch, M)) < 0.3
        chosen = np.flatnonzero(rng.random(N) < 0.5)
        planned = plan(
            (*batch_a, M, K), (*batch_b, K, N), needed="b", rows=rows, regions={"b_columns": chosen}
        )
        work = sum(np.prod(size) for size in sizes(planned).get("b", []))
        assert work == rows.sum() * K * len(chosen)
