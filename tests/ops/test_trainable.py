"""Regions of operands that learn: a product of their size, and exact zeros outside."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from modes import EAGER, KERNEL_MODES, MODES, Mode, mode_id
from reference import COMPLEX, FLOATING, LAYOUTS

import stopgrad_op as sg

v1 = tf.compat.v1
every_mode = pytest.mark.parametrize("mode", MODES, ids=mode_id)
every_kernel_mode = pytest.mark.parametrize("mode", KERNEL_MODES, ids=mode_id)
in_both = pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
OPERANDS = ("a", "b", "bias")
M, K, N = 5, 7, 4

# A region of b, as it is stored, and how NumPy writes it.
REGIONS_OF_B: dict[str, tuple[Any, Any]] = {
    "rows": (np.s_[2:5], np.s_[2:5, :]),
    "rows_in_a_tuple": (np.s_[2:5,], np.s_[2:5, :]),
    "columns": (np.s_[:, 1:], np.s_[:, 1:]),
    "rectangle": (np.s_[-3:, :-1], np.s_[-3:, :-1]),
    "steps": (np.s_[1::3, ::2], np.s_[1::3, ::2]),
    "everything": (np.s_[:, :], np.s_[:, :]),
    "nothing": (np.s_[3:3], np.s_[3:3, :]),
    "rows_by_index": (sg.rows([6, 0, 3]), np.s_[[0, 3, 6], :]),
    "columns_by_index": (sg.columns(np.array([3, 1])), np.s_[:, [1, 3]]),
    "no_rows": (sg.rows([]), np.s_[[], :]),
}


def mask(shape: tuple[int, ...], where: Any) -> np.ndarray[Any, Any]:
    result = np.zeros(shape, bool)
    result[where] = True
    return result


def inputs(rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    return [rng.standard_normal(shape) for shape in ((M, K), (K, N), (N,))]


@every_kernel_mode
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("region", REGIONS_OF_B)
def test_only_the_region_learns_and_only_its_product_runs(
    rng: np.random.Generator, mode: Mode, region: str, activation: str | None
) -> None:
    arrays, dy = inputs(rng), rng.standard_normal((M, N))
    written, where = REGIONS_OF_B[region]

    def ours(a: Any, b: Any, bias: Any) -> Any:
        trainable = {"b": written}
        return sg.matmul(
            a, b, bias=bias, activation=activation, trainable=trainable, stop_gradient="a"
        )

    sg.reset_kernel_stats()
    _, (of_a, of_b, of_bias) = mode.gradients(ours, arrays, dy)
    inside = mask((K, N), where)
    assert sg.kernel_stats()["backward"] == {
        "products": int(inside.any()),
        "flops": 2 * M * int(inside.sum()),
    }
    problem = reference.Problem(*arrays, activation=activation or "linear")
    exact = reference.gradients(problem, dy, regions={"b": inside})
    assert of_a is None
    assert of_b is not None
    reference.assert_close(of_b, exact["b"], "float64")
    reference.assert_close(of_bias, exact["bias"], "float64")
    assert not np.any(of_b[~inside])


@every_mode
@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_region_is_that_of_the_stored_operand(
    rng: np.random.Generator, mode: Mode, layout: str, dtype: str
) -> None:
    problem = reference.random_problem(
        rng, (2, 1, M, K), (3, K, N), dtype, bias=True, layout_a=layout, layout_b=layout
    )
    dy = reference.random_array(rng, (2, 3, M, N), dtype)
    options = {} if layout == "normal" else {f"{layout}_a": True, f"{layout}_b": True}
    arrays = [problem.a, problem.b, problem.bias]
    where = {"a": np.s_[..., 1:3, :], "b": np.s_[..., [0, 2]], "bias": np.s_[2:]}

    def ours(a: Any, b: Any, bias: Any) -> Any:
        trainable = {"a": np.s_[1:3], "b": sg.columns([2, 0]), "bias": np.s_[2:]}
        return sg.matmul(a, b, bias=bias, trainable=trainable, **options)

    _, gradients = mode.gradients(ours, arrays, dy)
    masks = {
        name: mask(array.shape, where[name]) for name, array in zip(OPERANDS, arrays, strict=True)
    }
    exact = reference.gradients(problem, dy, regions=masks)
    for name, gradient in zip(OPERANDS, gradients, strict=True):
        assert gradient is not None
        reference.assert_close(gradient, exact[name], dtype, what=name)
        assert not np.any(gradient[~masks[name]])


@pytest.mark.parametrize("bias", [np.s_[1:], np.s_[1:,], sg.columns([3, 1, 2])])
def test_region_of_a_bias(rng: np.random.Generator, bias: Any) -> None:
    arrays, dy = inputs(rng), rng.standard_normal((M, N))
    _, gradients = EAGER.gradients(
        lambda a, b, bias_: sg.matmul(a, b, bias=bias_, trainable={"bias": bias}), arrays, dy
    )
    np.testing.assert_allclose(gradients[2], [0, *dy.sum(axis=0)[1:]])


@every_mode
def test_region_of_a_blocked_operand_is_ignored(rng: np.random.Generator, mode: Mode) -> None:
    _, gradients = mode.gradients(
        lambda a, b, bias: sg.matmul(
            a, b, bias=bias, stop_gradient="b", trainable={"b": np.s_[1:2], "a": np.s_[0:1]}
        ),
        inputs(rng),
        rng.standard_normal((M, N)),
    )
    assert gradients[1] is None
    assert np.any(gradients[0])
    assert not np.any(gradients[0][1:])


def test_op_is_given_no_region_of_a_blocked_operand() -> None:
    with tf.Graph().as_default():
        regions = {"a": np.s_[0:1], "b": sg.rows([1])}
        y = sg.matmul(tf.ones((M, K)), tf.ones((K, N)), stop_gradient="b", trainable=regions)
        assert y.op.get_attr("sliced") == [b"a_rows"]
        assert y.op.get_attr("indexed") == []


def test_whole_gradient_of_a_scaled_region_is_zero_at_zero() -> None:
    w = tf.Variable(tf.ones((K, N)))
    for scale in (0, tf.constant(0.0)):
        with tf.GradientTape() as tape:
            y = sg.matmul(
                tf.ones((M, K)),
                w,
                gradient_scale=scale,
                trainable={"b": sg.rows([1], indexed_slices=True)},
            )
        gradient = tape.gradient(y, w)
        assert isinstance(gradient, tf.IndexedSlices)
        np.testing.assert_array_equal(gradient.values, np.zeros((1, N)))


# --- IndexedSlices ---------------------------------------------------------------------------
ROWS = [5, 1]


def embed(x: Any, w: Any, **options: Any) -> Any:
    return sg.matmul(x, w, trainable={"b": sg.rows(ROWS, indexed_slices=True)}, **options)


@in_both
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_indexed_slices_hold_the_rows_alone(
    rng: np.random.Generator, wrap: Any, persistent: bool, activation: str | None
) -> None:
    a, b, _ = inputs(rng)
    w = tf.Variable(b)

    def gradients() -> Any:
        with tf.GradientTape(persistent=persistent) as tape:
            y = embed(a, w, activation=activation)
        return tape.gradient(y, w)

    gradient = wrap(gradients)()
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(gradient.indices, [1, 5])
    np.testing.assert_array_equal(gradient.dense_shape, [K, N])
    problem = reference.Problem(a, b, activation=activation or "linear")
    exact = reference.gradients(problem, np.ones((M, N)))["b"].value
    np.testing.assert_allclose(gradient.values, exact[[1, 5]], rtol=1e-11)


def v1_apply(optimizer: Any) -> Any:
    return lambda gradients, variables: optimizer.apply_gradients(
        list(zip(gradients, variables, strict=True))
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd",
        "adam",
        "v1_adam",
        pytest.param(
            "v1_momentum",
            marks=pytest.mark.cpu_only("TensorFlow has its ResourceSparseApplyMomentum for CPUs"),
        ),
    ],
)
@in_both
def test_optimizer_touches_these_rows_only(wrap: Any, optimizer: str) -> None:
    w = tf.Variable(tf.ones((K, N)))
    apply = {
        "sgd": lambda: keras.optimizers.SGD(0.1).apply,
        "adam": lambda: keras.optimizers.Adam(0.1).apply,
        "v1_adam": lambda: v1_apply(v1.train.AdamOptimizer(0.1)),
        "v1_momentum": lambda: v1_apply(v1.train.MomentumOptimizer(0.1, 0.9)),
    }[optimizer]()

    @wrap
    def step() -> None:
        with tf.GradientTape() as tape:
            y = embed(tf.ones((M, K)), w)
        apply([tape.gradient(y, w)], [w])

    step()
    step()
    touched = np.any(w.numpy() != 1, axis=1)
    np.testing.assert_array_equal(np.flatnonzero(touched), [1, 5])


def test_session_trains_these_rows_only() -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable("w", initializer=tf.ones((K, N)))
        loss = embed(tf.ones((M, K)), w)
        gradient = tf.gradients(loss, w)[0]
        assert isinstance(gradient, tf.IndexedSlices)
        assert gradient.values.shape[1] == N
        train = v1.train.GradientDescentOptimizer(0.5).minimize(loss)
        session.run(v1.global_variables_initializer())
        session.run(train)
        due = np.ones((K, N))
        due[[1, 5]] -= 0.5 * M
        np.testing.assert_array_equal(session.run(w), due)


def test_sums_with_another_gradient_of_the_same_variable(rng: np.random.Generator) -> None:
    w = tf.Variable(rng.standard_normal((K, N)))
    x = rng.standard_normal((M, K))
    with tf.GradientTape() as tape:
        y = embed(x, w) + embed(x, w) + sg.matmul(x, w, trainable={"b": np.s_[0:2]})
    gradient = tf.convert_to_tensor(tape.gradient(y, w))
    full = x.T @ np.ones((M, N))
    due = np.zeros((K, N))
    due[[1, 5]] = 2 * full[[1, 5]]
    due[:2] += full[:2]
    np.testing.assert_allclose(gradient, due, rtol=1e-12)


def test_indexed_slices_where_the_shape_is_unknown() -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)] * 2)
    def step(x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = embed(x, w)
        gradient = tape.gradient(y, w)
        return gradient.values, gradient.dense_shape

    values, shape = step(tf.ones((M, K)), tf.ones((K, N)))
    np.testing.assert_array_equal(values, np.full((2, N), float(M)))
    np.testing.assert_array_equal(shape, [K, N])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`trainable`"):
        step(tf.ones((M, 3)), tf.ones((3, N)))  # has no row 5
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        step(tf.ones((M, K)), tf.ones((2, K, N)))


def test_region_can_be_let_go() -> None:
    """No cache of options holds it."""
    region = sg.rows([1, 2])
    with tf.GradientTape():
        w = tf.Variable(tf.ones((K, N)))
        sg.matmul(tf.ones((M, K)), w, trainable={"b": region})
    lives = weakref.ref(region.indices)
    del region
    gc.collect()
    assert lives() is None


# --- Keras models ----------------------------------------------------------------------------
def functional_model() -> keras.Model:
    x, rows, scale = keras.Input((K,)), keras.Input((), dtype="bool"), keras.Input(batch_shape=())
    hidden = keras.layers.Dense(N, use_bias=False)(x)
    y = sg.matmul(
        hidden,
        np.ones((N, 2), np.float32),
        gradient_rows=rows,
        gradient_scale={"a": scale},
        trainable={"a": sg.columns([2, 0]), "b": np.s_[1:2]},
    )
    return keras.Model([x, rows, scale], y)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")
@pytest.mark.parametrize("saved", [False, True])
def test_functional_model(tmp_path: Any, rng: np.random.Generator, saved: bool) -> None:
    model = functional_model()
    if saved:
        path = str(tmp_path / "model.keras")
        model.save(path)
        model = keras.models.load_model(path)
    x = rng.standard_normal((M, K)).astype(np.float32)
    rows = np.array([True, False, False, True, False])
    with tf.GradientTape() as tape:
        y = model([tf.constant(x), tf.constant(rows), tf.constant(0.5)])
    (gradient,) = tape.gradient(y, model.trainable_variables)
    due = np.zeros((K, N))
    due[:, [0, 2]] = 0.5 * 2 * x[rows].sum(axis=0)[:, None]
    np.testing.assert_allclose(gradient, due, rtol=1e-5, atol=1e-6)


def test_indices_of_a_loaded_functional_model_cannot_be_changed() -> None:
    """Eager calls know a tensor of them by the array."""
    model = keras.Model.from_config(functional_model().get_config())
    (node,) = (x for x in model.operations if type(x).__name__ == "MatMul")
    assert [each.tolist() for each in node.indices] == [[0, 2]]
    with pytest.raises(ValueError, match="read-only"):
        node.indices[0][0] = 1


@pytest.mark.parametrize("variable", [tf.Variable, keras.Variable])
@pytest.mark.parametrize("option", ["gradient_rows", "gradient_scale"])
def test_functional_model_refuses_a_variable(variable: Any, option: str) -> None:
    value = variable(np.float32(0.5))
    with pytest.raises(ValueError, match=f"`{option}`.* is a variable .* in a layer"):
        sg.matmul(keras.Input((K,)), np.ones((K, N), np.float32), **{option: value})


def test_saved_model_keeps_regions_rows_and_scales(tmp_path: Any) -> None:
    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(tf.ones((K, N)))
            self.scale = tf.Variable(0.5)

        @tf.function(input_signature=[tf.TensorSpec([None, K]), tf.TensorSpec([None], tf.bool)])
        def predict(self, x: Any, rows: Any) -> Any:
            return sg.matmul(
                x,
                self.w,
                gradient_rows=rows,
                gradient_scale={"b": self.scale},
                trainable={"b": sg.rows([1, 5])},
            )

    tf.saved_model.save(Module(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for scale in (0.5, 0.0):
        loaded.scale.assign(scale)
        with tf.GradientTape() as tape:
            y = loaded.predict(tf.ones((M, K)), tf.constant([True, True, False, False, True]))
        due = np.zeros((K, N))
        due[[1, 5]] = 3 * scale
        np.testing.assert_array_equal(tape.gradient(y, loaded.w), due)
