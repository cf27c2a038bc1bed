"""What lives between the forward and the backward pass: only what backward reads.

Tensors are counted by their shapes among all objects of the process, so that also those are found
that nobody but TensorFlow's tape knows. docs/memory.md states what these tests check.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from modes import unguarded
from tensorflow.python.framework.ops import EagerTensor

import stopgrad_op as sg

v1 = tf.compat.v1
M, K, N = 11, 13, 7
SHAPES = {"a": (M, K), "b": (K, N), "bias": (N,), "y": (M, N)}
Tensors = list[str]


def live_shapes() -> Counter[tuple[int, ...]]:
    return Counter(tuple(x.shape) for x in gc.get_objects() if type(x) is EagerTensor)


def held_for_backward(
    *,
    watched: tuple[str, ...] = ("a", "b", "bias"),
    of: Callable[..., Any] = sg.matmul,
    make: Callable[[Any], Any] = lambda x: x,
    **options: Any,
) -> Tensors:
    """Return which of a, b, bias and y (or z) live on when nobody but the tape wants them."""
    gc.collect()
    before = live_shapes()
    with tf.GradientTape() as tape:
        operands = {name: make(tf.ones(SHAPES[name])) for name in ("a", "b", "bias")}
        tape.watch([operands[name] for name in watched])
        # The tape forgets what leads nowhere. A transposed tensor leads to y and does not hold it.
        result = tf.transpose(of(operands["a"], operands["b"], bias=operands["bias"], **options))
        del operands
        after = live_shapes()
    assert result is not None
    held = after - before
    return [name for name, shape in SHAPES.items() for _ in range(held[shape])]


def stock(a: Any, b: Any, *, bias: Any, activation: str | None = None) -> Any:
    z = tf.matmul(a, b) + bias
    return z if activation is None else getattr(tf.nn, activation)(z)


def test_counting_finds_what_stock_tensorflow_holds() -> None:
    assert held_for_backward(of=stock)[:3] == ["a", "b", "bias"]
    assert "y" in held_for_backward(of=stock, activation="relu")


every_activation = pytest.mark.parametrize("activation", [None, "relu", "gelu"])
every_blocking = pytest.mark.parametrize(
    ("stop_gradient", "held"),
    [
        (None, ["a", "b"]),
        ("a", ["a"]),
        ("b", ["b"]),
        ("bias", ["a", "b"]),
        (["a", "bias"], ["a"]),
        (["b", "bias"], ["b"]),
        (["a", "b"], []),
        (True, []),
    ],
)


@every_activation
@every_blocking
@pytest.mark.parametrize("make", [tf.identity, tf.Variable], ids=["tensors", "variables"])
def test_blocked_operand_costs_no_memory(
    stop_gradient: Any, held: Tensors, activation: str | None, make: Any
) -> None:
    saved = ["y"] if activation is not None and stop_gradient is not True else []
    assert (
        held_for_backward(stop_gradient=stop_gradient, activation=activation, make=make)
        == held + saved
    )


@every_activation
@pytest.mark.parametrize(
    ("watched", "held"),
    [(("b",), ["a"]), (("b", "bias"), ["a"]), (("a",), ["b"]), (("bias",), []), ((), [])],
)
def test_operand_that_no_tape_watches_is_as_one_that_is_blocked(
    watched: tuple[str, ...], held: Tensors, activation: str | None
) -> None:
    saved = ["y"] if activation is not None and watched else []
    assert held_for_backward(watched=watched, activation=activation) == held + saved


@pytest.mark.parametrize(
    "convert", [float, tf.constant, tf.Variable], ids=["number", "tensor", "variable"]
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_operand_scaled_by_zero_costs_no_memory(convert: Any, activation: str | None) -> None:
    zero, half = convert(0.0), convert(0.5)
    saved = ["y"] if activation else []
    options = {"activation": activation}
    assert held_for_backward(gradient_scale={"b": zero}, **options) == ["b", *saved]
    assert held_for_backward(gradient_scale={"a": zero}, **options) == ["a", *saved]
    assert held_for_backward(gradient_scale={"a": half, "b": zero}, **options) == ["b", *saved]
    assert held_for_backward(gradient_scale=half, **options) == ["a", "b", *saved]
    assert held_for_backward(gradient_scale=zero, **options) == []


@pytest.mark.parametrize("stop_gradient", ["a", "b", True])
def test_rows_and_regions_hold_nothing_more_of_the_operands(stop_gradient: Any) -> None:
    rows = tf.ones(M)
    regions = {"a": np.s_[1:4], "b": sg.columns([0, 3])}
    options: dict[str, Any] = {"stop_gradient": stop_gradient, "activation": "gelu"}
    assert held_for_backward(gradient_rows=rows, trainable=regions, **options) == held_for_backward(
        **options
    )


def test_gradient_rows_live_only_where_something_learns() -> None:
    for stop_gradient, lives in ((True, False), ("a", True)):
        rows = tf.ones(M)
        with tf.GradientTape():
            w = tf.Variable(tf.ones((K, N)))
            y = sg.matmul(tf.ones((M, K)), w, gradient_rows=rows, stop_gradient=stop_gradient)
            reference = weakref.ref(rows)
            del rows
            assert (reference() is not None) == lives
        assert y is not None


def test_indices_become_a_tensor_once() -> None:
    region = sg.rows([1, 2, 5, 7, 11])
    w = tf.Variable(tf.ones((K, N)))
    gc.collect()
    before = live_shapes()
    with tf.GradientTape():
        results = [sg.matmul(tf.ones((M, K)), w, trainable={"b": region}) for _ in range(3)]
    assert len(results) == 3
    assert (live_shapes() - before)[(5,)] == 1
    del region, results
    gc.collect()
    assert (live_shapes() - before)[(5,)] == 0


# --- Variables -------------------------------------------------------------------------------
def buffer_of(variable: tf.Variable) -> int:
    address: int = np.asarray(memoryview(variable.read_value())).__array_interface__["data"][0]
    return address


@pytest.mark.cpu_only("it looks at addresses in the host's memory")
@pytest.mark.parametrize(
    ("options", "is_read"),
    [
        ({}, True),
        ({"stop_gradient": "b"}, True),
        ({"stop_gradient": "a"}, False),
        ({"stop_gradient": True}, False),
        ({"gradient_scale": {"a": 0}}, False),
        ({"stop_gradient": "a", "activation": "gelu"}, False),
    ],
)
def test_variable_is_copied_at_an_assignment_only_if_backward_reads_it(
    options: dict[str, Any], is_read: bool
) -> None:
    w = tf.Variable(tf.ones((K, N)))
    x = tf.ones((M, K))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = sg.matmul(x, w, **options)
        before = buffer_of(w)
        w.assign_add(tf.ones((K, N)))
        assert (buffer_of(w) != before) == is_read
    assert y is not None


@pytest.mark.cpu_only("it looks at addresses in the host's memory")
def test_data_is_not_differentiated_and_so_its_weights_are_not_copied() -> None:
    w = tf.Variable(tf.ones((K, N)))
    with tf.GradientTape() as tape:
        y = sg.matmul(tf.ones((M, K)), w, activation="relu")
        before = buffer_of(w)
        w.assign_add(tf.ones((K, N)))
        assert buffer_of(w) == before
    np.testing.assert_array_equal(tape.gradient(y, w), np.full((K, N), float(M)))


# --- A deep stack ----------------------------------------------------------------------------
def activations_held(layer: Callable[[Any, Any], Any]) -> int:
    """Return how many results of 8 layers live after forward beside the last one."""
    rows, width = 8192, 1024
    weights = [tf.Variable(tf.ones((width, width))) for _ in range(8)]
    x = tf.ones((rows, width))
    gc.collect()
    before = live_shapes()
    with tf.GradientTape() as tape:
        hidden = x
        for w in weights:
            hidden = layer(hidden, w)
        held = (live_shapes() - before)[(rows, width)]
    assert hidden is not x
    del tape
    return held - 1


def test_stack_with_everything_blocked_holds_no_activation() -> None:
    layer = lambda h, w: sg.matmul(h, w, activation="relu", stop_gradient=True)  # noqa: E731
    assert activations_held(layer) == 0


def test_stack_of_stock_operations_holds_them() -> None:
    """Were it not so, the count would show nothing."""
    assert activations_held(lambda h, w: tf.stop_gradient(tf.nn.relu(tf.matmul(h, w)))) >= 7


def test_stack_with_weights_blocked_holds_no_activation() -> None:
    """The gradient flows through all layers, and reads only weights."""
    source = tf.Variable(tf.zeros(1024))

    def layer(hidden: Any, w: Any) -> Any:
        return sg.matmul(hidden, w, bias=source, stop_gradient="b")

    assert activations_held(layer) == 0


# --- Where it does not hold ------------------------------------------------------------------
def test_persistent_tape_holds_all_inputs_and_outputs() -> None:
    """Unless everything is blocked: then nothing is recorded there either."""
    for stop_gradient, held in (("a", {(M, K): 1, (K, N): 1, (M, N): 2}), (True, {})):
        gc.collect()
        before = live_shapes()
        with tf.GradientTape(persistent=True) as tape:
            operands = [tf.identity(tf.ones(SHAPES[name])) for name in ("a", "b", "bias")]
            tape.watch(operands)
            a, b, bias = operands
            y = sg.matmul(a, b, bias=bias, activation="gelu", stop_gradient=stop_gradient)
            result = tf.transpose(y)
            del operands, a, b, bias, y
            after = live_shapes()
        assert result is not None
        for shape in ((M, K), (K, N), (M, N)):
            assert (after - before)[shape] == held.get(shape, 0)


# --- In graphs -------------------------------------------------------------------------------
@every_activation
@every_blocking
def test_function_under_a_tape_holds_what_eager_holds(
    stop_gradient: Any, held: Tensors, activation: str | None
) -> None:
    @tf.function
    def product(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, stop_gradient=stop_gradient, activation=activation)

    saved = ["y"] if activation is not None and stop_gradient is not True else []
    assert held_for_backward(of=product) == held + saved


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"gradient_scale": {"b": 0}}, ["b"]),
        ({"gradient_scale": 0, "activation": "relu"}, []),
        ({"gradient_scale": 0, "activation": "gelu"}, ["y"]),  # z, for its shape
        ({"gradient_scale": None}, ["a", "b"]),
    ],
)
def test_function_under_a_tape_knows_scales_of_zero(options: Any, held: Tensors) -> None:
    def product(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, **options)

    assert held_for_backward(of=tf.function(product)) == held


def test_function_holds_operands_for_a_scale_that_is_zero_at_run_time() -> None:
    def product(a: Any, b: Any, bias: Any) -> Any:
        return sg.matmul(a, b, bias=bias, gradient_scale=0 * tf.reduce_sum(a))

    assert held_for_backward(of=tf.function(product)) == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({"stop_gradient": ["b", "bias"]}, ["b", "rows"]),
        ({"stop_gradient": ["a", "bias"], "activation": "relu"}, ["a", "y", "rows"]),
        ({"stop_gradient": ["a", "b"]}, ["rows"]),
        ({"stop_gradient": True}, []),
        ({"gradient_scale": {"a": 0, "bias": 0}}, ["a", "rows"]),
        ({"gradient_scale": 0}, []),
    ],
)
def test_gradient_ops_read_nothing_else_in_a_graph(options: dict[str, Any], read: Tensors) -> None:
    with tf.Graph().as_default() as graph:
        operands = [v1.placeholder(tf.float32, SHAPES[name]) for name in ("a", "b", "bias")]
        rows = v1.placeholder(tf.float32, (M,))
        y = sg.matmul(operands[0], operands[1], bias=operands[2], gradient_rows=rows, **options)
        tf.gradients(y, operands, grad_ys=v1.placeholder(tf.float32, y.shape))
        names = {x.ref(): n for n, x in zip(("a", "b", "bias"), operands, strict=True)}
        names.update({rows.ref(): "rows", y.ref(): "y"})
        inputs = {
            names[unguarded(x).ref()]
            for op in graph.get_operations()
            if op.type == "StopgradOp>FusedMatMulGrad"
            for x in op.inputs
            if unguarded(x).ref() in names
        }
    assert inputs == set(read)
