"""A blocked gradient is None and costs nothing: which products run, in every mode."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import tensorflow as tf
from modes import (
    EAGER,
    GRAPH,
    IN_FUNCTION,
    KERNEL_MODES,
    MODES,
    OUTSIDE_FUNCTION,
    Mode,
    mode_id,
    unguarded,
)

import stopgrad_op as sg

v1 = tf.compat.v1
every_mode = pytest.mark.parametrize("mode", MODES, ids=mode_id)
every_kernel_mode = pytest.mark.parametrize("mode", KERNEL_MODES, ids=mode_id)
OPERANDS = ("a", "b", "bias")
M, K, N = 5, 7, 3
FLOPS = 2 * M * K * N


def inputs(rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    return [rng.standard_normal(shape) for shape in ((M, K), (K, N), (N,))]


def upstream(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.standard_normal((M, N))


def dense(**options: Any) -> Callable[..., Any]:
    return lambda a, b, bias: sg.matmul(a, b, bias=bias, **options)


def backward() -> tuple[int, int]:
    stats = sg.kernel_stats()["backward"]
    return stats["products"], stats["flops"]


@every_kernel_mode
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    ("stop_gradient", "blocked"),
    [
        (None, ()),
        (False, ()),
        ((), ()),
        (True, OPERANDS),
        ("a", ("a",)),
        ("b", ("b",)),
        ("bias", ("bias",)),
        (("a", "b"), ("a", "b")),
        (["b", "bias"], ("b", "bias")),
        ({"a", "bias"}, ("a", "bias")),
        (frozenset(OPERANDS), OPERANDS),
        (np.True_, OPERANDS),
        (np.False_, ()),
    ],
)
def test_blocked_operand_has_no_gradient_and_runs_no_product(
    rng: np.random.Generator,
    mode: Mode,
    stop_gradient: Any,
    blocked: tuple[str, ...],
    activation: str | None,
) -> None:
    sg.reset_kernel_stats()
    function = dense(stop_gradient=stop_gradient, activation=activation)
    _, gradients = mode.gradients(function, inputs(rng), upstream(rng))
    for name, gradient in zip(OPERANDS, gradients, strict=True):
        assert (gradient is None) == (name in blocked), name
    products = sum(name not in blocked for name in ("a", "b"))
    assert sg.kernel_stats() == {
        "forward": {"products": 1, "flops": FLOPS},
        "backward": {"products": products, "flops": products * FLOPS},
    }


@every_kernel_mode
@pytest.mark.parametrize("scaled", [*OPERANDS, None])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_scale_zero_gives_zeros_and_runs_no_product(
    rng: np.random.Generator, mode: Mode, scaled: str | None, activation: str | None
) -> None:
    sg.reset_kernel_stats()
    scale: Any = 0.0 if scaled is None else {scaled: 0.0}
    arrays = inputs(rng)
    _, gradients = mode.gradients(
        dense(gradient_scale=scale, activation=activation), arrays, upstream(rng)
    )
    products = 0
    for name, array, gradient in zip(OPERANDS, arrays, gradients, strict=True):
        assert gradient is not None
        assert gradient.shape == array.shape
        is_zero = scaled in (None, name)
        assert np.any(gradient) != is_zero
        products += name != "bias" and not is_zero
    assert backward() == (products, products * FLOPS)


@every_mode
def test_a_blocked_operand_may_be_scaled_too(rng: np.random.Generator, mode: Mode) -> None:
    function = dense(gradient_scale={"b": 0.5, "a": 0.0}, stop_gradient=["b"])
    _, gradients = mode.gradients(function, inputs(rng), upstream(rng))
    assert gradients[0] is not None
    assert not np.any(gradients[0])
    assert gradients[1] is None


@every_kernel_mode
def test_operations_of_batches_and_complex_numbers_are_counted(mode: Mode) -> None:
    a, b = np.ones((4, M, K), np.complex64), np.ones((3, 1, K, N), np.complex64)
    sg.reset_kernel_stats()
    mode.gradients(sg.matmul, [a, b], np.ones((3, 4, M, N), np.complex64))
    assert sg.kernel_stats() == {
        "forward": {"products": 1, "flops": 12 * 4 * FLOPS},
        "backward": {"products": 2, "flops": 2 * 12 * 4 * FLOPS},
    }


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    ("wanted", "products"),
    [("a", 1), ("b", 1), ("bias", 0), ("a b", 2), ("b bias", 1), ("a b bias", 2)],
)
class TestOnlyTheGradientsAskedForAreComputed:
    def check(self, values: list[Any], due: list[Any], products: int) -> None:
        for value, exact in zip(values, due, strict=True):
            np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-13)
        assert backward() == (products, products * FLOPS)

    def due(self, arrays: list[Any], wanted: list[str], activation: str | None) -> list[Any]:
        problem = reference.Problem(*arrays, activation=activation or "linear")
        gradients = reference.gradients(problem, np.ones((M, N)))
        sg.reset_kernel_stats()
        return [gradients[name].value for name in wanted]

    def test_by_an_eager_tape(
        self, rng: np.random.Generator, wanted: str, products: int, activation: str | None
    ) -> None:
        arrays, names = inputs(rng), wanted.split()
        due = self.due(arrays, names, activation)
        tensors = dict(zip(OPERANDS, map(tf.constant, arrays), strict=True))
        with tf.GradientTape() as tape:
            tape.watch([tensors[name] for name in names])
            y = dense(activation=activation)(*tensors.values())
        values = tape.gradient(y, [tensors[name] for name in names])
        self.check([value.numpy() for value in values], due, products)

    def test_by_a_tape_in_a_function(
        self, rng: np.random.Generator, wanted: str, products: int, activation: str | None
    ) -> None:
        arrays, names = inputs(rng), wanted.split()
        due = self.due(arrays, names, activation)

        @tf.function
        def step(*operands: tf.Tensor) -> Any:
            tensors = dict(zip(OPERANDS, operands, strict=True))
            with tf.GradientTape() as tape:
                tape.watch(operands)
                y = dense(activation=activation)(*operands)
            return tape.gradient(y, [tensors[name] for name in names])

        values = step(*map(tf.constant, arrays))
        self.check([value.numpy() for value in values], due, products)

    def test_or_all_by_a_tape_outside_a_function(
        self, rng: np.random.Generator, wanted: str, products: int, activation: str | None
    ) -> None:
        arrays, names = inputs(rng), wanted.split()
        due = self.due(arrays, names, activation)
        tensors = dict(zip(OPERANDS, map(tf.constant, arrays), strict=True))
        with tf.GradientTape() as tape:
            tape.watch([tensors[name] for name in names])
            y = tf.function(dense(activation=activation))(*tensors.values())
        values = tape.gradient(y, [tensors[name] for name in names])
        # TensorFlow compiles one backward function for every input and runs it whole.
        assert products <= 2
        self.check([value.numpy() for value in values], due, 2)

    def test_by_a_session(
        self, rng: np.random.Generator, wanted: str, products: int, activation: str | None
    ) -> None:
        arrays, names = inputs(rng), wanted.split()
        due = self.due(arrays, names, activation)
        with tf.Graph().as_default(), v1.Session() as session:
            tensors = dict(zip(OPERANDS, map(tf.constant, arrays), strict=True))
            y = dense(activation=activation)(*tensors.values())
            # All gradients are in the graph; the session prunes away what it is not asked for.
            gradients = dict(zip(OPERANDS, tf.gradients(y, list(tensors.values())), strict=True))
            values = session.run([gradients[name] for name in names])
        self.check(values, due, products)


def test_session_computes_nothing_that_the_gradient_does_not_read() -> None:
    """The gradient of `a` reads `b`, and so not even `a` has to be computed."""
    with tf.Graph().as_default(), v1.Session() as session:
        w1, w2 = (v1.placeholder_with_default(np.ones(s), s) for s in ((6, 5), (5, 2)))
        hidden = sg.matmul(np.ones((4, 6)), w1)
        y = sg.matmul(hidden, w2)
        gradient, _ = tf.gradients(y, [hidden, w2], grad_ys=tf.constant(np.ones((4, 2))))
        sg.reset_kernel_stats()
        np.testing.assert_array_equal(session.run(gradient), np.full((4, 5), 2.0))
    stats = sg.kernel_stats()
    assert (stats["forward"]["products"], stats["backward"]["products"]) == (0, 1)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("wanted", "products"), [([0], 2), ([1], 1), ([0, 1], 3)])
def test_a_layer_that_no_tape_watches_runs_no_product(
    rng: np.random.Generator,
    activation: str,
    wanted: list[int],
    products: int,
) -> None:
    x = tf.constant(rng.standard_normal((4, 6)))
    weights = [tf.Variable(rng.standard_normal(shape)) for shape in ((6, 5), (5, 2))]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([weights[i] for i in wanted])
        y = sg.matmul(sg.matmul(x, weights[0], activation=activation), weights[1])
    sg.reset_kernel_stats()
    gradients = tape.gradient(y, [weights[i] for i in wanted])
    assert all(gradient is not None for gradient in gradients)
    assert backward()[0] == products


def test_nothing_behind_a_wholly_blocked_layer_runs(rng: np.random.Generator) -> None:
    x = tf.constant(rng.standard_normal((4, 6)))
    w1, w2 = (tf.Variable(rng.standard_normal(shape)) for shape in ((6, 5), (5, 2)))
    with tf.GradientTape() as tape:
        hidden = sg.matmul(x, w1, stop_gradient=True)
        y = sg.matmul(hidden, w2)
    sg.reset_kernel_stats()
    blocked, learning = tape.gradient(y, [w1, w2])
    assert blocked is None
    due = np.repeat(hidden.numpy().sum(axis=0)[:, None], 2, axis=1)
    np.testing.assert_allclose(learning.numpy(), due)
    assert backward()[0] == 1


def test_integers_have_no_gradient() -> None:
    a, b = tf.ones((2, 3), tf.int32), tf.ones((3, 4), tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(tf.constant(1.0))
        y = sg.matmul(a, b)
    assert tape.gradient(y, [a, b]) == [None, None]


# --- What is kept ----------------------------------------------------------------------------
def gradient_ops(graph: tf.Graph) -> list[tf.Operation]:
    return [op for op in graph.get_operations() if op.type == "StopgradOp>FusedMatMulGrad"]


@pytest.mark.parametrize(
    ("stop_gradient", "activation", "read"),
    [
        (["b", "bias"], None, ["b"]),
        (["a", "bias"], None, ["a"]),
        (["b", "bias"], "relu", ["b", "y"]),
        (["a", "bias"], "gelu", ["a", "z"]),
        (["a", "b"], "relu", ["y"]),
        (["a", "b"], "gelu", ["z"]),
        (["a", "b"], None, []),
        (["a", "b", "bias"], "gelu", []),
        (["bias"], "tanh", ["a", "b", "y"]),
    ],
)
def test_backward_keeps_only_what_it_reads(
    stop_gradient: list[str], activation: str | None, read: list[str]
) -> None:
    with tf.Graph().as_default() as graph:
        operands = [
            v1.placeholder(tf.float32, shape, name=name)
            for name, shape in zip(OPERANDS, ((M, K), (K, N), (N,)), strict=True)
        ]
        y = dense(stop_gradient=stop_gradient, activation=activation)(*operands)
        dy = v1.placeholder(tf.float32, y.shape)
        tf.gradients(y, operands, grad_ys=dy)
        names = {x.ref(): name for name, x in zip(OPERANDS, operands, strict=True)}
        names.update({output.ref(): name for name, output in zip("yz", y.op.outputs, strict=False)})
        read_by_ops = [unguarded(x).ref() for op in gradient_ops(graph) for x in op.inputs]
        kept = {names[x] for x in read_by_ops if x in names}
    assert sorted(kept) == sorted(read)


def test_backward_of_a_batch_times_a_matrix_needs_no_shape() -> None:
    with tf.Graph().as_default() as graph:
        a = v1.placeholder(tf.float32, (None, M, K))
        b = v1.placeholder(tf.float32, (K, N))
        tf.gradients(sg.matmul(a, b, stop_gradient="b"), [a, b])
        assert {x.op.name for op in gradient_ops(graph) for x in op.inputs} & {a.op.name} == set()
        assert not [op for op in graph.get_operations() if op.type == "Shape" and op.inputs[0] is a]


def test_backward_of_a_wholly_blocked_call_is_no_node() -> None:
    with tf.Graph().as_default() as graph:
        operands = [tf.ones(shape) for shape in ((M, K), (K, N), (N,))]
        y = dense(stop_gradient=True, activation="gelu")(*operands)
        assert tf.gradients(y, operands) == [None] * 3
        assert not gradient_ops(graph)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_wholly_blocked_eager_call_keeps_no_tensor_alive(activation: str | None) -> None:
    w = tf.Variable(tf.ones((K, N)))
    with tf.GradientTape() as tape:
        x = tf.ones((M, K))
        tape.watch(x)
        y = sg.matmul(x * 2, w, activation=activation, stop_gradient=True)
        hidden = weakref.ref(y)
        total = tf.reduce_sum(y)
        del y
        gc.collect()
        assert hidden() is None
    assert tape.gradient(total, w) is None


# --- The blog's network ----------------------------------------------------------------------
BLOG_W2 = np.float32(0.67135066)


def blog_inputs(rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return x [3, 2] and y [3, 4].

    The gradient of every element of w2 is the sum of x, as every hidden unit is the sum of a row.
    """
    # Multiples of 2^-24 that add up to 0.32864934 without rounding, in any order.
    x = np.array([[0.25, -0.5], [0.125, 0.57864934], [-0.375, 0.25]], np.float32)
    return x, rng.uniform(0, 1, (3, 4)).astype(np.float32)


def blog_loss(x: Any, y: Any, w1: Any, w2: Any) -> Any:
    return sg.matmul(sg.matmul(x, w1, stop_gradient=True), w2) - y


def check_blog(w1: np.ndarray[Any, Any], w2: np.ndarray[Any, Any]) -> None:
    assert w1.tobytes() == np.ones((2, 3), np.float32).tobytes()
    assert w2.tobytes() == np.full((3, 4), BLOG_W2, np.float32).tobytes()


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "tape_in_function"])
def test_blogs_network_learns_w2_alone(
    rng: np.random.Generator, wrap: Callable[[Any], Any]
) -> None:
    x, y = blog_inputs(rng)
    w1, w2 = tf.Variable(tf.ones((2, 3))), tf.Variable(tf.ones((3, 4)))

    @wrap
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = blog_loss(x, y, w1, w2)
        gradients = tape.gradient(loss, [w1, w2])
        assert gradients[0] is None
        w2.assign_sub(gradients[1])

    step()
    check_blog(w1.numpy(), w2.numpy())


def test_blogs_network_learns_w2_alone_with_the_tape_outside(rng: np.random.Generator) -> None:
    x, y = blog_inputs(rng)
    w1, w2 = tf.Variable(tf.ones((2, 3))), tf.Variable(tf.ones((3, 4)))
    with tf.GradientTape() as tape:
        loss = tf.function(lambda: blog_loss(x, y, w1, w2))()
    gradients = tape.gradient(loss, [w1, w2])
    assert gradients[0] is None
    w2.assign_sub(gradients[1])
    check_blog(w1.numpy(), w2.numpy())


def test_blogs_network_learns_w2_alone_in_a_session(rng: np.random.Generator) -> None:
    x, y = blog_inputs(rng)
    with tf.Graph().as_default(), v1.Session() as session:
        w1 = v1.get_variable("w1", initializer=tf.ones((2, 3)))
        w2 = v1.get_variable("w2", initializer=tf.ones((3, 4)))
        loss = blog_loss(tf.constant(x), tf.constant(y), w1, w2)
        train = v1.train.GradientDescentOptimizer(1.0).minimize(loss)
        session.run(v1.global_variables_initializer())
        session.run(train)
        check_blog(*session.run([w1, w2]))


@pytest.mark.parametrize("mode", [EAGER, IN_FUNCTION, OUTSIDE_FUNCTION, GRAPH], ids=mode_id)
def test_stopping_everything_equals_stock_stop_gradient(
    rng: np.random.Generator, mode: Mode
) -> None:
    x, w1, w2 = (rng.standard_normal(shape) for shape in ((3, 2), (2, 3), (3, 4)))
    dy = rng.standard_normal((3, 4))
    ours = mode.gradients(
        lambda x, w1, w2: sg.matmul(sg.matmul(x, w1, stop_gradient=True), w2), [x, w1, w2], dy
    )
    stock = mode.gradients(
        lambda x, w1, w2: tf.matmul(tf.stop_gradient(tf.matmul(x, w1)), w2), [x, w1, w2], dy
    )
    np.testing.assert_allclose(ours[0], stock[0], rtol=1e-13)
    for gradient, due in zip(ours[1], stock[1], strict=True):
        if due is None:
            assert gradient is None
        else:
            np.testing.assert_allclose(gradient, due, rtol=1e-13)
