"""That the table of workloads says what it means."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from workloads import CASES, DTYPES, SUITES, Case, Layer, make_arrays, numpy_dtype

SMALL = [case for case in CASES.values() if case.flops < 1e7]


def test_suites_are_those_that_were_agreed():
    assert list(SUITES) == ["blog", "dense", "mlp", "dtypes", "batched", "overhead", "scaling"]


def test_no_two_cases_have_the_same_name():
    assert len(CASES) == sum(len(suite.cases) for suite in SUITES.values())


def test_cases_stand_in_the_suite_that_they_name():
    assert all(case.suite == name for name, suite in SUITES.items() for case in suite.cases)


def test_groups_stand_together_and_have_one_mode():
    for suite in SUITES.values():
        groups = [name for name, _ in groupby(suite.cases, lambda case: case.group) if name]
        assert len(groups) == len(set(groups))
        assert all(len(case.modes) == 1 for case in suite.cases if case.group)


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
    assert arrays.upstream.shape == arrays.target.shape == y.shape


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
    ],
)
def test_flops_are_those_of_the_products_that_must_run(key, flops):
    assert CASES[key].flops == flops
