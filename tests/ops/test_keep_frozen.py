"""What is kept frozen stays, bit for bit, whatever the optimizer; all else learns as without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from stopgrad_op import columns, keep_frozen, rows

Array = npt.NDArray[Any]

SHAPE = (7, 5)

REGIONS: dict[str, tuple[tuple[int, ...], Any]] = {
    "first rows": (SHAPE, np.s_[:4]),
    "middle rows": (SHAPE, np.s_[2:-2]),
    "every other row": (SHAPE, np.s_[::2]),
    "last columns": (SHAPE, np.s_[:, 3:]),
    "rectangle": (SHAPE, np.s_[1:5, 2:4]),
    "rectangle with steps": (SHAPE, np.s_[1::3, ::2]),
    "everything": (SHAPE, np.s_[:]),
    "nothing": (SHAPE, np.s_[3:3]),
    "rows by index": (SHAPE, rows([6, 0, 2, 4])),
    "columns by index": (SHAPE, columns([4, 0, 2])),
    "batch of matrices": ((2, 3, *SHAPE), np.s_[1:5, 2:4]),
    "batch, rows by index": ((2, *SHAPE), rows([5, 0, 3])),
    "batch, columns by index": ((2, *SHAPE), columns([4, 0, 2])),
    "vector": ((9,), np.s_[2:-3]),
    "vector by index": ((9,), columns([8, 0, 4])),
}

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: keras.optimizers.Adam(0.1, weight_decay=0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "adamw, global norm": lambda: keras.optimizers.AdamW(0.1, global_clipnorm=0.5),
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "lion": lambda: keras.optimizers.Lion(0.1, weight_decay=0.1),
    "accumulation": lambda: keras.optimizers.AdamW(0.1, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.1)),
    "average": lambda: keras.optimizers.AdamW(0.1, use_ema=True, ema_overwrite_frequency=1),
}

MODES: dict[str, Callable[[Any], Any]] = {
    "eager": lambda f: f,
    "function": tf.function,
    "xla": tf.function(jit_compile=True),
}

in_each_mode = pytest.mark.parametrize("mode", MODES)
eager_and_compiled = pytest.mark.parametrize("mode", ["eager", "xla"])
of_each_region = pytest.mark.parametrize("name", REGIONS)


def inside(shape: tuple[int, ...], region: Any) -> Array:
    """Return a mask that is True in the region, by NumPy alone."""
    mask = np.zeros(shape, bool)
    if isinstance(region, slice):
        mask[region if len(shape) == 1 else (..., region, slice(None))] = True
    elif isinstance(region, tuple):
        mask[(..., *region)] = True
    else:
        is_rows = type(region).__name__ == "Rows"
        mask[(..., region.indices, slice(None)) if is_rows else (..., region.indices)] = True
    return mask


def bits(value: Any) -> Array:
    array = np.ascontiguousarray(value)
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def odd_values(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return any float32 bits there are: NaNs with payloads, both zeros, subnormal numbers."""
    values = rng.integers(0, 2**32, shape, dtype=np.uint32)
    values.flat[: values.size // 2 : 3] = 0x80000000
    values.flat[1 : values.size // 2 : 3] = 0xFFC12345
    return values.view(np.float32)


def train(variable: Any, name: str, mode: str, after: Callable[[], None] = lambda: None) -> None:
    """Make a step with a gradient everywhere, and two with zeros, as after a change of mind."""
    optimizer = OPTIMIZERS[name]()
    optimizer.build([variable])

    def step(gradient: tf.Tensor) -> None:
        optimizer.apply([gradient], [variable])
        after()

    run = MODES[mode](step)
    generator = np.random.default_rng(3)
    for factor in (1, 0, 0, 1):
        run(tf.constant(factor * generator.standard_normal(variable.shape), tf.float32))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@in_each_mode
def test_frozen_part_outlasts_the_optimizer(
    rng: np.random.Generator, optimizer: str, mode: str
) -> None:
    before = rng.standard_normal(SHAPE).astype(np.float32)
    before[:2] = odd_values(rng, (2, SHAPE[1]))
    variable, free = keras.Variable(before), keras.Variable(before)
    keep_frozen(variable, np.s_[:4])
    train(variable, optimizer, mode)
    train(free, optimizer, mode)
    np.testing.assert_array_equal(bits(variable.numpy()[:4]), bits(before[:4]))
    assert (free.numpy()[2:4] != before[2:4]).all()  # so there was something to keep
    if optimizer != "adamw, global norm":  # the norm is the NaN's
        np.testing.assert_array_equal(bits(variable.numpy()[4:]), bits(free.numpy()[4:]))
        assert (variable.numpy()[4:] != before[4:]).all()


@of_each_region
@eager_and_compiled
@pytest.mark.parametrize("argument", ["region", "trainable"])
def test_each_region_is_kept_by_the_constraint(
    rng: np.random.Generator, name: str, mode: str, argument: str
) -> None:
    shape, region = REGIONS[name]
    frozen = inside(shape, region) == (argument == "region")
    before, new = odd_values(rng, shape), odd_values(rng, shape)
    variable = keras.Variable(before)
    kept = keep_frozen(variable, **{argument: region})
    assert variable.constraint is kept
    variable.assign(new)
    result = MODES[mode](kept)(tf.constant(new)).numpy()
    np.testing.assert_array_equal(bits(result), np.where(frozen, bits(before), bits(new)))
    np.testing.assert_array_equal(bits(variable.numpy()), bits(new))  # it changes nothing itself


@of_each_region
@eager_and_compiled
@pytest.mark.parametrize("argument", ["region", "trainable"])
@pytest.mark.parametrize("make", [tf.Variable, keras.Variable])
def test_each_region_is_restored(
    rng: np.random.Generator, name: str, mode: str, argument: str, make: Any
) -> None:
    shape, region = REGIONS[name]
    frozen = inside(shape, region) == (argument == "region")
    before, new = odd_values(rng, shape), odd_values(rng, shape)
    variable = make(before)
    kept = keep_frozen(variable, **{argument: region})
    variable.assign(new)
    MODES[mode](kept.restore)()
    np.testing.assert_array_equal(bits(variable.numpy()), np.where(frozen, bits(before), bits(new)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64", "int32", "bool"])
def test_each_dtype_is_kept(dtype: str) -> None:
    as_bits = tf.random.stateless_uniform(SHAPE, (1, 2), -100, 100, tf.int32)
    before = tf.cast(as_bits, dtype)
    new = tf.cast(as_bits - 50, dtype)
    for region in (np.s_[1:3, 2:], rows([4, 0, 2]), columns([4, 0, 2])):
        variable = tf.Variable(before)
        kept = keep_frozen(variable, region)
        variable.assign(new)
        due = np.where(inside(SHAPE, region), before.numpy(), new.numpy())
        np.testing.assert_array_equal(kept(variable).numpy(), due)
        kept.restore()
        np.testing.assert_array_equal(variable.numpy(), due)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@in_each_mode
def test_tensorflow_variable_is_restored_in_a_loop(
    rng: np.random.Generator, optimizer: str, mode: str
) -> None:
    before = rng.standard_normal(SHAPE).astype(np.float32)
    variable, free = tf.Variable(before), tf.Variable(before)
    kept = keep_frozen(variable, trainable=rows([1, 3, 6]))
    train(variable, optimizer, mode, kept.restore)
    train(free, optimizer, mode)
    learns = np.isin(np.arange(SHAPE[0]), [1, 3, 6])
    np.testing.assert_array_equal(bits(variable.numpy()[~learns]), bits(before[~learns]))
    assert (free.numpy()[~learns] != before[~learns]).all()
    np.testing.assert_array_equal(variable.numpy()[learns], free.numpy()[learns])


def model_and_data(rng: np.random.Generator) -> tuple[Any, Array, Array]:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    )
    x = rng.standard_normal((16, 6)).astype(np.float32)
    return model, x, rng.standard_normal((16, 3)).astype(np.float32)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_ema": True, "ema_overwrite_frequency": 2}])
def test_frozen_part_outlasts_fit(
    rng: np.random.Generator, jit_compile: bool, options: dict[str, Any]
) -> None:
    model, x, y = model_and_data(rng)
    kernel, bias = model.layers[0].kernel, model.layers[0].bias
    kept = [keep_frozen(kernel, trainable=np.s_[:, :2]), keep_frozen(bias, np.s_[2:])]
    before = [kernel.numpy(), bias.numpy()]
    model.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.1, **options), "mse", jit_compile=jit_compile
    )
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    if options:
        for one in kept:  # the average came last
            one.restore()
    np.testing.assert_array_equal(bits(kernel.numpy()[:, 2:]), bits(before[0][:, 2:]))
    np.testing.assert_array_equal(bits(bias.numpy()[2:]), bits(before[1][2:]))
    assert (kernel.numpy()[:, :2] != before[0][:, :2]).all()


def test_average_at_the_end_of_fit_needs_restore(rng: np.random.Generator) -> None:
    model, x, y = model_and_data(rng)
    kernel = model.layers[0].kernel
    before = kernel.numpy()
    kept = keep_frozen(kernel, np.s_[:3])
    model.compile(keras.optimizers.AdamW(0.01, use_ema=True), "mse")
    model.fit(x, y, batch_size=4, epochs=3, verbose=0)
    assert (kernel.numpy()[:3] != before[:3]).any()
    kept.restore()
    np.testing.assert_array_equal(bits(kernel.numpy()[:3]), bits(before[:3]))


def test_constraint_that_was_there_comes_first() -> None:
    before = -np.ones(SHAPE, np.float32)
    variable = keras.Variable(before)
    variable.constraint = keras.constraints.NonNeg()
    keep_frozen(variable, np.s_[:2])
    keep_frozen(variable, np.s_[:, :1])
    keras.optimizers.SGD(0.5).apply([tf.zeros(SHAPE)], [variable])
    due = np.zeros(SHAPE)
    due[:2] = due[:, :1] = -1
    np.testing.assert_array_equal(variable.numpy(), due)


@pytest.mark.cpu_only("it looks at addresses in the host's memory")
@of_each_region
@pytest.mark.parametrize("argument", ["region", "trainable"])
def test_only_the_frozen_part_is_held(name: str, argument: str) -> None:
    shape, region = REGIONS[name]
    frozen = inside(shape, region) == (argument == "region")
    variable = tf.Variable(tf.zeros(shape))
    held = [part.values for part in keep_frozen(variable, **{argument: region})._parts]
    assert sum(tf.size(values).numpy() for values in held) == frozen.sum()
    memory = np.frombuffer(memoryview(tf.convert_to_tensor(variable)), np.uint8)
    for values in held:
        assert not np.shares_memory(np.frombuffer(memoryview(values), np.uint8), memory)


def address(variable: tf.Variable) -> int:
    """Return where the value is that reading the variable gives."""
    value = np.frombuffer(memoryview(tf.convert_to_tensor(variable)), np.uint8)
    return int(value.__array_interface__["data"][0])


@pytest.mark.cpu_only("it looks at addresses in the host's memory")
@of_each_region
@pytest.mark.parametrize("mode", ["eager", "function"])
def test_restored_variable_is_read_without_a_copy(name: str, mode: str) -> None:
    shape, region = REGIONS[name]
    variable = tf.Variable(tf.ones(shape))
    MODES[mode](keep_frozen(variable, region).restore)()
    held = tf.convert_to_tensor(variable)  # no copy gets the memory of one that was let go
    assert address(variable) == address(held)


def call_twice(first: Any, second: Any) -> tuple[Any, Any]:
    """Keep a region of ones, and after a change to twos the other."""
    variable = keras.Variable(tf.ones(SHAPE))
    variable.constraint = keras.constraints.NonNeg()
    keep_frozen(variable, first)
    keep_frozen(variable, np.s_[:, 4:])
    variable.assign(tf.fill(SHAPE, 2.0))
    return variable, keep_frozen(variable, second)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (np.s_[:2], np.s_[0:-5]),
        (np.s_[1:5, 2:4], np.s_[1:5, 2:4]),
        (rows([6, 0, 2, 4]), rows([0, 2, 4, 6])),
        (columns([0, 2, 3]), columns([0, 2, 3])),
    ],
)
def test_same_region_again_is_kept_as_it_is_by_then(first: Any, again: Any) -> None:
    variable, kept = call_twice(first, again)
    due = np.zeros(SHAPE)
    due[:, 4:] = 1
    due[inside(SHAPE, again)] = 2
    np.testing.assert_array_equal(kept(tf.fill(SHAPE, -1.0)), due)
    assert variable.constraint is kept
    chain = []
    while hasattr(kept, "_before"):
        chain.append(kept)
        kept = kept._before
    assert len(chain) == 2  # not one more at each call
    assert isinstance(kept, keras.constraints.NonNeg)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (np.s_[:2], np.s_[:1]),
        (np.s_[:2], np.s_[2:4]),
        (np.s_[:2], np.s_[:2, :3]),
        (rows([6, 0, 2, 4]), rows([6, 0, 2, 5])),
        (rows([0, 2, 4]), columns([0, 2, 4])),
    ],
)
def test_other_region_is_kept_beside_the_first(first: Any, other: Any) -> None:
    variable, _ = call_twice(first, other)
    due = np.full(SHAPE, 0.0)
    due[inside(SHAPE, first)] = 1
    due[:, 4:] = 1
    due[inside(SHAPE, other)] = 2
    np.testing.assert_array_equal(variable.constraint(tf.fill(SHAPE, -1.0)), due)


def test_saved_model_loads_without_it(tmp_path: Any, rng: np.random.Generator) -> None:
    model, x, y = model_and_data(rng)
    keep_frozen(model.layers[0].kernel, np.s_[:3])
    model.compile(keras.optimizers.AdamW(0.01), "mse")
    model.fit(x, y, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert loaded.layers[0].kernel.constraint is None
    with pytest.raises(NotImplementedError, match=r"call sg.keep_frozen again for the layer"):
        keras.constraints.serialize(model.layers[0].kernel.constraint)


DISTRIBUTED = """
import keras, numpy as np, tensorflow as tf
from stopgrad_op import keep_frozen
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.1), "mse")
kernel = model.layers[0].kernel
before = kernel.numpy()
kept = keep_frozen(kernel, np.s_[1:3])
model.fit(np.ones((8, 4)), np.ones((8, 3)), epochs=2, verbose=0)
copies = [copy.numpy() for copy in kernel.value.values]
assert len(copies) == 2
for copy in copies:
    assert (copy[1:3] == before[1:3]).all() and (copy[[0, 3]] != before[[0, 3]]).all()
kernel.assign(np.zeros((4, 3)))
kept.restore()
for copy in kernel.value.values:
    assert (copy.numpy()[1:3] == before[1:3]).all() and (copy.numpy()[[0, 3]] == 0).all()
print("kept")
"""


def test_frozen_part_outlasts_a_distributed_fit() -> None:
    run = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("kept\n")


VARIABLE = tf.Variable(tf.zeros((10, 6)), name="w")

ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: keep_frozen(VARIABLE), ValueError, "`region` and `trainable` are neither given; due"),
    (
        lambda: keep_frozen(VARIABLE, np.s_[1:], trainable=np.s_[:1]),
        ValueError,
        "`region` and `trainable` are both given; due is one of them",
    ),
    (
        lambda: keep_frozen(VARIABLE, rows([12])),
        ValueError,
        "`region` of `variable` selects row 12, and `variable` has 10 rows; due are 0 to 9",
    ),
    (
        lambda: keep_frozen(VARIABLE, trainable=np.s_[:, :7]),
        ValueError,
        "`trainable` of `variable` ends at column 7, and `variable` has 6 columns; due are -6 to 6",
    ),
    (
        lambda: keep_frozen(tf.Variable(tf.zeros(4)), rows([1])),
        ValueError,
        "`region` of `variable` selects rows of a vector; due is a slice",
    ),
    (
        lambda: keep_frozen(VARIABLE, [1, 2]),
        TypeError,
        "`region` of `variable` is a value of type list; due is a slice",
    ),
    (
        lambda: keep_frozen(tf.zeros((2, 2)), np.s_[1:]),
        TypeError,
        "`variable` has type EagerTensor; due is a keras.Variable, such as `layer.kernel`",
    ),
    (
        lambda: keep_frozen(keras.layers.Dense(3), np.s_[1:]),
        TypeError,
        "`variable` has type Dense; due is a keras.Variable, such as `layer.kernel` of a built",
    ),
    (
        lambda: keep_frozen(tf.Variable(1.0), np.s_[1:]),
        ValueError,
        r"`variable` has shape \(\); due is a known one of rank 1 or more",
    ),
    (
        lambda: keep_frozen(tf.Variable(tf.zeros(2), shape=[None]), np.s_[1:]),
        ValueError,
        r"`variable` has shape \(None,\); due is a known",
    ),
    (
        tf.function(lambda: keep_frozen(VARIABLE, np.s_[1:])),
        RuntimeError,
        "sg.keep_frozen copies values, and a tf.function or graph has none",
    ),
    (
        lambda: keep_frozen(VARIABLE, np.s_[1:])(tf.zeros((10, 5))),
        ValueError,
        r"`w` has shape \(10, 5\); due is that of the variable, \(10, 6\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_wrong_call_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_weight_that_is_not_built_is_named() -> None:
    with keras.StatelessScope():
        variable = keras.Variable(keras.initializers.Zeros(), shape=SHAPE)
        with pytest.raises(ValueError, match="has no value yet; due is one that is built"):
            keep_frozen(variable, np.s_[1:])


def test_refused_call_leaves_the_constraint() -> None:
    variable = keras.Variable(tf.zeros(SHAPE))
    with pytest.raises(ValueError, match="selects row 9"):
        keep_frozen(variable, rows([9]))
    assert variable.constraint is None
