"""TensorFlow's profiler counts what the ops do, as it counts its own, and names them in traces."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import stopgrad_op as sg
from stopgrad_op._library import load_ops

v1 = tf.compat.v1
M, K, N = 5, 7, 3
PRODUCT = 2 * M * K * N
BIAS, SUM = M * N, (M - 1) * N


def count_graph(graph: tf.Graph) -> int:
    """Return the floating-point operations of a graph, from the profiler."""
    builder = v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    return int(v1.profiler.profile(graph, options=options).total_float_ops)


def count(build: Callable[[], Any]) -> int:
    with tf.Graph().as_default() as graph:
        build()
        return count_graph(graph)


def step(
    function: Callable[..., Any], *shapes: tuple[int, ...], dtype: str = "float32"
) -> Callable[[], Any]:
    """Return what builds a forward and a backward pass."""

    def build() -> Any:
        operands = [v1.placeholder(dtype, shape) for shape in shapes]
        y = function(*operands)
        return tf.gradients(y, operands, grad_ys=v1.placeholder(dtype, y.shape))

    return build


def dense(**options: Any) -> Callable[..., Any]:
    return lambda a, b, bias=None: sg.matmul(a, b, bias=bias, **options)


DENSE = ((M, K), (K, N), (N,))
CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "forward": (step(dense(stop_gradient=True), *DENSE), PRODUCT + BIAS),
    "step": (step(dense(activation="gelu"), *DENSE), 3 * PRODUCT + BIAS + SUM),
    "no bias": (step(dense(activation="relu"), *DENSE[:2]), 3 * PRODUCT),
    "blocked": (step(dense(stop_gradient="a"), *DENSE), 2 * PRODUCT + BIAS + SUM),
    # The one is a product of scalars, by which the zeros depend on dy and a.
    "scale 0": (step(dense(gradient_scale={"b": 0}), *DENSE[:2]), 2 * PRODUCT + 1),
    "scale": (step(dense(gradient_scale={"b": 2}), *DENSE[:2]), 3 * PRODUCT),
    "rows": (step(dense(gradient_rows=np.eye(M)[0]), *DENSE[:2]), 3 * PRODUCT),
    "slice": (
        step(dense(trainable={"b": np.s_[1::2, :2]}), *DENSE[:2]),
        2 * PRODUCT + 2 * M * 3 * 2,
    ),
    "columns": (step(dense(trainable={"a": sg.columns([4])}), *DENSE[:2]), 2 * PRODUCT + 2 * M * N),
    "bias": (step(dense(trainable={"bias": np.s_[-1:]}), *DENSE), 3 * PRODUCT + BIAS + M - 1),
    "stored rows": (
        step(dense(trainable={"b": sg.rows([0, 2])}, transpose_b=True), (M, K), (N, K)),
        2 * PRODUCT + 2 * M * K * 2,
    ),
    "rows and columns": (
        step(dense(gradient_rows=np.eye(M)[0], trainable={"b": sg.rows([1])}), *DENSE[:2]),
        2 * PRODUCT + 2 * M * N,
    ),
    "two batches": (
        step(dense(stop_gradient="b", trainable={"a": sg.rows([0, 1])}), (4, M, K), (4, K, N)),
        4 * (PRODUCT + 2 * 2 * K * N),
    ),
    "transposed": (step(dense(transpose_a=True, adjoint_b=True), (K, M), (N, K)), 3 * PRODUCT),
    "batch": (step(dense(), (2, 1, M, K), (4, K, N)), 8 * 3 * PRODUCT),
    "shared a": (step(dense(), (M, K), (4, K, N)), 4 * 3 * PRODUCT),
    "shared b": (
        step(dense(), (4, M, K), (K, N), (N,)),
        4 * (3 * PRODUCT + BIAS) + (4 * M - 1) * N,
    ),
    "complex": (step(dense(), *DENSE[:2], dtype="complex64"), 3 * PRODUCT),
    "empty": (step(dense(), (0, K), (K, N), (N,)), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_profiler_counts_what_runs(case: str) -> None:
    build, due = CASES[case]
    assert count(build) == due


@pytest.mark.parametrize("shapes", [DENSE, ((M, K), (K, N))])
def test_counts_are_those_of_stock_ops(shapes: Any) -> None:
    def in_stock_ops(a: Any, b: Any, bias: Any = None) -> Any:
        z = tf.matmul(a, b)
        return tf.nn.relu(z if bias is None else tf.nn.bias_add(z, bias))

    assert count(step(dense(activation="relu"), *shapes)) == count(step(in_stock_ops, *shapes)) > 0


def test_counts_of_a_batch_are_those_of_stock_ops() -> None:
    # Forward: of a transposed factor TensorFlow's count for batches takes the wrong dimension.
    shapes = (4, M, K), (4, K, N)

    def build(product: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: product(*(v1.placeholder(tf.float32, shape) for shape in shapes))

    assert count(build(sg.matmul)) == count(build(tf.matmul)) == 4 * PRODUCT


@pytest.mark.parametrize("region", [np.s_[2:, 1:], sg.rows([1, 2, 6]), sg.columns([0])], ids=str)
def test_products_are_those_that_the_kernels_count(region: Any) -> None:
    function = dense(trainable={"b": region}, activation="gelu")
    sg.reset_kernel_stats()
    with tf.Graph().as_default(), v1.Session() as session:
        operands = [tf.ones((4, M, K)), tf.ones((K, N))]
        y = function(*operands)
        session.run([y, *tf.gradients(y, operands)])
    stats = sg.kernel_stats()
    ran = stats["forward"]["flops"] + stats["backward"]["flops"]
    assert count(step(function, (4, M, K), (K, N))) == ran


@pytest.mark.parametrize("stacked", ["x", "w", "both"])
def test_mapped_gradients_are_those_that_the_kernels_count(stacked: str) -> None:
    """Each step's own gradient of what is the same in all steps, and of what is not."""

    def step(x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = sg.matmul(x, w, activation="gelu")
        return tape.gradient(y, [x, w])

    x = tf.ones((4, M, K) if stacked != "w" else (M, K))
    w = tf.ones((4, K, N) if stacked != "x" else (K, N))

    @tf.function
    def mapped(x: Any, w: Any) -> Any:
        if stacked == "both":
            return tf.vectorized_map(lambda each: step(*each), (x, w))
        if stacked == "x":
            return tf.vectorized_map(lambda x: step(x, w), x)
        return tf.vectorized_map(lambda w: step(x, w), w)

    graph = mapped.get_concrete_function(x, w).graph
    sg.reset_kernel_stats()
    mapped(x, w)
    stats = sg.kernel_stats()
    ran = stats["forward"]["flops"] + stats["backward"]["flops"]
    # TensorFlow leaves the trace of one step in the graph, of which nothing runs.
    assert count_graph(graph) - 3 * PRODUCT == ran == 4 * 3 * PRODUCT


@pytest.mark.parametrize(("scale", "due"), [(0.0, 0), (0.5, PRODUCT)])
def test_constant_scale_of_zero_counts_nothing(scale: float, due: int) -> None:
    def build() -> None:
        load_ops().stopgrad_op_fused_mat_mul_grad(
            dy=v1.placeholder(tf.float32, (M, N)),
            a=[v1.placeholder(tf.float32, (M, K))],
            b=[],
            saved=[],
            shape_a=[],
            shape_b=[],
            scales=[tf.constant(scale, tf.float64)],
            rows=[],
            indices=[],
            num_needed=1,
            needed=["b"],
            scaled=["b"],
        )

    assert count(build) == due


def test_unknown_shapes_are_left_out() -> None:
    def build() -> None:
        sg.matmul(v1.placeholder(tf.float32, (None, K)), v1.placeholder(tf.float32, (K, N)))
        sg.matmul(v1.placeholder(tf.float32, (M, K)), v1.placeholder(tf.float32, (K, N)))

    assert count(build) == PRODUCT


def test_function_is_counted_by_what_its_tape_asks_for() -> None:
    @tf.function
    def train(x: tf.Tensor, w1: tf.Tensor, w2: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w2)
            hidden = sg.matmul(x, w1, activation="relu")
            y = sg.matmul(hidden, w2)
        return tape.gradient(y, w2)

    operands = (tf.ones(shape) for shape in ((M, K), (K, 4), (4, N)))
    due = sum(2 * math.prod(sizes) for sizes in ((M, K, 4), (M, 4, N), (M, 4, N)))
    assert count_graph(train.get_concrete_function(*operands).graph) == due


def test_trace_names_the_ops(tmp_path: Path) -> None:
    @tf.function
    def train(x: tf.Tensor, w: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = sg.matmul(x, w)
        return tape.gradient(y, w)

    operands = tf.ones((M, K)), tf.ones((K, N))
    train(*operands)
    tf.profiler.experimental.start(str(tmp_path))
    train(*operands)
    sg.matmul(*operands)
    tf.profiler.experimental.stop()
    trace = b"".join(path.read_bytes() for path in tmp_path.rglob("*.xplane.pb"))
    for name in (b"FusedMatMul", b"FusedMatMulGrad", b"FusedMatMulEager"):
        assert b"StopgradOp>" + name in trace


def test_run_metadata_names_the_ops() -> None:
    options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
    metadata = v1.RunMetadata()
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = (v1.placeholder(tf.float32, shape) for shape in ((M, K), (K, N)))
        y = sg.matmul(a, b, name="dense")
        feed = {a: np.ones((M, K)), b: np.ones((K, N))}
        session.run([y, tf.gradients(y, b)], feed, options, metadata)
    nodes = [node for device in metadata.step_stats.dev_stats for node in device.node_stats]
    labels = " ".join(node.timeline_label for node in nodes)
    assert "dense = StopgradOp>FusedMatMul(" in labels
    assert "= StopgradOp>FusedMatMulGrad(" in labels
