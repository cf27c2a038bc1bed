"""That the table of workloads says what it means."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

import workloads
from workloads import CASES, DTYPES, SUITES, Case, Layer, Part, make_arrays, numpy_dtype

SMALL = [case for case in CASES.values() if case.flops < 1e7]


def test_suites_are_those_that_were_agreed():
    assert list(SUITES) == [
        "blog",
        "dense",
        "mlp",
        "dtypes",
        "batched",
        "overhead",
        "control",
        "scaling",
        "memory",
        "xla",
    ]


def test_no_two_cases_have_the_same_name():
    assert len(CASES) == sum(len(suite.cases) for suite in SUITES.values())


def test_cases_stand_in_the_suite_that_they_name():
    assert all(case.suite == name for name, suite in SUITES.items() for case in suite.cases)


def test_groups_stand_together_and_have_the_same_modes():
    for suite in SUITES.values():
        groups = [name for name, _ in groupby(suite.cases, lambda case: case.group) if name]
        assert len(groups) == len(set(groups))
        for name in groups:
            assert len({case.modes for case in suite.cases if case.group == name}) == 1


def test_xla_compiles_the_steps_that_run_in_a_function():
    steps = [
        case
        for name in ("dense", "mlp", "control")
        for case in SUITES[name].cases
        if "function" in case.modes and not case.name.startswith(("output rows", "columns"))
    ]
    cases = SUITES["xla"].cases
    assert {case.modes for case in cases} == {("xla",)}
    assert [case.name for case in cases] == [case.name for case in steps]
    assert [case.layers for case in cases] == [case.layers for case in steps]
    # They are not compared with each other, as targets compare cases of a group.
    assert {case.group for case in cases} == {None}


def test_layers_of_a_chain_fit():
    for case in CASES.values():
        width = case.x[-1]
        for layer in case.layers:
            k, n = layer.weights[-2:]
            if layer.transposed:
                k, n = n, k
            assert k == width, case.key
            width = n


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.key)
def test_upstream_gradient_has_the_shape_of_the_output(case):
    arrays = make_arrays(case)
    y = arrays.x
    for layer, w in zip(case.layers, arrays.weights, strict=True):
        y = y @ (np.swapaxes(w, -1, -2) if layer.transposed else w)
    assert arrays.upstream.shape == y.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_have_the_dtype_and_are_the_same_each_time(dtype):
    pytest.importorskip("ml_dtypes")
    case = Case("", "", "forward", (3, 4), (Layer((4, 5)),), dtype=dtype)
    first, second = make_arrays(case), make_arrays(case)
    assert first.x.dtype == first.weights[0].dtype == numpy_dtype(dtype)
    np.testing.assert_array_equal(first.x, second.x)
    assert len(np.unique(first.x)) > 3


def test_frozen_half_blocks_what_nobody_below_needs():
    # Three layers, the first one frozen.
    case = CASES["mlp/784-512-512-10 at 128, half frozen"]
    assert [case.needs(i) for i in range(3)] == [(), ("b", "bias"), ("a", "b", "bias")]
    assert [case.blocked(i) for i in range(3)] == [("a", "b", "bias"), ("a",), ()]


@pytest.mark.parametrize(
    ("key", "flops"),
    [
        # 2 m k n for each product that must run.
        ("dense/16×64×64 relu, forward", 2 * 16 * 64 * 64),
        ("dense/16×64×64 relu, gradients", 3 * 2 * 16 * 64 * 64),
        ("dense/backward 256×1024×1024, full", 2 * 2 * 256 * 1024 * 1024),
        ("dense/backward 256×1024×1024, input blocked", 2 * 256 * 1024 * 1024),
        ("dense/backward 256×1024×1024, weights blocked", 2 * 256 * 1024 * 1024),
        ("dtypes/complex64", 8 * 512**3),
        ("batched/queries × keys, forward", 2 * 32 * 12 * 128 * 64 * 128),
        # Forward 2·3·2·3 and 2·3·3·4; of the gradients, the second weights' alone.
        ("blog/3×2 → 3 → 4, first product blocked", 36 + 72 + 72),
        # The forward and dX; of dW 102 columns or rows.
        ("control/a tenth of the columns", 2 * 512 * 1024 * (2 * 1024 + 102)),
        ("control/a tenth of the rows, by index", 2 * 512 * 1024 * (2 * 1024 + 102)),
        # Both gradients from a quarter of the rows.
        ("control/a quarter of the output rows", 2 * (512 + 2 * 128) * 1024**2),
        ("control/scale 0 on the weights", 2 * 2 * 512 * 1024**2),
        ("control/scale 0 on all", 2 * 512 * 1024**2),
        ("control/output rows active: 0", 2 * 512 * 1024**2),
        ("control/columns trainable: 0", 2 * 2 * 512 * 1024**2),
        ("control/columns trainable: 1", 3 * 2 * 512 * 1024**2),
    ],
)
def test_flops_are_those_of_the_products_that_must_run(key, flops):
    assert CASES[key].flops == flops


@pytest.mark.parametrize("control", [{"active_rows": 0.5}, {"trainable": Part("rows", 0.5)}])
def test_part_and_active_rows_count_together_with_what_is_needed(control):
    layer = Layer((8, 6), **control)
    for kind, x_learns, runs in (
        ("forward", True, 1),
        ("backward", False, 0.5),
        ("gradients", False, 1.5),
    ):
        case = Case("", "", kind, (4, 8), (layer,), x_learns=x_learns)
        assert case.flops == runs * 2 * 4 * 8 * 6


@pytest.mark.parametrize(
    ("part", "learning"),
    [
        (Part("columns", 0.4), [[0, 0, 0, 1, 1]] * 4),
        (Part("rows", 0.25), [[0] * 5] * 3 + [[1] * 5]),
        (Part("columns", 0), [[0] * 5] * 4),
    ],
)
def test_part_is_the_last_rows_or_columns(part, learning):
    case = Case("", "", "gradients", (3, 4), (Layer((4, 5), trainable=part),))
    np.testing.assert_array_equal(make_arrays(case).learning[0], np.array(learning, bool))


def test_part_by_index_is_spread_and_as_large_as_it_says():
    mask = make_arrays(CASES["control/a tenth of the rows, by index"]).learning[0]
    rows = np.flatnonzero(mask.any(axis=1))
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
    assert len(rows) == 102
    assert np.diff(rows).max() > 1


@pytest.mark.parametrize(("case", "active"), [("a quarter of", 128), ("98 % of", 502)])
def test_active_rows_are_as_many_as_the_share_says(case, active):
    mask = make_arrays(CASES[f"control/{case} the output rows"]).active[0]
    assert (mask.shape, mask.dtype, mask.sum()) == ((512,), bool, active)
    assert np.diff(np.flatnonzero(mask)).max() > 1


ON_GPU = [case for case in CASES.values() if "gpu" in case.devices]


def test_sizes_of_a_gpu_are_those_that_were_agreed():
    keys = {case.key for case in ON_GPU}
    for dtype in ("bfloat16", "float32"):
        for size in ("8192×1024×4096", "8192×4096×1024", "8192×4096×16384", "8192×16384×4096"):
            assert {
                f"dense/{size} {dtype} gelu, {kind}" for kind in ("forward", "gradients")
            } < keys
        for widths, batch in (
            ("1024-4096-1024", 8192),
            ("4096-16384-4096", 8192),
            ("479-1024-1024-512-256-1", 32768),
        ):
            for frozen in ("nothing frozen", "all but the head frozen"):
                assert f"mlp/{widths} at {batch} {dtype}, {frozen}" in keys
        assert f"mlp/479-1024-1024-512-256-1 at 32768 {dtype}, half frozen" in keys
    assert {case.key for case in SUITES["overhead"].cases} < keys


def test_cases_say_their_dtype_where_there_are_several():
    several = [case for case in ON_GPU if case.devices == ("gpu",) and case.suite != "memory"]
    assert all(case.dtype in case.name for case in several)


def test_large_arrays_repeat_and_no_two_rows_are_the_same(monkeypatch):
    monkeypatch.setattr(workloads, "_DRAWN", 101)
    arrays = make_arrays(Case("", "", "forward", (40, 50), (Layer((50, 30)),)))
    assert len(np.unique(arrays.x)) == 101
    assert len(np.unique(arrays.x, axis=0)) == 40
    assert abs(arrays.x.std() - 1) < 0.3


def test_stack_whose_memory_is_measured_ends_in_a_head_that_alone_learns():
    inference, frozen, whole = SUITES["memory"].cases
    assert inference.kind == "forward"
    assert [layer.learns for layer in frozen.layers] == [False] * 8 + [True]
    assert [layer.learns for layer in whole.layers] == [True] * 9
    assert inference.layers == whole.layers
    assert (inference.x, inference.dtype) == (frozen.x, frozen.dtype) == (whole.x, whole.dtype)
