"""`sg.matmul` on random shapes, dtypes and options, against float64, in every mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import stock
from hypothesis import assume, given, settings
from modes import KERNEL_MODES, Mode, mode_id
from reference import ACTIVATIONS, COMPLEX, FLOATING, INTEGERS, LAYOUTS, Problem

import stopgrad_op as sg

# Not compiled by XLA, which takes a second for each example; test_gradient_control.py has that.
every_mode = pytest.mark.parametrize("mode", KERNEL_MODES, ids=mode_id)
OPERANDS = ("a", "b", "bias")
SIZES = st.sampled_from([0, 1, 2, 3, 5, 7, 13, 31])


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Batch dimensions of a and b that broadcast."""
    full = draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3))

    def part() -> tuple[int, ...]:
        kept = [draw(st.sampled_from([extent, 1])) for extent in full]
        return tuple(kept[draw(st.integers(0, len(full))) :])

    return part(), part()


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[str, ...]) -> tuple[Problem, str]:
    dtype = draw(st.sampled_from(dtypes))
    batch_a, batch_b = draw(batches())
    m, k, n = draw(SIZES), draw(SIZES), draw(SIZES)
    activation = draw(st.sampled_from(sorted(ACTIVATIONS))) if dtype in FLOATING else "linear"
    problem = reference.random_problem(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        (*batch_a, m, k),
        (*batch_b, k, n),
        dtype,
        bias=draw(st.booleans()),
        layout_a=draw(st.sampled_from(LAYOUTS)),
        layout_b=draw(st.sampled_from(LAYOUTS)),
        activation=activation,
    )
    return problem, dtype


@dataclass(frozen=True)
class Policy:
    """A way to write which gradients are wanted, and what it means."""

    stop_gradient: Any
    blocked: tuple[str, ...]
    gradient_scale: Any
    scales: dict[str, float]


@st.composite
def policies(draw: st.DrawFn, has_bias: bool) -> Policy:
    operands = OPERANDS if has_bias else OPERANDS[:2]
    blocked = tuple(name for name in operands if draw(st.booleans()))
    spellings: list[Any] = [blocked, list(blocked), set(blocked), frozenset(blocked), blocked * 2]
    if not blocked:
        spellings += [None, False]
    if len(blocked) == 1:
        spellings += [blocked[0]]
    if blocked == operands:
        spellings += [True]
    scale = st.sampled_from([0.0, 1.0, 0.5, -1.0, 3, 0.1, np.float32(0.25)])
    gradient_scale = draw(
        st.one_of(st.none(), scale, st.dictionaries(st.sampled_from(operands), scale))
    )
    if gradient_scale is None:
        scales = {}
    elif isinstance(gradient_scale, dict):
        scales = gradient_scale
    else:
        scales = dict.fromkeys(operands, gradient_scale)
    return Policy(
        draw(st.sampled_from(spellings)),
        blocked,
        gradient_scale,
        {name: float(value) for name, value in scales.items()},
    )


@every_mode
@settings(max_examples=150)
@given(data=st.data())
def test_forward_is_as_near_as_stock(mode: Mode, data: st.DataObject) -> None:
    problem, dtype = data.draw(problems((*FLOATING, *COMPLEX)))
    operands = stock.operands_of(problem)
    options = stock.options_of(problem)

    def ours(a: Any, b: Any, bias: Any = None) -> Any:
        return sg.matmul(a, b, bias=bias, **options)

    y = mode.run(ours, *operands)
    exact = reference.forward(problem)
    stock_error = stock.errors(problem, dtype, np.ones_like(y))["y"]
    reference.assert_close(y, exact, dtype, stock_error)


@every_mode
@settings(max_examples=60)
@given(data=st.data())
def test_integers_wrap_around_exactly(mode: Mode, data: st.DataObject) -> None:
    problem, dtype = data.draw(problems(INTEGERS))
    options = stock.options_of(problem)
    y = mode.run(
        lambda a, b, bias=None: sg.matmul(a, b, bias=bias, **options), *stock.operands_of(problem)
    )
    reference.assert_close(y, reference.forward(problem), dtype)


@every_mode
@settings(max_examples=200)
@given(data=st.data())
def test_gradients_are_as_near_as_stock_and_none_where_blocked(
    mode: Mode, data: st.DataObject
) -> None:
    problem, dtype = data.draw(problems((*FLOATING, *COMPLEX)))
    assume(reference.crosses_no_kink(problem, dtype))
    operands = stock.operands_of(problem)
    policy = data.draw(policies(len(operands) == 3))
    dy = reference.random_array(
        np.random.default_rng(1), reference.preactivation(problem).value.shape, dtype
    )

    def ours(a: Any, b: Any, bias: Any = None) -> Any:
        return sg.matmul(
            a,
            b,
            bias=bias,
            stop_gradient=policy.stop_gradient,
            gradient_scale=policy.gradient_scale,
            **stock.options_of(problem),
        )

    y, gradients = mode.gradients(ours, operands, dy)
    errors = stock.errors(problem, dtype, dy, policy.blocked, policy.scales)
    reference.assert_close(y, reference.forward(problem), dtype, errors["y"], "y")
    exact = reference.gradients(problem, dy, policy.scales)
    for name, gradient in zip(OPERANDS, gradients, strict=False):
        if name in policy.blocked:
            assert gradient is None, f"the gradient of {name} is blocked and is {gradient}"
            continue
        assert gradient is not None, f"the gradient of {name} is None"
        reference.assert_close(gradient, exact[name], dtype, errors[name], f"gradient of {name}")
        if policy.scales.get(name) == 0:
            assert not np.any(gradient)
