"""`sg.stock_ops`: the same values and gradients from stock ops, which leave this package behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import reference
import stock
import tensorflow as tf
from cases import OPERANDS, Chooser, written
from modes import EAGER, GRAPH, IN_FUNCTION, Mode, mode_id
from reference import ACTIVATIONS, COMPLEX, FLOATING, INTEGERS, Array

import stopgrad_op as sg

in_both = pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
M, K, N = 5, 7, 3


def op_types(graph: tf.Graph) -> set[str]:
    """Return the types of all ops of a graph, those in functions that it calls too."""
    library = graph.as_graph_def().library.function
    inside = {node.op for function in library for node in function.node_def}
    return {op.type for op in graph.get_operations()} | inside


def traced_types(function: Any, *arguments: Any) -> set[str]:
    return op_types(tf.function(function).get_concrete_function(*arguments).graph)


def is_stock(types: set[str]) -> bool:
    assert "MatMul" in types or any("StopgradOp" in name for name in types)
    return not any("StopgradOp" in name for name in types)


# --- Values and gradients ----------------------------------------------------------------------
@pytest.mark.parametrize("mode", [EAGER, IN_FUNCTION, GRAPH], ids=mode_id)
@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
def test_everything_combined_is_what_it_is_elsewhere(
    rng: np.random.Generator, mode: Mode, dtype: str
) -> None:
    chooser = Chooser(rng)
    tested = 0
    sg.reset_kernel_stats()
    while tested < 8:
        case = chooser.case(dtype)
        if not reference.crosses_no_kink(case.problem, dtype):
            continue
        tested += 1
        problem, scale = case.problem, case.gradient_scale
        dy = reference.random_array(rng, reference.preactivation(problem).value.shape, dtype)

        def stock_one(
            a: Any, b: Any, bias: Any = None, case: Any = case, scale: Any = scale
        ) -> Any:
            with sg.stock_ops():
                scale = written(scale, mode)
                return sg.matmul(a, b, bias=bias, gradient_scale=scale, **case.options)

        y, gradients = mode.gradients(stock_one, stock.operands_of(problem), dy)
        exact = reference.gradients(problem, dy, case.scales, rows=case.rows, regions=case.masks)
        reference.assert_close(y, reference.forward(problem), dtype, what=f"y of {case}")
        for name, gradient in zip(OPERANDS, gradients, strict=False):
            what = f"gradient of {name} in {case}"
            assert (gradient is None) == (name in case.blocked), what
            if gradient is not None:
                reference.assert_close(gradient, exact[name], dtype, what=what)
                assert not np.any(gradient[exact[name].magnitude == 0]), what
    none_ran = {"products": 0, "flops": 0}
    assert sg.kernel_stats() == {"forward": none_ran, "backward": none_ran}


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activation_holds_far_out_and_at_its_kinks(activation: str, dtype: str) -> None:
    z = np.array([[-200.0, -30, -6, -1, -1e-3, 0, 1e-3, 1, 6, 30, 200]], dtype)
    a = tf.constant(z.T)
    with sg.stock_ops(), tf.GradientTape() as tape:
        tape.watch(a)
        y = sg.matmul(a, tf.ones((1, 1), dtype), activation=activation)
    due = ACTIVATIONS[activation]
    exact = z.T.astype(np.float64)
    small = 8 * reference.epsilon(dtype)
    np.testing.assert_allclose(y, due.value(exact), rtol=small, atol=30 * small)
    slope = tape.gradient(y, a)
    np.testing.assert_allclose(slope, due.derivative(exact), rtol=small, atol=30 * small)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_run_forward(rng: np.random.Generator, dtype: str) -> None:
    problem = reference.random_problem(rng, (2, 1, M, K), (3, K, N), dtype, bias=True)
    with sg.stock_ops():
        y = sg.matmul(
            problem.a,
            problem.b,
            bias=problem.bias,
            gradient_scale=0.5,
            gradient_rows=np.ones(M, bool),
            trainable={"b": np.s_[:2]},
            stop_gradient="a",
        )
    reference.assert_close(y.numpy(), reference.forward(problem), dtype)


BATCHES = [
    ((2, 1, 31, 5), (5, 5)),
    ((31, 5), (3, 5, 5)),
    ((2, 1, 31, 5), (3, 5, 5)),
    ((0, 4, 5), (5, 2)),
    ((2, 4, 0), (0, 3)),
    ((0, 4, 0), (0, 3)),
    ((3, 4, 5), (1, 5, 2)),
    ((3, 0, 5), (5, 2)),
    ((2, 0, 3), (2, 3, 4)),
]


@pytest.mark.parametrize(("a", "b"), BATCHES)
@pytest.mark.parametrize("known", ["all", "batch", "matrix", "rank", "nothing"])
@pytest.mark.parametrize("transposed", [False, True])
def test_batches_broadcast_whatever_is_known_of_their_shapes(
    rng: np.random.Generator, a: Any, b: Any, known: str, transposed: bool
) -> None:
    layout = "transpose" if transposed else "normal"
    # In a function TensorFlow makes one op of product and bias, and forgets the bias if k is 0.
    bias = a[-1] != 0
    problem = reference.random_problem(rng, a, b, "float32", bias=bias, layout_a=layout)
    operands = stock.operands_of(problem)

    def signature(x: Array) -> tf.TensorSpec:
        batch, matrix = x.shape[:-2], x.shape[-2:]
        shape = {
            "all": x.shape,
            "batch": (*batch, None, None) if x.ndim > 1 else x.shape,
            "matrix": (*(None for _ in batch), *matrix),
            "rank": (None,) * x.ndim,
            "nothing": None,
        }[known]
        return tf.TensorSpec(shape, x.dtype)

    @tf.function(input_signature=[signature(x) for x in operands])
    def function(*operands: Any) -> Any:
        with tf.GradientTape() as tape, sg.stock_ops():
            tape.watch(operands)
            given = dict(zip(OPERANDS, operands, strict=False))
            y = sg.matmul(**given, transpose_a=transposed)
        return y, tape.gradient(y, operands)

    y, gradients = function(*operands)
    reference.assert_close(y.numpy(), reference.forward(problem), "float32")
    exact = reference.gradients(problem, np.ones(y.shape, np.float32))
    for name, gradient in zip(OPERANDS, gradients, strict=False):
        reference.assert_close(gradient.numpy(), exact[name], "float32", what=name)


@pytest.mark.parametrize(
    ("a", "b", "broadcasts"),
    [
        ((None, K), (K, N), False),
        ((None, 4, K), (K, N), False),
        ((2, None, K), (2, K, N), False),
        ((None, 4, K), (None, K, N), True),
        ((2, 1, 4, K), (3, K, N), True),  # of itself, tf.matmul may get it wrong in float32
    ],
)
def test_broadcasting_is_a_step_of_its_own_where_it_is_one(
    a: Any, b: Any, broadcasts: bool
) -> None:
    def function(a: Any, b: Any) -> Any:
        with sg.stock_ops():
            return sg.matmul(a, b, bias=tf.ones(N))

    types = traced_types(function, *(tf.TensorSpec(shape, tf.float32) for shape in (a, b)))
    assert "Transpose" not in types
    assert ("BroadcastTo" in types) == broadcasts


REGIONS = [
    np.s_[1:6:2, -2:],
    np.s_[-3:],
    sg.rows([0, 6]),
    sg.rows([2, 3], indexed_slices=True),  # whose gradient is a tensor with zeros here
    sg.columns([1]),
]


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_region_of_an_unknown_shape(rng: np.random.Generator, region: Any) -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64)] * 2)
    def gradient(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape, sg.stock_ops():
            tape.watch(b)
            y = sg.matmul(a, b, trainable={"b": region})
        return tape.gradient(y, b)

    a = rng.standard_normal((M, K))
    due = np.zeros((K, N))
    part = (
        np.ix_(region.indices, range(N))
        if isinstance(region, type(sg.rows([])))
        else np.s_[:, region.indices]
        if isinstance(region, type(sg.columns([])))
        else region
    )
    due[part] = (a.T @ np.ones((M, N)))[part]
    np.testing.assert_allclose(gradient(a, np.ones((K, N))), due, rtol=1e-12)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`trainable` of `b`"):
        gradient(a[:, :1], np.ones((1, 1)))


def test_rows_of_an_unknown_shape_do_not_broadcast_the_result(rng: np.random.Generator) -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64)] * 3)
    def function(a: Any, b: Any, rows: Any) -> Any:
        with tf.GradientTape() as tape, sg.stock_ops():
            tape.watch(b)
            y = sg.matmul(a, b, gradient_rows=rows)
        return y, tape.gradient(y, b)

    a, b, rows = (rng.standard_normal(shape) for shape in ((M, K), (K, N), (M,)))
    y, gradient = function(a, b, rows)
    np.testing.assert_allclose(y, a @ b, rtol=1e-12)
    np.testing.assert_allclose(gradient, a.T @ np.repeat(rows[:, None], N, axis=1), rtol=1e-12)
    for wrong in (rows, rows[None, :1], rows[:0]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(a[:1], b, wrong)


def test_derivatives_of_any_order_and_direction(rng: np.random.Generator) -> None:
    problem = reference.random_problem(rng, (M, K), (K, N), "float64", activation="gelu", bias=True)
    rows = rng.random(M)
    options = {"blocked": (), "scales": {"b": -0.5}, "rows": rows}

    def defined(a: Any) -> Any:
        return stock.matmul(problem, [a, problem.b, problem.bias], **options)

    def ours(a: Any) -> Any:
        with sg.stock_ops():
            return sg.matmul(
                a,
                problem.b,
                bias=problem.bias,
                activation="gelu",
                gradient_scale={"b": -0.5},
                gradient_rows=rows,
            )

    def derivatives(function: Any) -> Any:
        a = tf.constant(problem.a)
        with tf.GradientTape() as outer:
            outer.watch(a)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(a)
                y = function(a)
            first = inner.gradient(y, a)
        with tf.autodiff.ForwardAccumulator(a, tf.ones_like(a)) as accumulator:
            tangent = accumulator.jvp(function(a))
        return outer.gradient(first, a), inner.jacobian(y, a), tangent

    for result, due in zip(derivatives(ours), derivatives(defined), strict=True):
        np.testing.assert_allclose(result, due, rtol=1e-9, atol=1e-12)


def gradients_of_gradients(multiply: Any, operands: Any) -> list[Any]:
    """Return y, its gradients, and the gradients of a sum of all these."""
    with tf.GradientTape() as outer:
        outer.watch(operands)
        with tf.GradientTape() as inner:
            inner.watch(operands)
            y = multiply(*operands)
        first = inner.gradient(y, operands, output_gradients=tf.math.cos(y))
        parts = [y, *(g for g in first if g is not None)]
        total = tf.add_n([tf.reduce_sum(tf.math.real(x * x)) for x in parts])
    return [y, *first, *outer.gradient(total, operands)]


@pytest.mark.parametrize("seed", range(16))
@in_both
def test_second_derivatives_of_everything_combined(wrap: Any, seed: int) -> None:
    case = Chooser(np.random.default_rng(seed)).case("complex128" if seed % 5 == 0 else "float64")
    operands = list(map(tf.constant, stock.operands_of(case.problem)))

    def ours(a: Any, b: Any, bias: Any = None) -> Any:
        with sg.stock_ops():
            scale = written(case.gradient_scale, EAGER)
            return sg.matmul(a, b, bias=bias, gradient_scale=scale, **case.options)

    def defined(*operands: Any) -> Any:
        return stock.matmul(
            case.problem, operands, case.blocked, case.scales, case.rows, case.masks
        )

    results = wrap(lambda: gradients_of_gradients(ours, operands))()
    for result, due in zip(results, gradients_of_gradients(defined, operands), strict=True):
        assert (result is None) == (due is None), case
        if due is not None:
            size = max(1.0, float(np.abs(due).max(initial=0)))
            np.testing.assert_allclose(result, due, rtol=1e-9, atol=1e-10 * size, err_msg=str(case))


@pytest.mark.parametrize("stacked", ["a", "b", "bias", "rows", "scale"])
@pytest.mark.parametrize("activation", [None, "gelu", "tanh"])
def test_vectorized_without_a_loop(
    activation: str | None, stacked: str, rng: np.random.Generator
) -> None:
    """Values, gradients in each step, and gradients through the map, beside steps in turn."""
    shapes = {"a": (M, K), "b": (K, N), "bias": (N,), "rows": (M,), "scale": ()}
    values = {name: tf.constant(rng.standard_normal(shape)) for name, shape in shapes.items()}
    each = tf.constant(rng.standard_normal((4, *shapes[stacked])))
    operands = [values[name] for name in ("a", "b", "bias") if name != stacked]

    def step(multiply: Any, one: Any) -> list[Any]:
        inputs = {**values, stacked: one}
        learning = [inputs[name] for name in ("a", "b", "bias")]
        with tf.GradientTape() as tape:
            tape.watch(learning)
            y = multiply(*learning, inputs["rows"], inputs["scale"])
        return [y, *tape.gradient(y, learning, output_gradients=tf.math.cos(y))]

    def through(run: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(operands)
            results = run()
            total = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in results])
        return [*results, *tape.gradient(total, operands)]

    def ours(a: Any, b: Any, bias: Any, rows: Any, scale: Any) -> Any:
        with sg.stock_ops():
            return sg.matmul(
                a,
                b,
                bias=bias,
                activation=activation,
                gradient_rows=rows,
                gradient_scale={"b": scale},
            )

    def defined(a: Any, b: Any, bias: Any, rows: Any, scale: Any) -> Any:
        problem = reference.Problem(a, b, bias, activation=activation or "linear")
        return stock.matmul(problem, (a, b, bias), scales={"b": scale}, rows=rows)

    def in_turn() -> list[Any]:
        return [tf.stack(x) for x in zip(*(step(defined, one) for one in each), strict=True)]

    mapped = tf.function(lambda: through(lambda: tf.vectorized_map(lambda x: step(ours, x), each)))
    types = op_types(mapped.get_concrete_function().graph)
    assert not {"While", "StatelessWhile"} & types
    assert is_stock(types)
    for result, due in zip(mapped(), through(in_turn), strict=True):
        np.testing.assert_allclose(result, due, rtol=1e-9, atol=1e-10)


def test_scale_and_rows_have_no_gradient_and_leave_the_value(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    scale, rows = tf.Variable(1e6), tf.Variable(rng.standard_normal(M))
    with sg.stock_ops(), tf.GradientTape() as tape:
        y = sg.matmul(a, b, gradient_scale={"b": scale}, gradient_rows=rows)
    assert tape.gradient(y, [scale, rows]) == [None, None]
    with sg.stock_ops():
        np.testing.assert_array_equal(y, sg.matmul(a, b))


# --- Where it holds ----------------------------------------------------------------------------
def call(x: Any = None) -> Any:
    return sg.matmul(tf.ones((M, K)) if x is None else x, tf.ones((K, N)))


def test_blocks_nest_and_an_exception_ends_one() -> None:
    with sg.stock_ops():
        with pytest.raises(RuntimeError), sg.stock_ops():  # noqa: PT012
            assert is_stock(traced_types(call))
            raise RuntimeError
        assert is_stock(traced_types(call))
    assert not is_stock(traced_types(call))


def test_block_is_that_of_one_thread() -> None:
    inside, done = threading.Event(), threading.Event()
    results = []

    def other_thread() -> None:
        with sg.stock_ops():
            inside.set()
            done.wait(60)
            results.append(is_stock(traced_types(call)))

    thread = threading.Thread(target=other_thread)
    thread.start()
    assert inside.wait(60)
    assert not is_stock(traced_types(call))
    with sg.stock_ops():
        assert is_stock(traced_types(call))
    assert not is_stock(traced_types(call))
    done.set()
    thread.join()
    assert results == [True]


def test_function_keeps_what_it_was_traced_with() -> None:
    step = tf.function(call)
    assert not is_stock(op_types(step.get_concrete_function().graph))
    with sg.stock_ops():
        assert not is_stock(op_types(step.get_concrete_function().graph))
    new = tf.function(sg.stock_ops()(step.python_function))
    assert is_stock(op_types(new.get_concrete_function().graph))


@in_both
def test_block_inside_a_function_is_what_counts(wrap: Any) -> None:
    def mixed() -> Any:
        y = call()
        with sg.stock_ops():
            return y + call()

    sg.reset_kernel_stats()
    np.testing.assert_array_equal(wrap(mixed)(), np.full((M, N), 2.0 * K))
    assert sg.kernel_stats()["forward"]["products"] == 1


def test_name_is_the_name_in_a_graph() -> None:
    with tf.Graph().as_default(), sg.stock_ops():
        y = sg.matmul(tf.ones((M, K)), tf.ones((K, N)), name="hidden")
    assert y.op.name == "hidden"


# --- Errors ------------------------------------------------------------------------------------
ERRORS: list[tuple[Any, type[Exception] | None, str]] = [
    (lambda: sg.matmul(tf.ones((M, K)), tf.ones((K, N)), activation="rleu"), ValueError, "rleu"),
    (lambda: sg.matmul([["x"]], [["x"]]), TypeError, "`a` has dtype string; due is one of"),
    (lambda: sg.matmul([[1]], [[1]], activation="relu"), ValueError, "needs a real floating dtype"),
    (lambda: call(tf.ones((M, K), tf.float64)), TypeError, "`b` has dtype float32 and `a` has"),
    (lambda: call(tf.ones((M, 6))), None, "`b` must have as many rows as `a` has columns"),
    (lambda: call(tf.ones(K)), None, "`a` must have rank 2 or more"),
    (
        lambda: sg.matmul(tf.ones((M, K)), tf.ones((K, N)), bias=tf.ones(2)),
        None,
        r"`bias` must have shape \[3\]",
    ),
    (
        lambda: sg.matmul(tf.ones((M, K)), tf.ones((K, N)), trainable={"b": np.s_[:8]}),
        ValueError,
        "`trainable` of `b` ends at row 8",
    ),
    (
        lambda: sg.matmul(tf.ones((M, K)), tf.ones((K, N)), gradient_rows=np.ones(4)),
        ValueError,
        "`gradient_rows` has shape",
    ),
]


@in_both
@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS)
def test_what_is_wrong_is_named_as_elsewhere(
    wrap: Any, wrong: Any, error: Any, message: str
) -> None:
    if error is None:  # of shapes, which TensorFlow calls differently in a graph
        error = ValueError if wrap is tf.function else tf.errors.InvalidArgumentError
    with pytest.raises(error, match=message), sg.stock_ops():
        wrap(wrong)()


# --- Keras -------------------------------------------------------------------------------------
class Dense(keras.layers.Layer):  # type: ignore[misc]
    """A layer that freezes a half of its weights' columns."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], 4), name="w")
        self.bias = self.add_weight(shape=(4,), initializer="ones", name="bias")

    def call(self, x: Any) -> Any:
        region = {"b": np.s_[:, 2:]}
        return sg.matmul(x, self.w, bias=self.bias, activation="gelu", trainable=region)


def layers() -> keras.Model:
    x = keras.Input((K,))
    return keras.Model(x, Dense()(x))


def symbolic() -> keras.Model:
    x, y = keras.Input((M, K)), keras.Input((K, N))
    return keras.Model([x, y], sg.matmul(x, y, activation="relu", stop_gradient="a"))


def test_functional_model_keeps_what_it_was_made_with() -> None:
    inputs = [tf.ones((1, M, K)), tf.ones((1, K, N))]

    def types(model: keras.Model) -> set[str]:
        return op_types(tf.function(model).get_concrete_function(inputs).graph) | {"MatMul"}

    fused = symbolic()
    with sg.stock_ops():
        model = symbolic()
        assert is_stock(types(fused))
    assert not is_stock(types(fused))
    for each in (model, keras.Model.from_config(model.get_config())):
        assert is_stock(types(each))
        np.testing.assert_array_equal(each(inputs), fused(inputs))


def test_layer_called_in_the_block_is_stock(rng: np.random.Generator) -> None:
    model = layers()
    x = rng.standard_normal((M, K)).astype(np.float32)
    sg.reset_kernel_stats()
    with tf.GradientTape() as tape, sg.stock_ops():
        y = model(x)
    assert sg.kernel_stats()["forward"]["products"] == 0
    gradient, _ = tape.gradient(y, model.trainable_variables)
    assert not np.any(gradient[:, :2])
    assert np.all(gradient[:, 2:])
    np.testing.assert_allclose(y, model(x), rtol=1e-5, atol=1e-5)


# --- Leaving -----------------------------------------------------------------------------------
WITHOUT_THIS_PACKAGE = """
import sys


class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "stopgrad_op":
            raise ModuleNotFoundError(f"{name} is not here", name=name)


sys.meta_path.insert(0, Nowhere())
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

tf.config.experimental.enable_tensor_float_32_execution(False)  # what is compared is float32
assert op_def_registry.get("StopgradOp>FusedMatMul") is None
"""

LOAD_AND_TRAIN = (
    WITHOUT_THIS_PACKAGE
    + """
folder = sys.argv[1]
x = tf.constant(np.load(folder + "/x.npy"))
network = tf.saved_model.load(folder + "/network")
with tf.GradientTape() as tape:
    tape.watch(x)
    y = network.predict(x)
    loss = tf.reduce_sum(y * y)
w1, *gradients = tape.gradient(loss, [network.w1, network.w2, network.bias, x])
assert w1 is None
served = network.signatures["serving_default"](x)["y"]
model = tf.saved_model.load(folder + "/exported")
exported = model.serve(x)
interpreter = tf.lite.Interpreter(model_path=folder + "/network.tflite")
given, = interpreter.get_input_details()
interpreter.resize_tensor_input(given["index"], x.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(given["index"], x)
interpreter.invoke()
lite = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
assert "stopgrad_op" not in sys.modules
np.savez(
    folder + "/results.npz",
    y=y,
    **dict(zip(["w2", "bias", "x"], gradients, strict=True)),
    served=served,
    exported=exported,
    lite=lite,
)
"""
)


class Network(tf.Module):
    """A frozen first layer, and a second one of which some rows and columns learn."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.w1 = tf.Variable(rng.standard_normal((K, 4)), dtype=tf.float32)
        self.w2 = tf.Variable(rng.standard_normal((4, N)), dtype=tf.float32)
        self.bias = tf.Variable(rng.standard_normal(N), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, K])])
    def predict(self, x: tf.Tensor) -> tf.Tensor:
        hidden = sg.matmul(x, self.w1, activation="silu", stop_gradient="b")
        return sg.matmul(
            hidden,
            self.w2,
            bias=self.bias,
            activation="gelu",
            gradient_scale={"bias": -0.5},
            trainable={"b": np.s_[1:, :2]},
        )

    @tf.function(input_signature=[tf.TensorSpec([None, K])])
    def serve(self, x: tf.Tensor) -> dict[str, Any]:
        return {"y": self.predict(x)}


def convert(function: Any, owner: Any) -> bytes:
    """Convert to TFLite; the converter refuses all but its builtin operations."""
    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)
    converted: bytes = converter.convert()
    return converted


def run_without_this_package(code: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_saved_models_and_tflite_run_where_the_package_is_not(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    x = rng.standard_normal((M, K)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    network, model = Network(rng), layers()
    model(x)
    with sg.stock_ops():
        # Without Python's gradients, of which such a process could not have all.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(network, str(tmp_path / "network"), network.serve, options)
        model.export(str(tmp_path / "exported"), verbose=False)
        (tmp_path / "network.tflite").write_bytes(convert(network.predict, network))
    run_without_this_package(LOAD_AND_TRAIN, tmp_path)
    results = np.load(tmp_path / "results.npz")

    z = x @ network.w1.numpy()
    hidden = (z * reference.activate("sigmoid", z)).astype(np.float32)
    problem = reference.Problem(hidden, network.w2.numpy(), network.bias.numpy(), activation="gelu")
    y = reference.forward(problem).value
    mask = np.zeros((4, N), bool)
    mask[1:, :2] = True
    exact = reference.gradients(problem, 2 * y, {"bias": -0.5}, regions={"b": mask})
    first = reference.Problem(x, network.w1.numpy(), activation="silu")
    of_x = reference.gradients(first, exact["a"].value)["a"].value
    for name, due in (
        ("y", y),
        ("served", y),
        ("lite", y),
        ("w2", exact["b"].value),
        ("bias", exact["bias"].value),
        ("x", of_x),
        ("exported", model(x)),
    ):
        np.testing.assert_allclose(results[name], due, rtol=2e-4, atol=2e-5, err_msg=name)
    assert not np.any(results["w2"][~mask])


RUN_LITE = (
    WITHOUT_THIS_PACKAGE
    + """
folder = sys.argv[1]
x = np.load(folder + "/x.npy")
interpreter = tf.lite.Interpreter(model_path=folder + "/all.tflite")
runner = interpreter.get_signature_runner()
ops = [op["op_name"] for op in interpreter._get_ops_details()]
np.savez(folder + "/results.npz", ops=ops, **runner(x=x))
"""
)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_tflite_has_builtin_operations_for_all_activations(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    x = (8 * rng.standard_normal((11, K))).astype(np.float32)
    x[0], x[1] = 100, -100
    names = sorted(ACTIVATIONS)
    w = rng.standard_normal((len(names), K, N)).astype(np.float32)
    bias = rng.standard_normal(N).astype(np.float32)
    np.save(tmp_path / "x.npy", x)

    @tf.function(input_signature=[tf.TensorSpec([None, K], name="x")])
    def every(x: tf.Tensor) -> dict[str, tf.Tensor]:
        # Each with weights of its own, or the converter would share what two of them have in
        # common, and not find a GELU.
        return {
            f"y_{each}": sg.matmul(x, w[i], bias=bias, activation=each)
            for i, each in enumerate(names)
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 4, K], name="x")])
    def with_rows(x: tf.Tensor) -> tf.Tensor:
        y = sg.matmul(x, w[0], gradient_rows=np.array([1, 0, 0.5, 1]), gradient_scale={"a": -1})
        return sg.matmul(y, w[0], transpose_b=True, gradient_rows=[True, False, False, True])

    @tf.function(input_signature=[tf.TensorSpec([None, 4, K], name="x")])
    def layers(x: tf.Tensor) -> tf.Tensor:
        hidden = sg.matmul(x, w[0], bias=bias, activation="relu", stop_gradient="b")
        region = {"b": sg.rows([0, 2])}
        return sg.matmul(hidden, w[0], transpose_b=True, gradient_scale={"b": 2}, trainable=region)

    owner = tf.Module()
    with sg.stock_ops():
        concrete = every.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)
        (tmp_path / "all.tflite").write_bytes(converter.convert())
        analysed = convert(layers, owner)
        convert(with_rows, owner)
    run_without_this_package(RUN_LITE, tmp_path)
    results = np.load(tmp_path / "results.npz")
    assert not [name for name in results["ops"] if name.startswith("Flex")]
    for each, name in zip(w, names, strict=True):
        problem = reference.Problem(x, each, bias, activation=name)
        due = reference.forward(problem).value
        # TFLite's own functions, GELU among them, are less exact than TensorFlow's.
        np.testing.assert_allclose(results[f"y_{name}"], due, rtol=1e-4, atol=1e-4, err_msg=name)
    # Layers stay layers: what steers gradients only is folded away.
    ops = lite_ops(analysed)
    assert ops.count("FULLY_CONNECTED") == 2
    assert set(ops) == {"FULLY_CONNECTED", "RESHAPE"}


def lite_ops(model: bytes) -> list[str]:
    interpreter = tf.lite.Interpreter(model_content=model)
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    return [name for name in names if name != "DELEGATE"]
