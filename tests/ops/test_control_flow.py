"""Inside loops, branches and maps of TensorFlow, and on several Python threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import stopgrad_op as sg

v1 = tf.compat.v1
Function = Callable[..., Any]


def stock(
    a: Any, b: Any, *, bias: Any = None, activation: str = "tanh", stop_gradient: Any = None
) -> Any:
    assert activation == "tanh"
    b = tf.stop_gradient(b) if stop_gradient == "b" else b
    z = tf.matmul(a, b)
    return tf.tanh(z if bias is None else z + bias)


def ours(a: Any, b: Any, **options: Any) -> Any:
    return sg.matmul(a, b, activation="tanh", **options)


def while_loop(matmul: Function, x: Any, w: Any) -> Any:
    _, y = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, matmul(y, w)), (0, x))
    return y


def growing_while_loop(matmul: Function, x: Any, w: Any) -> Any:
    """A loop over a shape that it does not know."""
    _, y = tf.while_loop(
        lambda i, _: i < 2,
        lambda i, y: (i + 1, tf.concat([y, matmul(y, w)], 0)),
        (0, x),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, 4])),
    )
    return y


def map_fn(matmul: Function, x: Any, w: Any) -> Any:
    return tf.map_fn(lambda row: matmul(row[None], w)[0], x)


def scan(matmul: Function, x: Any, w: Any) -> Any:
    return tf.scan(lambda y, row: matmul((y + row)[None], w)[0], x)


def cond(matmul: Function, x: Any, w: Any) -> Any:
    return tf.cond(
        tf.reduce_sum(x) > 0, lambda: matmul(x, w), lambda: matmul(2 * x, w, stop_gradient="b")
    )


def nested_function(matmul: Function, x: Any, w: Any) -> Any:
    return tf.function(lambda x: matmul(matmul(x, w), w, stop_gradient="b"))(x)


def custom_gradient(matmul: Function, x: Any, w: Any) -> Any:
    return tf.recompute_grad(lambda x: matmul(x, w))(x)


CONSTRUCTS = [while_loop, growing_while_loop, map_fn, scan, cond, nested_function, custom_gradient]


def value_and_gradients(construct: Function, matmul: Function, x: Any, w: Any) -> list[Any]:
    x, w = tf.convert_to_tensor(x), tf.convert_to_tensor(w)
    with tf.GradientTape() as tape:
        tape.watch([x, w])
        y = construct(matmul, x, w)
    return [y, *tape.gradient(y, [x, w])]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("construct", CONSTRUCTS)
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
def test_construct_gives_what_stock_gives(
    rng: np.random.Generator, wrap: Any, construct: Function, sign: float
) -> None:
    x, w = sign * rng.uniform(0.1, 1, (3, 4)), rng.standard_normal((4, 4))
    if construct is custom_gradient:
        w = tf.Variable(w)
        construct_ = lambda matmul, x, _: custom_gradient(matmul, x, w)  # noqa: E731
    else:
        construct_ = construct
    values = wrap(lambda: value_and_gradients(construct_, ours, x, w))()
    due = wrap(lambda: value_and_gradients(construct_, stock, x, w))()
    for value, exact in zip(values, due, strict=True):
        if exact is None:
            assert value is None
        else:
            np.testing.assert_allclose(value, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("construct", [while_loop, map_fn, cond])
@pytest.mark.parametrize("control_flow_v2", [True, False])
def test_construct_in_a_session(
    rng: np.random.Generator, construct: Function, control_flow_v2: bool
) -> None:
    x, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    was_v2 = v1.control_flow_v2_enabled()
    results = []
    try:
        (v1.enable_control_flow_v2 if control_flow_v2 else v1.disable_control_flow_v2)()
        for matmul in (ours, stock):
            with tf.Graph().as_default(), v1.Session() as session:
                operands = [v1.placeholder(tf.float64, shape) for shape in ([None, 4], [4, 4])]
                y = construct(matmul, *operands)
                gradients = tf.gradients(y, operands)
                results.append(
                    session.run([y, *gradients], dict(zip(operands, (x, w), strict=True)))
                )
    finally:
        (v1.enable_control_flow_v2 if was_v2 else v1.disable_control_flow_v2)()
    for value, exact in zip(*results, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-10, atol=1e-12)


def test_gradient_of_a_gradient_free_loop_runs_no_backward_product(
    rng: np.random.Generator,
) -> None:
    x, w = tf.constant(rng.standard_normal((3, 4))), tf.Variable(rng.standard_normal((4, 4)))
    frozen = lambda a, b: sg.matmul(a, b, stop_gradient=True)  # noqa: E731
    sg.reset_kernel_stats()
    with tf.GradientTape() as tape:
        y = tf.function(while_loop)(frozen, x, w) + sg.matmul(x, w)
    assert tape.gradient(y, w) is not None
    assert sg.kernel_stats()["backward"]["products"] == 1


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
def test_several_python_threads_at_once(rng: np.random.Generator, wrap: Any) -> None:
    x = [rng.standard_normal((61 + i, 40)) for i in range(4)]
    weights = [rng.standard_normal((40, 30)) for _ in range(4)]
    failures: list[BaseException] = []

    @wrap
    def step(x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = sg.matmul(x, w, activation="tanh")
        return y, tape.gradient(y, w)

    def work(index: int) -> None:
        try:
            y = np.tanh(x[index] @ weights[index])
            due = x[index].T @ (1 - y * y)
            for _ in range(15):
                value, gradient = step(tf.constant(x[index]), tf.constant(weights[index]))
                np.testing.assert_allclose(value, y, rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(gradient, due, rtol=1e-9, atol=1e-11)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_call_serves_tapes_within_tapes(rng: np.random.Generator) -> None:
    x, w = tf.constant(rng.standard_normal((3, 4))), tf.Variable(rng.standard_normal((4, 2)))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            y = sg.matmul(x, w, activation="tanh")
        first = inner.gradient(y, w)
        total = tf.reduce_sum(y)
    np.testing.assert_allclose(outer.gradient(total, w), first)


def test_recording_can_be_stopped(rng: np.random.Generator) -> None:
    x, w = tf.constant(rng.standard_normal((3, 4))), tf.Variable(rng.standard_normal((4, 2)))
    with tf.GradientTape() as tape:
        with tape.stop_recording():
            unseen = sg.matmul(x, w)
        seen = sg.matmul(x, w)
    assert tape.gradient(unseen + seen, w) is None
