"""What users compile: steps with variables, loops, batches of any size, Keras models, clusters."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from modes import needs_xla

import stopgrad_op as sg

pytestmark = needs_xla


def run(code: str, **environ: str) -> str:
    """Run code in a fresh process and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_it_is_found_after_xla_has_compiled_something_else() -> None:
    output = run(
        "import tensorflow as tf\n"
        "assert tf.function(lambda x: x + 1, jit_compile=True)(1.0) == 2\n"
        "import stopgrad_op as sg\n"
        "y = tf.function(sg.matmul, jit_compile=True)(tf.fill((2, 3), 2.0), tf.ones((3, 4)))\n"
        "print(float(tf.reduce_sum(y)))\n"
    )
    assert output.split() == ["48.0"]


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_integers_wrap_around(dtype: Any) -> None:
    largest = tf.fill((2, 3), dtype.max)
    y = tf.function(sg.matmul, jit_compile=True)(largest, tf.ones((3, 1), dtype))
    np.testing.assert_array_equal(y, np.full((2, 1), dtype.max - 2))  # 3 max, modulo 2^bits


def test_clusters_have_the_ops() -> None:
    """Auto-clustering takes them in: nothing is left to run outside of the cluster."""
    output = run(
        "import numpy as np, tensorflow as tf, stopgrad_op as sg\n"
        "w = tf.Variable(np.eye(3, 4, dtype='float32'))\n"
        "@tf.function\n"
        "def step(x):\n"
        "    with tf.GradientTape() as tape:\n"
        "        h = sg.matmul(x, w, activation='relu')\n"
        "        y = sg.matmul(h, tf.ones((4, 2)), stop_gradient='b')\n"
        "    return tape.gradient(y, w)\n"
        "x = tf.ones((5, 3))\n"
        "step(x)  # and TensorFlow folds what is constant\n"
        "before = sg.kernel_stats()\n"
        "print(float(tf.reduce_sum(step(x))), sg.kernel_stats() == before)\n",
        TF_XLA_FLAGS="--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1"
        " --tf_xla_enable_lazy_compilation=false",
    )
    assert output.split() == ["90.0", "True"]


def test_a_training_step_with_variables_and_an_optimizer(rng: np.random.Generator) -> None:
    x = tf.constant(rng.standard_normal((6, 4)), tf.float32)
    start = rng.standard_normal((4, 3)).astype("float32")

    def train(compiled: bool) -> np.ndarray[Any, Any]:
        w = tf.Variable(start)
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build([w])

        @tf.function(jit_compile=compiled)
        def step() -> None:
            with tf.GradientTape() as tape:
                y = sg.matmul(x, w, activation="tanh", trainable={"b": np.s_[:, 1:]})
                loss = tf.reduce_sum(tf.square(y))
            optimizer.apply_gradients([(tape.gradient(loss, w), w)])

        for _ in range(5):
            step()
        value: np.ndarray[Any, Any] = w.numpy()
        return value

    compiled = train(compiled=True)
    np.testing.assert_allclose(compiled, train(compiled=False), rtol=1e-5)
    np.testing.assert_array_equal(compiled[:, 0], start[:, 0])


def test_batches_of_any_size(rng: np.random.Generator) -> None:
    w = tf.constant(rng.standard_normal((4, 3)))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 4), tf.float64)], jit_compile=True)
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = sg.matmul(x, w, activation="sigmoid")
        return y, *tape.gradient(y, [x, w])

    for shape in ((1, 1), (2, 5), (0, 3), (7, 2)):
        x = rng.standard_normal((*shape, 4))
        y, dx, dw = step(x)
        due = 1 / (1 + np.exp(-(x @ w.numpy())))
        dz = due * (1 - due)
        np.testing.assert_allclose(y, due)
        np.testing.assert_allclose(dx, dz @ w.numpy().T, atol=1e-12)
        np.testing.assert_allclose(dw, np.einsum("abk,abn->kn", x, dz), atol=1e-12)


def test_a_batch_whose_size_only_the_program_knows(rng: np.random.Generator) -> None:
    """XLA then computes on a bound and must leave out what lies behind the batch."""
    x, w = rng.standard_normal((6, 4)), tf.constant(rng.standard_normal((4, 3)))
    chosen = np.array([True, False, True, True, False, False])

    @tf.function(jit_compile=True)
    def step(x: tf.Tensor, chosen: tf.Tensor) -> Any:
        rows = tf.boolean_mask(x, chosen)
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = sg.matmul(rows, w, bias=tf.ones(3, tf.float64))
        return tf.reduce_sum(y), tape.gradient(y, w)

    total, dw = step(x, chosen)
    np.testing.assert_allclose(total, (x[chosen] @ w.numpy() + 1).sum())
    np.testing.assert_allclose(dw, x[chosen].T @ np.ones((3, 3)))


def test_a_loop_and_its_gradient(rng: np.random.Generator) -> None:
    x, w = (tf.constant(0.3 * rng.standard_normal(shape)) for shape in ((5, 4), (4, 4)))

    def gradient(multiply: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            _, y = tf.while_loop(
                lambda i, _: i < 4,
                lambda i, h: (i + 1, multiply(h, w)),
                (0, x),
                maximum_iterations=4,
            )
        return tape.gradient(y, w)

    ours = tf.function(gradient, jit_compile=True)(lambda h, w: sg.matmul(h, w, activation="tanh"))
    np.testing.assert_allclose(ours, gradient(lambda h, w: tf.tanh(h @ w)), rtol=1e-9)


@keras.saving.register_keras_serializable("test_compiled")
class Fused(keras.layers.Layer):  # type: ignore[misc]
    """A layer as users write one."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__()
        self.units, self.options = units, options

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], self.units))
        self.b = self.add_weight(shape=(self.units,))

    def call(self, x: Any) -> Any:
        return sg.matmul(x, self.w, bias=self.b, **self.options)


def test_keras_fits_a_compiled_model(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((32, 4)), rng.standard_normal((32, 2))

    def losses(jit_compile: bool) -> list[float]:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([Fused(8, activation="gelu", gradient_scale={"b": 0.5}), Fused(2)])
        model.compile("adam", "mse", jit_compile=jit_compile)
        history = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
        found: list[float] = history.history["loss"]
        return found

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-4)
