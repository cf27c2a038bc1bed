"""What `sg.matmul` takes as operands and options: all that `tf.matmul` and Keras take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import ACTIVATIONS, COMPLEX, FLOATING, INTEGERS

import stopgrad_op as sg

A = np.arange(1.0, 7.0).reshape(2, 3)
B = np.arange(0.5, 6.5).reshape(3, 2)
BIAS = np.array([0.25, -0.5])
DUE = A @ B + BIAS


@pytest.mark.parametrize(
    "convert",
    [
        tf.constant,
        tf.Variable,
        np.array,
        np.asfortranarray,
        lambda x: keras.Variable(x, dtype="float64"),
        lambda x: tf.Variable(x, shape=tf.TensorShape(None)),
    ],
    ids=["tensor", "variable", "array", "fortran_array", "keras_variable", "shapeless_variable"],
)
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
def test_operands_of_every_kind(wrap: Any, convert: Callable[[Any], Any]) -> None:
    a, b, bias = map(convert, (A, B, BIAS))
    np.testing.assert_allclose(wrap(lambda: sg.matmul(a, b, bias=bias))(), DUE)


def test_lists_take_the_dtype_of_a_tensor_beside_them() -> None:
    for a, b in ((A.tolist(), tf.constant(B)), (tf.constant(A), B.tolist())):
        y = sg.matmul(a, b, bias=BIAS.tolist())
        assert y.dtype == tf.float64
        np.testing.assert_allclose(y, DUE)


def test_lists_alone_are_float32_as_in_tf_matmul() -> None:
    y = sg.matmul(A.tolist(), B.tolist())
    assert y.dtype == tf.matmul(A.tolist(), B.tolist()).dtype == tf.float32
    np.testing.assert_allclose(y, A @ B)


def test_gradients_flow_to_variables_of_both_kinds() -> None:
    w, kernel = tf.Variable(B), keras.Variable(B, dtype="float64")
    with tf.GradientTape() as tape:
        y = sg.matmul(A, w) + sg.matmul(A, kernel)
    for gradient in tape.gradient(y, [w, kernel.value]):
        np.testing.assert_allclose(gradient, np.repeat(A.sum(axis=0)[:, None], 2, axis=1))


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX, *INTEGERS), indirect=True)
def test_every_dtype_is_registered(rng: np.random.Generator, dtype: str) -> None:
    problem = reference.random_problem(rng, (5, 7), (7, 3), dtype, bias=True)
    y = sg.matmul(problem.a, problem.b, bias=problem.bias)
    assert y.dtype == tf.as_dtype(problem.a.dtype)
    reference.assert_close(y.numpy(), reference.forward(problem), dtype)


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
def test_every_dtype_with_gradients_is_registered(rng: np.random.Generator, dtype: str) -> None:
    problem = reference.random_problem(rng, (5, 7), (7, 3), dtype)
    a, b = tf.constant(problem.a), tf.constant(problem.b)
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        y = sg.matmul(a, b)
    dy = reference.random_array(rng, (5, 3), dtype)
    exact = reference.gradients(problem, dy)
    for name, gradient in zip("ab", tape.gradient(y, [a, b], tf.constant(dy)), strict=True):
        reference.assert_close(gradient.numpy(), exact[name], dtype)


def test_broadcast_where_stock_onednn_is_wrong(rng: np.random.Generator) -> None:
    problem = reference.random_problem(rng, (2, 1, 31, 5), (5, 5), "float32")
    for wrap in (lambda f: f, tf.function):
        y = wrap(sg.matmul)(problem.a, problem.b)
        reference.assert_close(y.numpy(), reference.forward(problem), "float32")


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("n", [0, 1])
def test_sizes_zero_and_one(shape: tuple[int, int], n: int) -> None:
    a, b, bias = tf.ones(shape), tf.ones((shape[1], n)), tf.ones(n)
    with tf.GradientTape() as tape:
        tape.watch([a, b, bias])
        y = sg.matmul(a, b, bias=bias, activation="gelu")
    z = reference.Problem(a.numpy(), b.numpy(), bias.numpy(), activation="gelu")
    reference.assert_close(y.numpy(), reference.forward(z), "float32")
    for x, gradient in zip((a, b, bias), tape.gradient(y, [a, b, bias]), strict=True):
        assert gradient.shape == x.shape


# --- Activations -----------------------------------------------------------------------------
NAMED = sorted(set(ACTIVATIONS) - {"linear"})
Z = np.linspace(-3.1, 3.3, 12).reshape(1, -1)
ONE = np.ones((1, 1))


def check_activation(activation: Any, name: str) -> None:
    due = ACTIVATIONS[name].value(Z)
    np.testing.assert_allclose(sg.matmul(ONE, Z, activation=activation), due, rtol=1e-12)


@pytest.mark.parametrize("name", NAMED)
def test_activation_by_name(name: str) -> None:
    check_activation(name, name)


@pytest.mark.parametrize(
    ("spelling", "name"), [(None, "linear"), ("linear", "linear"), ("swish", "silu")]
)
def test_keras_spellings(spelling: Any, name: str) -> None:
    check_activation(spelling, name)


FUNCTIONS = [
    pytest.param(module, name, id=f"{module.__name__}.{name}")
    for module in (tf.nn, keras.activations, keras.ops)
    for name in (*NAMED, "swish", "linear")
    if hasattr(module, name)
]


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_activation_by_function(module: Any, name: str) -> None:
    function = getattr(module, name)
    meaning = {"swish": "silu"}.get(name, name)
    if module is keras.ops and name == "gelu":
        meaning = "gelu_tanh"  # approximate by default there
    # The function itself says what is right, to its own precision in float64.
    np.testing.assert_allclose(
        np.asarray(keras.ops.convert_to_numpy(function(tf.constant(Z)))),
        ACTIVATIONS[meaning].value(Z),
        rtol=1e-5,
        atol=1e-7,
    )
    check_activation(function, meaning)


def test_tf_math_spellings_are_the_same_functions() -> None:
    check_activation(tf.math.tanh, "tanh")
    check_activation(tf.math.sigmoid, "sigmoid")
    check_activation(tf.math.softplus, "softplus")
    check_activation(tf.tanh, "tanh")


def test_name_names_the_operation() -> None:
    with tf.Graph().as_default():
        y = sg.matmul(tf.constant(A), tf.constant(B), name="head")
        assert y.op.name == "head"


# --- Keras models ----------------------------------------------------------------------------
def functional_model() -> keras.Model:
    x = keras.Input((3,))
    hidden = keras.layers.Dense(4, kernel_initializer="ones")(x)
    frozen = sg.matmul(x, np.ones((3, 4), np.float32), bias=np.ones(4, np.float32), name="frozen")
    y = sg.matmul(
        hidden + frozen,
        np.full((2, 4), 0.5, np.float32),
        transpose_b=True,
        activation=tf.nn.gelu,
        stop_gradient=["b"],
        gradient_scale={"a": 0.5},
    )
    return keras.Model(x, y)


def test_keras_tensors_make_a_functional_model() -> None:
    model = functional_model()
    assert model.output_shape == (None, 2)
    assert model.output.dtype == "float32"
    x = np.ones((5, 3), np.float32)
    z = ((x.sum(1) + x.sum(1) + 1) * 4 * 0.5)[:, None].repeat(2, axis=1).astype(np.float64)
    np.testing.assert_allclose(model(x), ACTIVATIONS["gelu"].value(z), rtol=1e-6)
    np.testing.assert_allclose(model.predict(x, verbose=0), model(x), rtol=1e-6)


def test_keras_tensors_of_unknown_sizes() -> None:
    a, b = keras.Input((None, 3)), keras.Input((3, 4))
    model = keras.Model([a, b], sg.matmul(a, b))
    assert model.output_shape == (None, None, 4)
    assert model([np.ones((2, 5, 3)), np.ones((2, 3, 4))]).shape == (2, 5, 4)


def test_functional_model_scales_and_blocks_gradients() -> None:
    model = functional_model()
    x = tf.ones((5, 3))
    with tf.GradientTape() as tape:
        y = model(x)
    dense = model.layers[1]
    gradients = tape.gradient(y, dense.trainable_variables)
    problem = reference.Problem(
        np.full((5, 4), 7.0), np.full((2, 4), 0.5), layout_b="transpose", activation="gelu"
    )
    da = reference.gradients(problem, np.ones((5, 2)), {"a": 0.5})["a"].value
    np.testing.assert_allclose(gradients[1], da.sum(axis=0), rtol=1e-5)


def test_functional_model_trains_with_fit(rng: np.random.Generator) -> None:
    inputs = keras.Input((3,))
    w = keras.layers.Dense(4, use_bias=False)
    y = keras.layers.Dense(1)(sg.matmul(w(inputs), np.eye(4, dtype=np.float32), activation="tanh"))
    model = keras.Model(inputs, y)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = rng.standard_normal((64, 3)).astype(np.float32)
    history = model.fit(x, x.sum(axis=1), epochs=5, batch_size=16, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")
def test_functional_model_is_saved_and_loaded(tmp_path: Any, rng: np.random.Generator) -> None:
    model = functional_model()
    x = rng.standard_normal((5, 3)).astype(np.float32)
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(x), model(x))
    # What is blocked and scaled was saved too.
    gradients = []
    for each in (model, loaded):
        with tf.GradientTape() as tape:
            y = each(x)
        gradients.append(tape.gradient(y, each.trainable_variables)[0])
    np.testing.assert_array_equal(*gradients)


LOAD_MODEL = """
import sys
{imports}
model = keras.models.load_model(sys.argv[1])
print(model.count_params())
"""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")
@pytest.mark.parametrize(
    "imports", ["import keras\nimport stopgrad_op", "import stopgrad_op\nimport keras"]
)
def test_functional_model_loads_in_a_fresh_process(tmp_path: Any, imports: str) -> None:
    model = functional_model()
    path = str(tmp_path / "model.keras")
    model.save(path)
    process = subprocess.run(
        [sys.executable, "-c", LOAD_MODEL.format(imports=imports), path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) == model.count_params()


@pytest.mark.parametrize("variable", [tf.Variable, keras.Variable])
def test_functional_model_refuses_a_variable_it_would_not_train(variable: Any) -> None:
    with pytest.raises(ValueError, match=r"`b` is a variable .* call sg.matmul in a layer"):
        sg.matmul(keras.Input((3,)), variable(np.ones((3, 4), np.float32)))
