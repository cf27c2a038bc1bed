"""The ops on TensorFlow's GPU: placement, agreement with the CPU, training, memory.

What an op computes is tested by tests/ops with --device gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import tensorflow as tf

import stopgrad_op as sg

pytestmark = pytest.mark.gpu

MODES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "eager": lambda function: function,
    "function": tf.function,
    "compiled": lambda function: tf.function(function, jit_compile=True),
}
every_mode = pytest.mark.parametrize("mode", MODES)


def layer(x: tf.Tensor, w: tf.Tensor, bias: tf.Tensor, **options: Any) -> tf.Tensor:
    return sg.matmul(x, w, bias=bias, activation="gelu", **options)


def arrays(rng: np.random.Generator, dtype: str = "float32") -> list[tf.Tensor]:
    shapes = [(33, 24), (24, 40), (40,)]
    return [tf.constant(reference.random_array(rng, shape, dtype)) for shape in shapes]


@every_mode
def test_ops_run_on_the_gpu(rng: np.random.Generator, mode: str) -> None:
    operands = arrays(rng)

    @MODES[mode]
    def step(x: tf.Tensor, w: tf.Tensor, bias: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, w, bias])
            y = layer(x, w, bias)
        return [y, *tape.gradient(y, [x, w, bias])]

    sg.reset_kernel_stats()
    for result in step(*operands):
        assert "GPU:0" in result.device
    if mode != "compiled":
        assert sg.kernel_stats()["backward"]["products"] == 2


@every_mode
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("device", ["/CPU:0", "/GPU:0"])
def test_both_devices_give_the_same(
    rng: np.random.Generator, mode: str, dtype: str, device: str
) -> None:
    """Both are compared with float64."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    problem = reference.random_problem(rng, (33, 24), (24, 40), dtype, bias=True, activation="gelu")
    dy = reference.random_array(rng, (33, 40), dtype)
    with tf.device(device):
        operands = [tf.constant(x) for x in (problem.a, problem.b, problem.bias)]

        @MODES[mode]
        def step(dy: tf.Tensor, *operands: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(operands)
                y = layer(*operands)
            return [y, *tape.gradient(y, operands, dy)]

        y, *gradients = step(tf.constant(dy), *operands)
    tf.config.experimental.enable_tensor_float_32_execution(True)
    reference.assert_close(y.numpy(), reference.forward(problem), dtype)
    z = reference.preactivation(problem).value.astype(reference.numpy_dtype(dtype))
    exact = reference.gradients(problem, dy, None, z)
    for name, gradient in zip(("a", "b", "bias"), gradients, strict=True):
        reference.assert_close(gradient.numpy(), exact[name], dtype, what=name)


def test_integers_are_placed_on_the_cpu() -> None:
    """Also where the caller asks for a GPU: TensorFlow places softly."""
    a = tf.constant([[1, 2], [3, 4]])
    with tf.device("/GPU:0"):
        product = sg.matmul(a, a)
    assert "CPU:0" in product.device
    np.testing.assert_array_equal(product, [[7, 10], [15, 22]])


def test_tf32_follows_the_switch_of_tensorflow(rng: np.random.Generator) -> None:
    """TF32 keeps 10 bits of a factor, float32 has 23."""
    a, b = (tf.constant(rng.standard_normal((512, 512)), tf.float32) for _ in range(2))
    exact = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)
    errors = {}
    for allowed in (True, False):
        tf.config.experimental.enable_tensor_float_32_execution(allowed)
        errors[allowed] = np.abs(sg.matmul(a, b).numpy() - exact).max()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    assert errors[False] < errors[True] / 10


def test_blocked_operands_launch_nothing(rng: np.random.Generator) -> None:
    x, w, bias = arrays(rng)
    with tf.GradientTape() as tape:
        tape.watch([x, w, bias])
        y = layer(x, w, bias, stop_gradient=True)
    sg.reset_kernel_stats()
    assert tape.gradient(y, [x, w, bias]) == [None, None, None]
    assert sg.kernel_stats()["backward"]["products"] == 0


def test_large_products_run_on_the_rows_that_are_left(rng: np.random.Generator) -> None:
    rows, width = 16384, 2048
    active = np.zeros(rows, bool)
    active[rng.permutation(rows)[: rows // 8]] = True
    x, dy = (tf.constant(rng.standard_normal((rows, width)), tf.bfloat16) for _ in range(2))
    w = tf.constant(rng.standard_normal((width, width)) / width**0.5, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch([x, w])
        y = sg.matmul(x, w, gradient_rows=active)
    sg.reset_kernel_stats()
    dx, dw = tape.gradient(y, [x, w], dy)
    flops = 2 * 2 * (rows // 8) * width * width
    assert sg.kernel_stats()["backward"] == {"products": 2, "flops": flops}
    wide_x, wide_dy, wide_w = (t.numpy().astype(np.float32) for t in (x, dy, w))
    exact = wide_dy[active] @ wide_w.T
    np.testing.assert_allclose(dx.numpy()[active].astype(np.float32), exact, atol=0.02, rtol=0.02)
    assert not np.any(dx.numpy()[~active])
    exact = wide_x[active].T @ wide_dy[active]
    np.testing.assert_allclose(dw.numpy().astype(np.float32), exact, atol=0.5, rtol=0.02)


def test_memory_is_given_back(rng: np.random.Generator) -> None:
    x = tf.constant(rng.standard_normal((256, 128)), tf.float32)
    w = tf.Variable(rng.standard_normal((128, 128)), dtype=tf.float32)
    bias = tf.Variable(tf.zeros(128))

    def step() -> None:
        with tf.GradientTape() as tape:
            y = layer(layer(x, w, bias), w, bias)
        for variable, gradient in zip((w, bias), tape.gradient(y, [w, bias]), strict=True):
            variable.assign_sub(1e-6 * gradient)

    for _ in range(20):
        step()
    tf.config.experimental.reset_memory_stats("GPU:0")
    step()
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    for _ in range(1000):
        step()
    assert tf.config.experimental.get_memory_info("GPU:0")["peak"] <= peak


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_keras_fits(rng: np.random.Generator, policy: str) -> None:
    import keras

    class Layer(keras.layers.Layer):
        def build(self, shape: tuple[int, ...]) -> None:
            self.w = self.add_weight(shape=(shape[-1], 8))

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return sg.matmul(x, tf.cast(self.w, x.dtype), activation="relu")

    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential([Layer(), keras.layers.Dense(1, dtype="float32")])
        model.compile("sgd", "mse")
        x = rng.standard_normal((256, 16)).astype(np.float32)
        history = model.fit(x, x[:, :1], epochs=5, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert history[-1] < history[0]


def test_steps_in_replicas_on_streams_of_their_own() -> None:
    """In a process of its own, since virtual devices have to be made before the first op."""
    import subprocess
    import sys

    code = """
import numpy as np
import tensorflow as tf
gpu = tf.config.list_physical_devices("GPU")[0]
tf.config.set_logical_device_configuration(
    gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=2048)] * 2)
import stopgrad_op as sg
strategy = tf.distribute.MirroredStrategy(["GPU:0", "GPU:1"])
with strategy.scope():
    w = tf.Variable(np.eye(64, dtype=np.float32))

@tf.function
def step(x):
    def replica(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(sg.matmul(x, w))
        return tape.gradient(loss, w)
    return strategy.reduce("sum", strategy.run(replica, (x,)), axis=None)

x = np.arange(32 * 64, dtype=np.float32).reshape(32, 64)
for _ in range(20):
    got = step(tf.constant(x))
np.testing.assert_allclose(got, 2 * np.repeat(x.sum(0)[:, None], 64, 1), rtol=1e-3)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
