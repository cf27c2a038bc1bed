"""`tf.vectorized_map` and `tape.jacobian`: one batched product, with the numbers of a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference
import stock
import tensorflow as tf
from cases import Case, Chooser, written
from modes import EAGER, needs_xla
from reference import ACTIVATIONS

import stopgrad_op as sg

STEPS = 3
LOOPS = {"While", "StatelessWhile"}
Function = Callable[..., Any]


def run(function: Function, arguments: Sequence[Any]) -> tuple[list[Any], Counter[str]]:
    """Return the results, and the types of the graph's nodes."""
    concrete = tf.function(function).get_concrete_function(*map(tf.constant, arguments))
    graphs = [concrete.graph.as_graph_def()]
    nodes = [*graphs[0].node, *(n for f in graphs[0].library.function for n in f.node_def)]
    results = concrete(*map(tf.constant, arguments))
    return [to_numpy(x) for x in tf.nest.flatten(results)], Counter(node.op for node in nodes)


def to_numpy(x: Any) -> Any:
    return None if x is None else tf.convert_to_tensor(x).numpy()


def one_by_one(function: Function, arguments: Sequence[Any], stacked: Sequence[bool]) -> list[Any]:
    """Return what the function gives for each step, stacked."""
    steps = []
    for step in range(STEPS):
        chosen = [x[step] if s else x for x, s in zip(arguments, stacked, strict=True)]
        results = tf.nest.flatten(function(*map(tf.constant, chosen)))
        steps.append(list(map(to_numpy, results)))
    return [np.stack(each) for each in zip(*steps, strict=True)]


def vectorized(function: Function, stacked: Sequence[bool]) -> Function:
    """Map over the arguments that are stacked; the others are the same in all steps."""

    def mapped(*arguments: Any) -> Any:
        def step(elements: Any) -> Any:
            values = iter(elements)
            return function(
                *(next(values) if s else x for x, s in zip(arguments, stacked, strict=True))
            )

        elements = [x for x, s in zip(arguments, stacked, strict=True) if s]
        return tf.vectorized_map(step, elements)

    return mapped


def assert_close(results: Sequence[Any], due: Sequence[Any], what: object = "") -> None:
    assert len(results) == len(due)
    for index, (mine, exact) in enumerate(zip(results, due, strict=True)):
        scale = max(1.0, float(np.abs(exact).max(initial=0)))
        np.testing.assert_allclose(
            mine, exact, rtol=1e-10, atol=1e-11 * scale, err_msg=f"{index} of {what}"
        )


def call_of(case: Case) -> Function:
    def call(a: Any, b: Any, bias: Any = None) -> Any:
        scale = written(case.gradient_scale, EAGER)
        return sg.matmul(a, b, bias=bias, gradient_scale=scale, **case.options)

    return call


def with_gradients(case: Case) -> Function:
    """Return a function to the result and the gradients, without those that are None."""

    def step(dy: Any, *operands: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(operands)
            y = call_of(case)(*operands)
        gradients = tape.gradient(y, operands, output_gradients=dy)
        return [y, *(tf.convert_to_tensor(g) for g in gradients if g is not None)]

    return step


@pytest.mark.parametrize("seed", range(20))
def test_a_step_forward_and_back_gives_what_a_loop_gives(seed: int) -> None:
    """Any of the operands and dy may be stacked; scales, rows, regions as they come."""
    rng = np.random.default_rng(seed)
    chooser = Chooser(rng)
    case = chooser.case("complex128" if seed % 5 == 0 else "float64")
    arrays = stock.operands_of(case.problem)
    dy = reference.random_array(
        rng, reference.preactivation(case.problem).value.shape, str(arrays[0].dtype)
    )
    stacked = [chooser.chance(0.5) for _ in range(1 + len(arrays))]
    stacked[seed % len(stacked)] = True
    arguments = [
        np.stack([x * factor for factor in (1.0, -0.5, 0.25)]) if s else x
        for x, s in zip((dy, *arrays), stacked, strict=True)
    ]
    function = with_gradients(case)
    results, _ = run(vectorized(function, stacked), arguments)
    assert_close(results, one_by_one(function, arguments, stacked), case)


M, K, N = 4, 5, 3


@pytest.mark.parametrize(
    ("activation", "shape_a"),
    [*((name, (M, K)) for name in sorted(ACTIVATIONS)), ("silu", (2, M, K))],
)
def test_a_jacobian_is_one_product_for_each_operand(
    activation: str, shape_a: tuple[int, ...], rng: np.random.Generator
) -> None:
    arrays = [rng.standard_normal(shape) for shape in (shape_a, (K, N), (N,))]

    def jacobians(use_pfor: bool) -> Function:
        def function(a: Any, b: Any, bias: Any) -> Any:
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([a, b, bias])
                y = sg.matmul(a, b, bias=bias, activation=activation)
            return tape.jacobian(y, [a, b, bias], experimental_use_pfor=use_pfor)

        return function

    results, ops = run(jacobians(True), arrays)
    due, _ = run(jacobians(False), arrays)
    assert_close(results, due)
    assert not LOOPS & ops.keys()
    assert count_products(jacobians(True), arrays)["backward"]["products"] == 2


def count_products(function: Function, arguments: Sequence[Any]) -> Any:
    compiled = tf.function(function)
    values = list(map(tf.constant, arguments))
    compiled(*values)
    sg.reset_kernel_stats()
    compiled(*values)
    return sg.kernel_stats()


STACKED = [(True, False, False), (False, True, False), (True, True, False), (True, True, True)]


@pytest.mark.parametrize("stacked", STACKED)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_mapped_call_is_one_product(
    stacked: tuple[bool, ...], activation: str, rng: np.random.Generator
) -> None:
    arrays = [
        rng.standard_normal(((STEPS,) if s else ()) + shape)
        for s, shape in zip(stacked, ((M, K), (K, N), (N,)), strict=True)
    ]

    def call(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation=activation)

    results, ops = run(vectorized(call, stacked), arrays)
    assert_close(results, one_by_one(call, arrays, stacked))
    assert not LOOPS & ops.keys()
    assert count_products(vectorized(call, stacked), arrays)["forward"]["products"] == 1


def test_gradients_of_each_example_are_one_product(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((STEPS, M, K)), rng.standard_normal((K, N))

    def gradient(x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = sg.matmul(x, w, activation="tanh", stop_gradient="a")
        return tape.gradient(y, w)

    stats = count_products(vectorized(gradient, (True, False)), [x, w])
    assert stats["backward"] == {"products": 1, "flops": 2 * STEPS * M * K * N}


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_gradients_of_each_example_in_a_graph(activation: str, rng: np.random.Generator) -> None:
    """tf.gradients makes a node for each gradient, and one for that of the pre-activation."""
    arrays = [rng.standard_normal(shape) for shape in ((STEPS, M, K), (K, N), (N,))]

    def gradients(x: Any, w: Any, bias: Any) -> Any:
        y = sg.matmul(x, w, bias=bias, activation=activation, gradient_scale={"bias": 0.5})
        return tf.gradients(y, [x, w, bias])

    stacked = (True, False, False)
    results, ops = run(vectorized(gradients, stacked), arrays)
    assert not LOOPS & ops.keys()
    assert_close(results, one_by_one(tf.function(gradients), arrays, stacked))


def test_what_is_blocked_has_no_jacobian_and_runs_nothing(rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(shape) for shape in ((M, K), (K, N))]

    def jacobians(a: Any, b: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([a, b])
            y = sg.matmul(a, b, stop_gradient="b")
        return tape.jacobian(y, [a, b])

    assert jacobians(*map(tf.constant, arrays))[1] is None
    assert tf.function(jacobians)(*map(tf.constant, arrays))[1] is None
    stats = count_products(lambda a, b: jacobians(a, b)[0], arrays)
    assert stats["backward"] == {"products": 1, "flops": 2 * (M * N) * M * K * N}


@pytest.mark.parametrize("dynamic", ["steps", "rows", "all"])
def test_shapes_that_are_not_known_beforehand(dynamic: str, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((STEPS, M, K)), rng.standard_normal((2, K, N))
    shape = {"steps": [None, M, K], "rows": [STEPS, None, K], "all": [None] * 3}[dynamic]

    def gradients(x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = sg.matmul(x, w, activation="silu")
        return tape.gradient(y, [x, w])

    signature = [
        tf.TensorSpec(shape, tf.float64),
        tf.TensorSpec([None] * 3 if dynamic == "all" else w.shape, tf.float64),
    ]
    mapped = tf.function(vectorized(gradients, (True, False)), input_signature=signature)
    due = one_by_one(gradients, [x, w], (True, False))
    assert_close([to_numpy(g) for g in mapped(tf.constant(x), tf.constant(w))], due)
    ops = Counter(op.type for op in mapped.get_concrete_function().graph.get_operations())
    assert not LOOPS & ops.keys()


def test_rows_of_each_step(rng: np.random.Generator) -> None:
    rows = np.array([[1.0, 0, 0.5, 1], [0, 0, 0, 0], [1, -1, 1, 2]])
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))

    def gradients(rows: Any, a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            y = sg.matmul(a, b, activation="sigmoid", gradient_rows=rows)
        return tape.gradient(y, [a, b])

    stacked = (True, False, False)
    results, ops = run(vectorized(gradients, stacked), [rows, a, b])
    assert_close(results, one_by_one(gradients, [rows, a, b], stacked))
    assert not LOOPS & ops.keys()


# What each step may have of its own beside the operands, as stock TensorFlow has it in one step.
SCALES = np.array([1.0, 0.0, -2.0])
ROWS = np.array([1.0, 0.0, 0.5, -1.0])


def gradients_of(multiply: Function) -> Function:
    """Return a function to the result, and the gradients of a, b and bias for an upstream dy."""

    def step(dy: Any, scale: Any, a: Any, b: Any, bias: Any) -> Any:
        operands = [a, b, bias]
        with tf.GradientTape() as tape:
            tape.watch(operands)
            y = multiply(scale, *operands)
        zero = tf.UnconnectedGradients.ZERO
        return [y, *tape.gradient(y, operands, output_gradients=dy, unconnected_gradients=zero)]

    return step


def through_the_map(step: Function, stacked: Sequence[bool]) -> Function:
    """Return a function to the gradients of what is mapped, and of its gradients in each step."""

    def function(*arguments: Any) -> Any:
        operands = list(arguments[2:])
        with tf.GradientTape() as tape:
            tape.watch(operands)
            results = vectorized(step, stacked)(*arguments)
            total = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in results])
        zero = tf.UnconnectedGradients.ZERO
        return [*results, *tape.gradient(total, operands, unconnected_gradients=zero)]

    return function


def through_a_loop(step: Function, stacked: Sequence[bool]) -> Function:
    """Return what `through_the_map` does, with a loop of Python's in place of the map."""

    def function(*arguments: Any) -> Any:
        operands = list(arguments[2:])
        with tf.GradientTape() as tape:
            tape.watch(operands)
            steps = [
                step(*(x[i] if s else x for x, s in zip(arguments, stacked, strict=True)))
                for i in range(STEPS)
            ]
            results = [tf.stack(each) for each in zip(*steps, strict=True)]
            total = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in results])
        zero = tf.UnconnectedGradients.ZERO
        return [*results, *tape.gradient(total, operands, unconnected_gradients=zero)]

    return function


def assert_one_batch(
    ours: Function, stocks: Function, stacked: Sequence[bool], rng: np.random.Generator
) -> None:
    """Compare with stock ops in a loop, to second order, and count ops and products."""
    shapes = ((M, N), (), (M, K), (K, N), (N,))
    arguments = [
        rng.standard_normal(((STEPS,) if s else ()) + shape)
        for s, shape in zip(stacked, shapes, strict=True)
    ]
    if stacked[1]:
        arguments[1] = SCALES
    step = gradients_of(ours)
    due = through_a_loop(gradients_of(stocks), stacked)(*map(tf.constant, arguments))
    results, ops = run(through_the_map(step, stacked), arguments)
    assert not LOOPS & ops.keys()
    assert_close(results, list(map(to_numpy, due)))
    _, ops = run(vectorized(step, stacked), arguments)
    assert ops["StopgradOp>FusedMatMul"] <= 2  # that of a step, which nobody reads, and the map's
    stats = count_products(vectorized(step, stacked), arguments)
    assert stats["forward"]["products"] == 1
    assert stats["backward"]["products"] <= 2


@pytest.mark.parametrize(
    "stacked",
    [
        (False, True, False, False, False),
        (False, True, True, False, False),
        (True, True, False, True, False),
        (True, True, True, True, True),
    ],
)
@pytest.mark.parametrize("scaled", [("a",), ("b",), ("bias",), ("a", "b", "bias")], ids="+".join)
@pytest.mark.parametrize("activation", ["linear", "gelu", "tanh"])
def test_scales_of_each_step_are_one_product(
    stacked: tuple[bool, ...], scaled: tuple[str, ...], activation: str, rng: np.random.Generator
) -> None:
    def ours(scale: Any, a: Any, b: Any, bias: Any) -> Any:
        scales = dict.fromkeys(scaled, scale)
        return sg.matmul(a, b, bias=bias, activation=activation, gradient_scale=scales)

    def stocks(scale: Any, a: Any, b: Any, bias: Any) -> Any:
        problem = reference.Problem(a, b, bias, activation=activation)
        return stock.matmul(problem, (a, b, bias), scales=dict.fromkeys(scaled, scale))

    assert_one_batch(ours, stocks, stacked, rng)


STEERED_BIAS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stop_gradient": "bias"}, {"blocked": ["bias"]}),
    ({"gradient_scale": {"bias": -0.5}}, {"scales": {"bias": -0.5}}),
    ({"trainable": {"bias": np.s_[1:]}}, {"regions": {"bias": np.array([False, True, True])}}),
    (
        {"trainable": {"bias": sg.columns([0, 2])}, "gradient_scale": 2.0},
        {
            "regions": {"bias": np.array([True, False, True])},
            "scales": dict.fromkeys(("a", "b", "bias"), 2.0),
        },
    ),
    ({"gradient_rows": ROWS}, {"rows": ROWS}),
    ({"gradient_rows": ROWS > 0, "stop_gradient": "a"}, {"rows": ROWS > 0, "blocked": ["a"]}),
]


@pytest.mark.parametrize(("options", "meaning"), STEERED_BIAS)
@pytest.mark.parametrize("activation", ["linear", "gelu", "sigmoid"])
def test_a_bias_of_each_step_is_one_product_however_it_is_steered(
    options: dict[str, Any], meaning: dict[str, Any], activation: str, rng: np.random.Generator
) -> None:
    def ours(_: Any, a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation=activation, **options)

    def stocks(_: Any, a: Any, b: Any, bias: Any) -> Any:
        problem = reference.Problem(a, b, bias, activation=activation)
        return stock.matmul(problem, (a, b, bias), **meaning)

    for stacked in ((False, False, False, False, True), (True, False, True, False, True)):
        assert_one_batch(ours, stocks, stacked, rng)


UNKNOWN = [
    # The ranks of a, b and the rows; which are stacked; which are known.
    ((2, 2, 1), (True, False, False), ()),
    ((3, 2, 1), (True, False, False), ()),
    ((2, 3, 1), (True, False, False), ()),
    ((2, 3, 1), (True, False, True), ()),
    ((3, 2, 2), (False, True, False), ()),
    ((4, 3, 1), (True, True, True), ()),
    ((3, 2, 1), (True, False, False), ("b",)),
    ((2, 3, 1), (True, True, False), ("a",)),
    ((2, 3, 2), (False, False, True), ("a", "rows")),
]


@pytest.mark.parametrize(("ranks", "stacked", "known"), UNKNOWN)
@pytest.mark.parametrize("layout", ["normal", "transpose"])
@pytest.mark.parametrize("activation", ["linear", "silu"])
def test_operands_of_unknown_rank_are_one_product(
    ranks: tuple[int, ...],
    stacked: tuple[bool, ...],
    known: tuple[str, ...],
    layout: str,
    activation: str,
    rng: np.random.Generator,
) -> None:
    batch = (2, 2)
    stored = [reference.stored_shape(shape, layout) for shape in ((M, K), (K, N))]
    shapes = [
        (*batch[: rank - len(matrix)], *matrix)
        for rank, matrix in zip(ranks, (*stored, (M,)), strict=True)
    ]
    a, b, rows = (
        rng.standard_normal(((STEPS,) if s else ()) + shape)
        for s, shape in zip(stacked, shapes, strict=True)
    )
    rows[np.abs(rows) < 0.3] = 0
    bias = rng.standard_normal(N)
    options = {} if layout == "normal" else {"transpose_a": True, "transpose_b": True}

    def gradients(multiply: Function) -> Function:
        def step(a: Any, b: Any, rows: Any, bias: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([a, b, bias])
                y = multiply(a, b, rows, bias)
                total = tf.reduce_sum(tf.sin(y))
            return tape.gradient(total, [a, b, bias])

        return step

    def ours(a: Any, b: Any, rows: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, activation=activation, gradient_rows=rows, **options)

    def stocks(a: Any, b: Any, rows: Any, bias: Any) -> Any:
        problem = reference.Problem(a, b, bias, layout, layout, activation)
        return stock.matmul(problem, (a, b, bias), rows=rows)

    arguments, each = [a, b, rows, bias], (*stacked, False)
    signature = [
        tf.TensorSpec(x.shape if name in (*known, "bias") else None, tf.float64)
        for name, x in zip(("a", "b", "rows", "bias"), arguments, strict=True)
    ]
    mapped = tf.function(vectorized(gradients(ours), each), input_signature=signature)
    graph = mapped.get_concrete_function().graph
    assert not LOOPS & {op.type for op in graph.get_operations()}
    results = [to_numpy(g) for g in mapped(*map(tf.constant, arguments))]
    assert_close(results, one_by_one(gradients(stocks), arguments, each))
    stats = count_products(mapped, arguments)
    assert stats["forward"]["products"] == 1
    assert stats["backward"]["products"] == 2


@pytest.mark.parametrize("in_function", [False, True])
def test_gradients_through_what_is_mapped(in_function: bool, rng: np.random.Generator) -> None:
    """A tape around the map, and the Hessian, which is a jacobian of a gradient."""
    x = tf.constant(rng.standard_normal((STEPS, M, K)))
    w = tf.constant(rng.standard_normal((K, N)))
    options: dict[str, Any] = {
        "activation": "tanh",
        "gradient_scale": {"b": -0.5},
        "gradient_rows": tf.constant([1.0, 0.0, 2.0, 1.0]),
    }

    def stocks(x: Any, w: Any) -> Any:
        problem = reference.Problem(x, w, activation="tanh")
        rows = np.array([1.0, 0, 2, 1])
        return stock.matmul(problem, (x, w), scales={"b": -0.5}, rows=rows)

    def results(multiply: Function, x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = tf.vectorized_map(lambda x: multiply(x, w), x)
            total = tf.reduce_sum(y * y)
        mapped = tape.gradient(total, [x, w])
        with tf.GradientTape() as outer:
            outer.watch(w)
            with tf.GradientTape() as inner:
                inner.watch(w)
                value = tf.reduce_sum(multiply(x, w) ** 2)
            gradient = inner.gradient(value, w)
        return [*mapped, outer.jacobian(gradient, w)]

    def ours(x: Any, w: Any) -> Any:
        return sg.matmul(x, w, **options)

    due = results(stocks, x, w)
    mine = (tf.function(results) if in_function else results)(ours, x, w)
    assert_close(list(map(to_numpy, mine)), list(map(to_numpy, due)))


def test_a_batch_jacobian(rng: np.random.Generator) -> None:
    x, w = (tf.constant(rng.standard_normal(shape)) for shape in ((6, K), (K, N)))

    def jacobian(multiply: Function) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = multiply(x)
        return tape.batch_jacobian(y, x)

    due = jacobian(lambda x: tf.nn.softplus(x @ w))
    np.testing.assert_allclose(jacobian(lambda x: sg.matmul(x, w, activation="softplus")), due)


@needs_xla
def test_an_ensemble_compiled_by_xla(rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal((STEPS, *shape)) for shape in ((M, K), (K, N), (N,))]
    stacked = (True, True, True, True)

    def gradients(multiply: Function) -> Function:
        def step(scale: Any, x: Any, w: Any, bias: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([w, bias])
                y = multiply(scale, x, w, bias)
            return tape.gradient(y, [w, bias])

        return step

    def ours(scale: Any, x: Any, w: Any, bias: Any) -> Any:
        return sg.matmul(x, w, bias=bias, activation="elu", gradient_scale={"b": scale})

    def stocks(scale: Any, x: Any, w: Any, bias: Any) -> Any:
        problem = reference.Problem(x, w, bias, activation="elu")
        return stock.matmul(problem, (x, w, bias), scales={"b": scale})

    compiled = tf.function(vectorized(gradients(ours), stacked), jit_compile=True)
    results = [to_numpy(g) for g in compiled(*map(tf.constant, (SCALES, *arrays)))]
    assert_close(results, one_by_one(gradients(stocks), [SCALES, *arrays], stacked))
