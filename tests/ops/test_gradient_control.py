"""Scales, rows and regions together: the gradients that stock TensorFlow gives, in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import stock
import tensorflow as tf
from cases import OPERANDS, Case, Chooser, written
from modes import GRAPH, MODES, Mode, mode_id
from reference import COMPLEX, FLOATING

import stopgrad_op as sg

every_mode = pytest.mark.parametrize("mode", MODES, ids=mode_id)


def check(case: Case, mode: Mode, dtype: str, rng: np.random.Generator) -> None:
    problem = case.problem
    dy = reference.random_array(rng, reference.preactivation(problem).value.shape, dtype)

    def ours(a: Any, b: Any, bias: Any = None) -> Any:
        scale = written(case.gradient_scale, mode)
        return sg.matmul(a, b, bias=bias, gradient_scale=scale, **case.options)

    y, gradients = mode.gradients(ours, stock.operands_of(problem), dy)
    errors = stock.errors(problem, dtype, dy, case.blocked, case.scales, case.rows, case.masks)
    exact = reference.gradients(problem, dy, case.scales, rows=case.rows, regions=case.masks)
    reference.assert_close(y, reference.forward(problem), dtype, errors["y"], f"y of {case}")
    for name, gradient in zip(OPERANDS, gradients, strict=False):
        what = f"gradient of {name} in {case}"
        assert (gradient is None) == (name in case.blocked), what
        if gradient is not None:
            reference.assert_close(gradient, exact[name], dtype, errors[name], what)
            assert not np.any(gradient[exact[name].magnitude == 0]), what


@every_mode
@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
def test_everything_combined_gives_what_stock_gives(
    rng: np.random.Generator, mode: Mode, dtype: str
) -> None:
    chooser = Chooser(rng)
    tested = 0
    while tested < 12:
        case = chooser.case(dtype)
        if reference.crosses_no_kink(case.problem, dtype):
            check(case, mode, dtype, rng)
            tested += 1


# --- Where nobody knows which gradients are used -----------------------------------------------
M, K, N = 5, 7, 3


def zero(like: tf.Tensor) -> tf.Tensor:
    """Return 0, which is not known before anything runs."""
    return tf.reduce_sum(tf.zeros_like(like))


NOTHING_LEARNS: dict[str, Any] = {
    "scales": lambda a: {"gradient_scale": zero(a)},
    "rows": lambda a: {"gradient_rows": tf.fill((M,), zero(a))},
}


def dense(control: Any) -> Any:
    return lambda a, b, bias: sg.matmul(a, b, bias=bias, activation="gelu", **control(a))


@pytest.mark.parametrize("control", NOTHING_LEARNS.values(), ids=NOTHING_LEARNS)
def test_no_pass_runs_before_products_that_may_not(rng: np.random.Generator, control: Any) -> None:
    arrays = [rng.standard_normal(shape) for shape in ((M, K), (K, N), (N,))]
    sg.reset_kernel_stats()
    _, gradients = GRAPH.gradients(dense(control), arrays, rng.standard_normal((M, N)))
    for array, gradient in zip(arrays, gradients, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(array))
    assert sg.kernel_stats()["backward"]["products"] == 0
    assert needed_by_node(control) == [["a"], ["b"], ["bias"]]


@pytest.mark.parametrize("scale", [-1.0, {"a": 0.5}])
def test_one_pass_runs_before_products_that_will(scale: Any) -> None:
    due = [["a"], ["b"], ["bias", "z"]]
    assert needed_by_node(lambda _: {"gradient_scale": scale}) == due


def needed_by_node(control: Any) -> list[list[str]]:
    with tf.Graph().as_default() as graph:
        operands = [tf.compat.v1.placeholder(tf.float32, x) for x in ((M, K), (K, N), (N,))]
        tf.gradients(dense(control)(*operands), operands)
        nodes = [x for x in graph.get_operations() if x.type == "StopgradOp>FusedMatMulGrad"]
    return sorted([name.decode() for name in node.get_attr("needed")] for node in nodes)
