"""What XLA gets to compile: as many dots as there are gradients to compute, of what learns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from modes import needs_xla

import stopgrad_op as sg

pytestmark = needs_xla

M, K, N = 12, 10, 8
OPERANDS = ("a", "b", "bias")


def operands(rng: np.random.Generator) -> list[tf.Tensor]:
    return [tf.constant(rng.standard_normal(shape)) for shape in ((M, K), (K, N), (N,))]


def step(**options: Any) -> Callable[..., Any]:
    """Return a function of a, b and bias to y and all gradients."""

    @tf.function(jit_compile=True)
    def run(a: tf.Tensor, b: tf.Tensor, bias: tf.Tensor, *controls: tf.Tensor) -> Any:
        given = {
            name: value(*controls) if callable(value) else value for name, value in options.items()
        }
        with tf.GradientTape() as tape:
            tape.watch([a, b, bias])
            y = sg.matmul(a, b, bias=bias, **given)
        return y, tape.gradient(y, [a, b, bias])

    return run


def program(function: Callable[..., Any], *arguments: Any) -> str:
    """Return the HLO that XLA gets, before it changes anything."""
    text: str = function.experimental_get_compiler_ir(*arguments)(stage="hlo")
    return text


def dots(text: str) -> list[int]:
    """Return the number of multiply-adds of each dot, sorted."""
    found = []
    shapes = dict(re.findall(r"(\S+) = \w+\[([\d,]*)\]", text))
    result, operand = r"= \w+\[([\d,]*)\]\S* ", r"(?:\w+\[[\d,]*\]\S* )?(\S+), "
    of_dots = rf"{result}dot\({operand}.*lhs_contracting_dims=\{{([\d,]*)\}}"
    for sizes, left, contracted in re.findall(of_dots, text):
        extents = [int(size) for size in shapes[left].split(",")]
        sums = math.prod(extents[int(dim)] for dim in contracted.split(","))
        found.append(math.prod(map(int, sizes.split(","))) * sums)
    return sorted(found)


WHOLE = M * K * N


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({}, [WHOLE] * 3),
        ({"stop_gradient": "a"}, [WHOLE] * 2),
        ({"stop_gradient": "b"}, [WHOLE] * 2),
        ({"stop_gradient": True}, [WHOLE]),
        ({"gradient_scale": {"b": 0.0}}, [WHOLE] * 2),
        ({"gradient_scale": 0.0}, [WHOLE]),
        ({"trainable": {"b": np.s_[:, 6:]}}, [M * K * 2, WHOLE, WHOLE]),
        ({"trainable": {"b": np.s_[::3]}}, [M * 4 * N, WHOLE, WHOLE]),
        ({"trainable": {"a": sg.rows([1, 5, 7])}}, [3 * K * N, WHOLE, WHOLE]),
        ({"trainable": {"b": sg.columns([0, 3])}}, [M * K * 2, WHOLE, WHOLE]),
        ({"trainable": {"b": np.s_[2:2]}}, [WHOLE] * 2),
    ],
)
def test_dots_are_those_of_what_learns(
    options: dict[str, Any], due: list[int], activation: str | None, rng: np.random.Generator
) -> None:
    text = program(step(activation=activation, **options), *operands(rng))
    assert dots(text) == due
    assert "custom-call" not in text


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_dots_come_out_as_the_results_are_stored(
    transpose_a: bool, transpose_b: bool, rng: np.random.Generator
) -> None:
    a, b, bias = operands(rng)
    a, b = (
        tf.transpose(matrix) if is_transposed else matrix
        for matrix, is_transposed in ((a, transpose_a), (b, transpose_b))
    )
    text = program(step(transpose_a=transpose_a, transpose_b=transpose_b), a, b, bias)
    assert dots(text) == [WHOLE] * 3
    moved = {
        dims for dims in re.findall(r"transpose\(.*dimensions=\{([\d,]*)\}", text) if dims != "0,1"
    }
    assert moved == set()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_relus_gradient_is_a_select(activation: str, rng: np.random.Generator) -> None:
    text = program(step(activation=activation), *operands(rng))
    assert " select(" in text
    assert " multiply(" not in text


def test_a_scale_at_run_time_chooses_whether_the_dot_runs(rng: np.random.Generator) -> None:
    function = step(gradient_scale=lambda scale: {"b": scale})
    arrays = operands(rng)
    text = program(function, *arrays, tf.constant(0.0))
    in_branches = [
        part for part in re.split(r"\n\n", text) if part.startswith("%") or "dot(" in part
    ]
    assert "conditional(" in text
    branch = next(part for part in in_branches if "product" in part.splitlines()[0])
    assert dots(branch) == [WHOLE]
    assert dots(text) == [WHOLE] * 3
    a, b, bias = arrays
    for scale in (0.0, 2.5, -1.0):
        y, (da, db, dbias) = function(*arrays, tf.constant(scale))
        np.testing.assert_allclose(y, a @ b + bias)
        np.testing.assert_allclose(da, np.ones((M, N)) @ b.numpy().T)
        np.testing.assert_allclose(db, scale * (a.numpy().T @ np.ones((M, N))))
        np.testing.assert_allclose(dbias, np.full(N, float(M)))
    assert np.isnan(function(*arrays, tf.constant(np.nan))[1][1]).all()


def test_a_scale_of_zero_leaves_out_what_is_infinite(rng: np.random.Generator) -> None:
    a, b, bias = operands(rng)
    infinite = tf.fill(a.shape, tf.constant(np.inf, a.dtype))
    _, (_, db, _) = step(gradient_scale=lambda scale: scale)(infinite, b, bias, tf.constant(0.0))
    np.testing.assert_array_equal(db, np.zeros((K, N)))


@pytest.mark.parametrize(
    ("index", "compact"), [("rows", False), ("rows", True), ("columns", False)]
)
def test_indices_that_are_no_constants(index: str, compact: bool, rng: np.random.Generator) -> None:
    """Under a tape outside, the backward function is another one, and gets them as arguments."""
    a, b, _ = operands(rng)
    chosen = [0, 3, 7]
    selection = getattr(sg, index)(chosen, **({"indexed_slices": True} if compact else {}))

    @tf.function(jit_compile=True)
    def forward(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return sg.matmul(a, b, trainable={"b": selection}, gradient_scale={"b": 3.0})

    with tf.GradientTape() as tape:
        tape.watch(b)
        y = forward(a, b)
    gradient = tf.convert_to_tensor(tape.gradient(y, b))
    due = np.zeros((K, N))
    where: Any = chosen if index == "rows" else (slice(None), chosen)
    due[where] = 3 * (a.numpy().T @ np.ones((M, N)))[where]
    np.testing.assert_allclose(gradient, due)


def test_rows_are_selects(rng: np.random.Generator) -> None:
    rows = rng.random(M) < 0.5
    function = step(gradient_rows=lambda rows: rows)
    arrays = operands(rng)
    upstream = rows[:, None] * np.ones((M, N))
    _, (da, db, dbias) = function(*arrays, tf.constant(rows))
    np.testing.assert_allclose(da, upstream @ arrays[1].numpy().T)
    np.testing.assert_allclose(db, arrays[0].numpy().T @ upstream)
    np.testing.assert_allclose(dbias, upstream.sum(0))
    assert dots(program(function, *arrays, tf.constant(rows))) == [WHOLE] * 3


def _errors() -> Sequence[tuple[Callable[..., Any], list[Any], str]]:
    def product(a: Any, b: Any) -> Any:
        return sg.matmul(a, b)

    def with_rows(a: Any, rows: Any) -> Any:
        return sg.matmul(a, tf.ones((K, N)), gradient_rows=rows)

    def with_region(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(b)
            y = sg.matmul(a, b, trainable={"b": sg.rows([3, 40])})
        return tape.gradient(y, b)

    matrix, unknown = tf.TensorSpec((None, None)), tf.TensorSpec(None)
    return [
        (tf.function(product, [matrix, matrix], jit_compile=True), [(2, 3), (4, 5)], "`b`"),
        (tf.function(product, [unknown, unknown], jit_compile=True), [(3,), (3, 5)], "`a`"),
        (
            tf.function(with_rows, [matrix, unknown], jit_compile=True),
            [(M, K), (5,)],
            "gradient_rows",
        ),
        (tf.function(with_region, [matrix, matrix], jit_compile=True), [(M, K), (K, N)], "row 40"),
    ]


@pytest.mark.parametrize("case", range(4))
def test_errors_name_the_argument(case: int) -> None:
    function, shapes, named = _errors()[case]
    with pytest.raises(tf.errors.InvalidArgumentError, match=named):
        function(*map(tf.ones, shapes))
