"""Which products the backward pass needs, and of which sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from stopgrad_op import _kernels

M, K, N = 5, 7, 3
ACTIVATIONS = sorted(_kernels.activations())
SETS_OF_NEEDS = [
    needed
    for count in range(5)
    for needed in itertools.combinations(("a", "b", "bias", "z"), count)
]


def plan(
    a: tuple[int, ...] = (M, K),
    b: tuple[int, ...] = (K, N),
    needed: Any = ("a", "b"),
    **options: Any,
) -> dict[str, Any]:
    return _kernels.plan(a, b, needed=list(needed), **options)


def sizes(products: list[dict[str, Any]]) -> tuple[int, ...]:
    """How many matrices of which size: outputs, terms summed into each, m, n, k.

    m and n change places where a product is better computed transposed, which is no fact here.
    """
    (product,) = products
    m, n = sorted((product["m"], product["n"]))
    return product["outputs"], product["terms"], m, n, product["k"]


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu"])
@pytest.mark.parametrize(
    "zero_scales", [(), ("a",), ("b",), ("bias",), ("a", "b", "bias")], ids=str
)
@pytest.mark.parametrize("needed", SETS_OF_NEEDS, ids=str)
def test_only_needed_work_is_planned(
    needed: tuple[str, ...], zero_scales: tuple[str, ...], activation: str
) -> None:
    planned = plan(needed=needed, scales=dict.fromkeys(zero_scales, 0.0), activation=activation)
    works = [name for name in needed if name not in zero_scales]
    products = {name for name in ("a", "b") if name in works}
    due = {"forward": (1, 1, N, M, K), "a": (1, 1, M, K, N), "b": (1, 1, N, K, M)}
    assert {name: sizes(product) for name, product in planned["products"].items()} == {
        name: due[name] for name in ("forward", *products)
    }
    # Where the activation is linear, the products read dy itself.
    writes_dz = "z" in needed or (activation != "linear" and bool(products))
    assert planned["writes_dz"] == writes_dz
    assert planned["sums_bias"] == ("bias" in works)
    assert planned["pass_over_dy"] == (writes_dz or "bias" in works)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_but_linear_needs_dz_for_a_product(activation: str) -> None:
    assert plan(needed="a", activation=activation)["writes_dz"] == (activation != "linear")
    assert not plan(needed=["bias"], activation=activation)["writes_dz"]


def test_scales_become_factors_of_their_own_products() -> None:
    products = plan(scales={"a": 0.5, "b": -2.0, "bias": 3.0})["products"]
    assert {name: product["alpha"] for name, (product,) in products.items()} == {
        "forward": 1,
        "a": 0.5,
        "b": -2,
    }


@pytest.mark.parametrize(
    ("a", "b", "left"),
    [
        ((0, 7), (7, 3), set()),  # no rows: db is zeros, da is empty
        ((5, 0), (0, 3), set()),  # nothing to learn from
        ((5, 7), (7, 0), set()),  # no columns: da is zeros, db is empty
        ((0, 5, 7), (7, 3), set()),  # an empty batch
        ((2, 0, 5, 7), (2, 1, 7, 3), set()),
        ((1, 1), (1, 1), {"a", "b"}),
    ],
)
def test_empty_products_are_left_out(
    a: tuple[int, ...], b: tuple[int, ...], left: set[str]
) -> None:
    assert plan(a, b)["products"].keys() - {"forward"} == left


@pytest.mark.parametrize(
    ("a", "b", "forward", "grad_a", "grad_b"),
    [
        # outputs, terms, and the sizes with m and n in order
        # A batch of activations times one weight matrix is one tall product, each way.
        ((11, M, K), (K, N), (1, 1, N, 11 * M, K), (1, 1, K, 11 * M, N), (1, 1, N, K, 11 * M)),
        ((2, 3, M, K), (K, N), (1, 1, N, 6 * M, K), (1, 1, K, 6 * M, N), (1, 1, N, K, 6 * M)),
        ((2, 3, M, K), (1, 1, K, N), (1, 1, N, 6 * M, K), (1, 1, K, 6 * M, N), (1, 1, N, K, 6 * M)),
        # One matrix times a batch: its gradient is a sum over the batch. A normal b's columns do
        # not lie seamlessly behind each other.
        ((M, K), (11, K, N), (11, 1, N, M, K), (1, 11, M, K, N), (11, 1, N, K, M)),
        # No broadcasting: as many products as matrices, none summed.
        ((11, M, K), (11, K, N), (11, 1, N, M, K), (11, 1, M, K, N), (11, 1, N, K, M)),
        # Both ways: the dimension that a lacks sums into da, the other one into db.
        ((2, 1, M, K), (3, K, N), (6, 1, N, M, K), (2, 3, M, K, N), (3, 2, N, K, M)),
        ((1, 1, M, K), (1, K, N), (1, 1, N, M, K), (1, 1, M, K, N), (1, 1, N, K, M)),
    ],
    ids=str,
)
def test_batches_fold_and_sum(
    a: tuple[int, ...],
    b: tuple[int, ...],
    forward: tuple[int, ...],
    grad_a: tuple[int, ...],
    grad_b: tuple[int, ...],
) -> None:
    products = plan(a, b)["products"]
    assert sizes(products["forward"]) == forward
    assert sizes(products["a"]) == grad_a
    assert sizes(products["b"]) == grad_b


def test_inner_dimensions_fold_where_outer_ones_cannot() -> None:
    # [2, 3, M, K] @ [2, 1, K, N]: the 3 joins the rows, the 2 stays.
    products = plan((2, 3, M, K), (2, 1, K, N))["products"]
    assert sizes(products["forward"]) == (2, 1, N, 3 * M, K)
    assert sizes(products["a"]) == (2, 1, K, 3 * M, N)
    assert sizes(products["b"]) == (2, 1, N, K, 3 * M)


def test_transposed_batch_does_not_fold_into_rows() -> None:
    # Stored [11, K, M], the rows of one matrix are not followed by the next one's.
    products = plan((11, K, M), (K, N), layout_a="transpose")["products"]
    assert sizes(products["forward"]) == (11, 1, N, M, K)
    assert sizes(products["b"]) == (1, 11, N, K, M)


def test_transposed_batch_of_b_folds_into_columns_only_if_y_allows() -> None:
    # Stored [11, N, K], the columns of b do follow each other, and those of y do not.
    products = plan((M, K), (11, N, K), layout_b="transpose")["products"]
    assert sizes(products["forward"]) == (11, 1, N, M, K)


@pytest.mark.parametrize("layout_a", ["normal", "transpose", "adjoint"])
@pytest.mark.parametrize("layout_b", ["normal", "transpose", "adjoint"])
def test_layouts_change_no_sizes(layout_a: str, layout_b: str) -> None:
    a = (M, K) if layout_a == "normal" else (K, M)
    b = (K, N) if layout_b == "normal" else (N, K)
    products = plan(a, b, layout_a=layout_a, layout_b=layout_b)["products"]
    assert sizes(products["forward"]) == (1, 1, N, M, K)
    assert sizes(products["a"]) == (1, 1, M, K, N)
    assert sizes(products["b"]) == (1, 1, N, K, M)


def test_folding_never_changes_the_work() -> None:
    """Outputs, terms and sizes multiply to 2 m n k a matrix, folded or not."""
    shapes = [(), (1,), (4,), (2, 4), (2, 1), (1, 4), (3, 2, 4), (3, 1, 1)]
    for batch_a, batch_b in itertools.product(shapes, repeat=2):
        try:
            products = plan((*batch_a, M, K), (*batch_b, K, N))["products"]
        except ValueError:  # these do not broadcast
            continue
        rank = max(len(batch_a), len(batch_b))
        padded = zip(
            (1,) * (rank - len(batch_a)) + batch_a,
            (1,) * (rank - len(batch_b)) + batch_b,
            strict=True,
        )
        matrices = 1
        for extents in padded:
            matrices *= max(extents)
        for product in products.values():
            outputs, terms, m, n, k = sizes(product)
            assert outputs * terms * m * n * k == matrices * M * N * K, (batch_a, batch_b)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ((5,), (7, 3), {}, r"`a` must have rank 2 or more.*\[5\]"),
        ((5, 7), (), {}, r"`b` must have rank 2 or more.*\[\]"),
        ((5, 7), (6, 3), {}, r"`b` must have as many rows.*7.*6.*\[5, 7\].*\[6, 3\]"),
        ((5, 7), (7, 3), {"layout_a": "transpose"}, r"columns, 5.*\[5, 7\] \(transpose\)"),
        ((5, 7), (7, 3), {"layout_b": "adjoint"}, r"\[7, 3\] \(adjoint\)"),
        ((2, 5, 7), (3, 7, 3), {}, r"batch dimensions.*\[2, 5, 7\].*\[3, 7, 3\]"),
        ((5, 7), (7, 3), {"layout_a": "upside"}, '`layout_a` is "upside"; due is "normal"'),
        ((5, 7), (7, 3), {"activation": "rleu"}, '`activation` "rleu"'),
        ((5, 7), (7, 3), {"needed": ["w"]}, '`needed` has "w"; due are "a", "b", "bias" and "z"'),
        ((5, 7), (7, 3), {"scales": {"z": 1.0}}, '`scales` has "z"; due are "a", "b" and "bias"'),
    ],
)
def test_bad_arguments_are_named(
    a: tuple[int, ...], b: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(a, b, **options)
