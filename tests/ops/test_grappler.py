"""TensorFlow's graph optimizers share, fold and prune the ops, and leave their precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import stopgrad_op as sg

v1 = tf.compat.v1
M, K, N = 5, 7, 3


@pytest.fixture
def a(rng: np.random.Generator) -> tf.Tensor:
    return tf.constant(rng.standard_normal((M, K)), tf.float32)


@pytest.fixture
def b(rng: np.random.Generator) -> tf.Tensor:
    return tf.constant(rng.standard_normal((K, N)), tf.float32)


@pytest.fixture
def optimizer_options() -> Iterator[Callable[[dict[str, bool]], None]]:
    given: dict[str, bool] = {}

    def set_options(options: dict[str, bool]) -> None:
        given.update(options)
        tf.config.optimizer.set_experimental_options(options)

    yield set_options
    tf.config.optimizer.set_experimental_options(dict.fromkeys(given, False))


def products(function: Callable[..., Any], *arguments: Any) -> tuple[int, int]:
    """Return how many products a tf.function runs, once it is traced and optimized."""
    traced = tf.function(function)
    traced(*arguments)
    sg.reset_kernel_stats()
    traced(*arguments)
    stats = sg.kernel_stats()
    return stats["forward"]["products"], stats["backward"]["products"]


def gradients(a: Any, b: Any, times: int = 1) -> Any:
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([a, b])
        y = sg.matmul(a, b, activation="gelu")
    return [tape.gradient(y, [a, b]) for _ in range(times)]


# --- Sharing, folding, pruning -----------------------------------------------------------------
def test_equal_calls_run_one_product(a: tf.Tensor, b: tf.Tensor) -> None:
    def twice(a: Any, b: Any) -> Any:
        return sg.matmul(a, b, activation="gelu") + sg.matmul(a, b, activation="gelu")

    assert products(twice, a, b) == (1, 0)


def test_calls_with_other_gradients_are_others(a: tf.Tensor, b: tf.Tensor) -> None:
    """What a graph knows of gradients stands in the op, so that they are no equal ops."""

    def two(a: Any, b: Any) -> Any:
        return sg.matmul(a, b) + sg.matmul(a, b, stop_gradient="a")

    assert products(two, a, b) == (2, 0)


def test_equal_gradients_run_their_products_once(a: tf.Tensor, b: tf.Tensor) -> None:
    def twice(a: Any, b: Any) -> Any:
        (first, _), (second, _) = gradients(a, b, times=2)
        return first + second

    assert products(twice, a, b) == (1, 1)


def test_call_on_constants_is_folded(a: tf.Tensor, b: tf.Tensor) -> None:
    x, w = a.numpy(), b.numpy()
    assert products(lambda: sg.matmul(x, w, bias=np.ones(N, np.float32))) == (0, 0)
    assert products(lambda: gradients(tf.constant(x), tf.constant(w))) == (0, 0)


@pytest.mark.parametrize("share", ["all", "a"])
def test_what_nobody_uses_is_pruned(a: tf.Tensor, b: tf.Tensor, share: str) -> None:
    def unused(a: Any, b: Any) -> Any:
        sg.matmul(a, b)
        ((of_a, _),) = gradients(a, b)
        return of_a if share == "a" else a

    assert products(unused, a, b) == ((1, 1) if share == "a" else (0, 0))


def run_in_session(
    config: Any, build: Callable[..., Any], *arrays: Any
) -> tuple[list[Any], list[Any]]:
    """Return results, and the nodes of the graph that ran."""
    options, metadata = v1.RunOptions(output_partition_graphs=True), v1.RunMetadata()
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        inputs = [v1.placeholder(x.dtype, x.shape) for x in arrays]
        fetches = build(*inputs)
        feed = dict(zip(inputs, arrays, strict=True))
        results = session.run(fetches, feed, options, metadata)
    return results, [node for graph in metadata.partition_graphs for node in graph.node]


@pytest.mark.parametrize(("optimized", "due"), [(True, 1), (False, 3)])
def test_optimized_graph_holds_one_op_and_no_constant_product(
    a: tf.Tensor, b: tf.Tensor, optimized: bool, due: int
) -> None:
    def build(a: Any, b: Any) -> Any:
        constant = sg.matmul(tf.ones((M, K)), tf.ones((K, N)))
        sg.matmul(a, b, activation="relu")  # which nobody uses, and no session runs
        return [sg.matmul(a, b) + sg.matmul(a, b) + constant]

    config = v1.ConfigProto()
    if not optimized:
        config.graph_options.optimizer_options.opt_level = v1.OptimizerOptions.L0
        config.graph_options.rewrite_options.disable_meta_optimizer = True
    (result,), nodes = run_in_session(config, build, a.numpy(), b.numpy())
    assert [node.op for node in nodes].count("StopgradOp>FusedMatMul") == due
    exact = 2 * (a.numpy().astype(np.float64) @ b.numpy()) + K
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-5)


# --- Mixed precision ---------------------------------------------------------------------------
def network(x: Any, w1: Any, w2: Any) -> Any:
    """Stock products between those of ours, for the optimizer to change."""
    hidden = sg.matmul(x, w1, activation="relu", stop_gradient="a")
    hidden = tf.nn.relu(tf.matmul(hidden, tf.transpose(w1)))
    return sg.matmul(hidden, w2, activation="tanh", gradient_scale={"b": 0.5})


def network_in_float64(x: Any, w1: Any, w2: Any) -> list[Any]:
    """Return y, and the gradient of w2 for ones."""
    x, w1, w2 = (each.astype(np.float64) for each in (x, w1, w2))
    hidden = np.maximum(np.maximum(x @ w1, 0) @ w1.T, 0)
    problem = reference.Problem(hidden, w2, activation="tanh")
    y = reference.forward(problem).value
    return [y, reference.gradients(problem, np.ones_like(y), {"b": 0.5})["b"].value]


def weights(rng: np.random.Generator) -> list[Any]:
    shapes = (M, K), (K, N), (K, N)
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("option", ["auto_mixed_precision", "auto_mixed_precision_onednn_bfloat16"])
def test_model_works_where_the_optimizer_mixes_precisions(
    rng: np.random.Generator, optimizer_options: Any, option: str
) -> None:
    @tf.function
    def train(x: Any, w1: Any, w2: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w2)
            y = network(x, w1, w2)
        return y, tape.gradient(y, w2)

    arrays = weights(rng)
    optimizer_options({option: True})
    assert tf.config.optimizer.get_experimental_options()[option]
    results = train(*map(tf.constant, arrays))
    for result, due in zip(results, network_in_float64(*arrays), strict=True):
        assert result.dtype == tf.float32
        np.testing.assert_allclose(result, due, rtol=0.05, atol=0.05)


@pytest.mark.cpu_only("it is about an option for a CPU")
def test_optimizer_casts_around_the_op_and_leaves_it(rng: np.random.Generator) -> None:
    """The option for a CPU, which in other than a session no user can set."""
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.auto_mixed_precision_cpu = 1

    def build(x: Any, w1: Any, w2: Any) -> Any:
        y = network(x, w1, w2)
        return [y, *tf.gradients(y, w2)]

    arrays = weights(rng)
    results, nodes = run_in_session(config, build, *arrays)
    for result, due in zip(results, network_in_float64(*arrays), strict=True):
        np.testing.assert_allclose(result, due, rtol=0.02, atol=0.02)
    ours = [node for node in nodes if node.op.startswith("StopgradOp>FusedMatMul")]
    assert {node.attr["T"].type for node in ours} == {tf.float32.as_datatype_enum}
    assert "Cast" in [node.op for node in nodes]


class Dense(keras.layers.Layer):  # type: ignore[misc]
    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], N), name="w")
        self.bias = self.add_weight(shape=(N,), initializer="ones", name="bias")

    def call(self, x: Any) -> Any:
        return sg.matmul(x, self.w, bias=self.bias, activation="gelu")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_policy_of_keras_gives_the_op_16_bits(rng: np.random.Generator, dtype: str) -> None:
    layer = Dense(dtype=f"mixed_{dtype}")
    x = rng.standard_normal((M, K)).astype(np.float32)

    @tf.function
    def train(x: Any) -> Any:
        with tf.GradientTape() as tape:
            y = layer(x)
        return y, tape.gradient(y, layer.trainable_variables)

    y, (of_w, of_bias) = train(x)
    assert y.dtype.name == dtype
    for each in (of_w, of_bias, *layer.trainable_variables):
        assert tf.as_dtype(each.dtype) == tf.float32
    w, bias = (each.numpy() for each in layer.trainable_variables)
    problem = reference.Problem(x, w, bias, activation="gelu")
    exact = reference.gradients(problem, np.ones((M, N)))
    for result, due in (
        (y, reference.forward(problem)),
        (of_w, exact["b"]),
        (of_bias, exact["bias"]),
    ):
        error = np.abs(tf.cast(result, tf.float64) - due.value)
        assert np.all(error <= 4 * reference.epsilon(dtype) * (1 + due.magnitude))
    nodes = train.get_concrete_function(x).graph.get_operations()
    forward = [node for node in nodes if node.type == "StopgradOp>FusedMatMul"]
    assert [node.get_attr("T").name for node in forward] == [dtype]
