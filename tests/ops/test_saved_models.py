"""A SavedModel works in a fresh process that has imported stopgrad_op, and trains there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tensorflow as tf

import stopgrad_op as sg

LOAD_AND_TRAIN = """
import sys
import numpy as np
import tensorflow as tf

import stopgrad_op as sg

model = tf.saved_model.load(sys.argv[1])
x = np.load(sys.argv[2])
sg.reset_kernel_stats()
with tf.GradientTape() as tape:
    y = model.predict(x)
    loss = tf.reduce_sum(y * y)
variables = [model.w1, model.w2, model.bias]
gradients = tape.gradient(loss, variables)
products = sg.kernel_stats()["backward"]["products"]
serving = model.signatures["serving_default"](tf.constant(x))["y"]
model.w2.assign_sub(0.1 * gradients[1])
np.savez(
    sys.argv[3],
    y=y,
    frozen=gradients[0] is None,
    w2=gradients[1],
    bias=gradients[2],
    after=model.predict(x),
    products=products,
    serving=serving,
)
"""


class Network(tf.Module):
    """A frozen first layer and a second one that learns, its bias at half the rate."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.w1 = tf.Variable(rng.standard_normal((7, 5)))
        self.w2 = tf.Variable(rng.standard_normal((5, 3)))
        self.bias = tf.Variable(rng.standard_normal(3))

    @tf.function(input_signature=[tf.TensorSpec([None, 7], tf.float64)])
    def predict(self, x: tf.Tensor) -> tf.Tensor:
        hidden = sg.matmul(x, self.w1, activation="relu", stop_gradient=True)
        return sg.matmul(
            hidden,
            self.w2,
            bias=self.bias,
            activation="gelu",
            gradient_scale={"bias": 0.5},
        )

    @tf.function(input_signature=[tf.TensorSpec([None, 7], tf.float64)])
    def serve(self, x: tf.Tensor) -> dict[str, Any]:
        return {"y": self.predict(x)}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def saved(tmp_path: Path, rng: np.random.Generator) -> tuple[Network, Path]:
    network = Network(rng)
    tf.saved_model.save(network, str(tmp_path / "model"), signatures=network.serve)
    return network, tmp_path


def test_saved_model_trains_in_a_fresh_process(
    saved: tuple[Network, Path], rng: np.random.Generator
) -> None:
    network, folder = saved
    x = rng.standard_normal((4, 7))
    np.save(folder / "x.npy", x)
    arguments = [str(folder / name) for name in ("model", "x.npy", "results.npz")]
    process = run(LOAD_AND_TRAIN, *arguments)
    assert process.returncode == 0, process.stderr
    results = np.load(folder / "results.npz")

    hidden = np.maximum(x @ network.w1.numpy(), 0)
    w2 = network.w2.numpy()
    problem = reference.Problem(hidden, w2, network.bias.numpy(), activation="gelu")
    y = reference.forward(problem)
    gradients = reference.gradients(problem, 2 * y.value, {"bias": 0.5})
    reference.assert_close(results["y"], y, "float64")
    reference.assert_close(results["serving"], y, "float64")
    assert results["frozen"]
    np.testing.assert_allclose(results["w2"], gradients["b"].value, rtol=1e-9)
    np.testing.assert_allclose(results["bias"], gradients["bias"].value, rtol=1e-9)
    assert results["products"] == 1
    problem = replace(problem, b=w2 - 0.1 * gradients["b"].value)
    reference.assert_close(results["after"], reference.forward(problem), "float64")


def test_saved_model_loads_in_this_process(
    saved: tuple[Network, Path], rng: np.random.Generator
) -> None:
    network, folder = saved
    loaded = tf.saved_model.load(str(folder / "model"))
    x = rng.standard_normal((4, 7))
    np.testing.assert_array_equal(loaded.predict(x), network.predict(x))


def test_graph_def_goes_through_text_and_back(rng: np.random.Generator) -> None:
    a, b, bias = (rng.standard_normal(shape) for shape in ((4, 7), (7, 3), (3,)))
    with tf.Graph().as_default() as graph:
        y = sg.matmul(a, b, bias=bias, activation="softplus", stop_gradient="a", gradient_scale=2)
        name = y.name
    definition = graph.as_graph_def()
    with tf.Graph().as_default() as copy, tf.compat.v1.Session() as session:
        tf.import_graph_def(definition, name="")
        result = copy.get_tensor_by_name(name)
        gradients = tf.gradients(result, list(result.op.inputs))
        value = session.run(result)
    np.testing.assert_allclose(value, np.logaddexp(0, a @ b + bias), rtol=1e-12)
    assert [gradient is None for gradient in gradients[:3]] == [True, False, False]
