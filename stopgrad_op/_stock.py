"""`sg.stock_ops`: the same computation in operations that every TensorFlow has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stopgrad_op._library import load_ops
from stopgrad_op._options import OPERANDS, MatMulOptions, Steering, operand_of
from stopgrad_op._regions import NO_END, Indices, Selection, select

_is_asked_for: ContextVar[bool] = ContextVar("stopgrad_op.stock_ops", default=False)
_lock = threading.Lock()

# How many contexts are open, on all threads. Outside them a call reads this number and no more.
num_open = 0


@contextmanager
def stock_ops() -> Iterator[None]:
    """Build what `sg.matmul` means from stock TensorFlow ops, in a `with` block or a function.

    For where this package is not: a SavedModel written from functions that were traced in the
    block loads and trains in a TensorFlow without it, as in TensorFlow Serving, and TFLite's
    converter takes them. It is also what to compare with. All options give the same values and
    gradients; the gradients that are blocked cost what they cost in TensorFlow, and with
    `sg.rows([...], indexed_slices=True)` the gradient is a tensor with zeros elsewhere.

    What counts is where `sg.matmul` is called, in eager mode, and where a graph is built. A
    `tf.function` keeps the graphs that it has, from inside the block or outside. Where it may have
    some, take a new one: `tf.function(sg.stock_ops()(step.python_function))` is stock whenever it
    is traced. A functional Keras model keeps what it was made with, and one that was made outside
    is stock where it is called in the block.

    The block is that of one thread or asynchronous task. Threads that begin in it are outside, also
    those in which a `tf.distribute` strategy calls its replicas: there the block belongs into the
    function that they run. Blocks nest, and an exception ends one as it ends any other.

    Yields
    ------
    None

    Examples
    --------
    >>> with sg.stock_ops():
    ...     model.export("for_serving")  # Keras traces a function of its own here
    """
    global num_open
    token = _is_asked_for.set(True)
    with _lock:
        num_open += 1
    try:
        yield
    finally:
        with _lock:
            num_open -= 1
        _is_asked_for.reset(token)


def is_asked_for() -> bool:
    """Return whether this thread is in a block of `stock_ops`."""
    return num_open > 0 and _is_asked_for.get()


def _times(number: float, z: tf.Tensor) -> tf.Tensor:
    return tf.constant(number, z.dtype) * z


def _leaky_relu(z: tf.Tensor) -> tf.Tensor:
    # The attribute that holds the slope is a float32.
    if z.dtype == tf.float64:
        return tf.where(z > 0, z, _times(0.2, z))
    return tf.nn.leaky_relu(z, 0.2)


def _selu(z: tf.Tensor) -> tf.Tensor:
    # On a GPU, also in float64, tf.nn.selu holds constants that were rounded to float32.
    if z.dtype == tf.float64:
        scale, alpha = 1.0507009873554804934, 1.6732632423543772848
        return tf.where(z < 0, _times(scale * alpha, tf.nn.elu(z)), _times(scale, z))
    return tf.nn.selu(z)


# Each of these has a form in TFLite's builtin operations. tf.nn's functions are not taken where
# they hold constants that were rounded to float32 (gelu), have a gradient of Python that a
# SavedModel need not carry (silu), or are converted to what overflows (softplus).
_ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "linear": lambda z: z,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "leaky_relu": _leaky_relu,
    "elu": tf.nn.elu,
    "selu": _selu,
    "gelu": lambda z: _times(0.5, z) * (1 + tf.math.erf(_times(0.5**0.5, z))),
    "gelu_tanh": lambda z: (
        _times(0.5, z)
        * (1 + tf.math.tanh(_times((2 / np.pi) ** 0.5, z + _times(0.044715, z * z * z))))
    ),
    "sigmoid": tf.math.sigmoid,
    "tanh": tf.math.tanh,
    "silu": lambda z: z * tf.math.sigmoid(z),
    # At 0 the gradient of relu is 0 and that of the minimum 1, which makes a half together.
    "softplus": lambda z: tf.nn.relu(z) + tf.math.log1p(tf.math.exp(tf.math.minimum(z, -z))),
}


def activate(activation: str, z: tf.Tensor) -> tf.Tensor:
    """Apply an activation."""
    return _ACTIVATIONS[activation](z)


def matmul(
    operands: Sequence[tf.Tensor],
    options: MatMulOptions,
    steering: Steering | None,
    name: str | None,
) -> tf.Tensor:
    """Run `sg.matmul` on tensors, all options checked.

    Raises
    ------
    ValueError, tf.errors.InvalidArgumentError
        For shapes that do not fit, in a graph and eagerly.
    """
    steering = steering or Steering()
    shape = _check_shapes(operands, options)
    if not operands[0].dtype.is_integer:  # which has no gradients
        operands = [
            _restrict(x, operand, options, steering)
            for operand, x in zip(OPERANDS, operands, strict=False)
        ]
    y = _product(operands, options)
    if steering.rows is not None and not y.dtype.is_integer:
        y = _restrict_rows(y, steering.rows)
    if not tf.executing_eagerly():
        y.set_shape(shape)
    return y if name is None else tf.identity(y, name=name)


# --- Gradients ---------------------------------------------------------------------------------
def _restrict(x: tf.Tensor, name: str, options: MatMulOptions, steering: Steering) -> tf.Tensor:
    """Return `x`, of whose gradient less arrives."""
    policy = options.policy
    if name in policy.blocked:
        return tf.stop_gradient(x)
    for inside in _regions(x, name, options, steering):
        x = tf.where(inside, x, tf.stop_gradient(x))
    at_run_time = iter(steering.scales)
    for operand, scale in zip(policy.scaled, policy.scales, strict=True):
        factor = _read_scale(next(at_run_time)) if scale is None else tf.constant(scale, x.dtype)
        if operand == name:
            x = _scale_gradient(x, factor)
    return x


def _read_scale(scale: Any) -> tf.Tensor:
    factor = tf.convert_to_tensor(scale.value if isinstance(scale, keras.Variable) else scale)
    return tf.ensure_shape(factor, []) if factor.shape.rank is None else factor


def _scale_gradient(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Return `x`, whose gradient is multiplied.

    s x + stop_gradient((1 - s) x) is the same, but for what it rounds: here the difference is 0,
    and the value that of x.
    """
    frozen = tf.stop_gradient(x)
    return frozen + tf.stop_gradient(tf.cast(factor, x.dtype)) * (x - frozen)


def _restrict_rows(y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    rows = rows if rows.dtype == tf.bool else tf.cast(rows, y.dtype)
    if not (rows.shape.is_fully_defined() and y.shape.is_fully_defined()):
        rows = tf.broadcast_to(rows, tf.shape(y)[:-1])  # or an error, where y would be broadcast
    rows = rows[..., tf.newaxis]
    if rows.dtype == tf.bool:
        return tf.where(rows, y, tf.stop_gradient(y))
    return _scale_gradient(y, rows)


def _regions(
    x: tf.Tensor, name: str, options: MatMulOptions, steering: Steering
) -> Iterator[tf.Tensor]:
    """Yield for each axis of which not all learns a mask that broadcasts against `x`."""
    policy = options.policy
    axes: list[tuple[str, tuple[int, ...] | None, Indices | None]] = [
        (axis, policy.slices[3 * i : 3 * i + 3], None) for i, axis in enumerate(policy.sliced)
    ]
    axes += [
        (axis, None, each) for axis, each in zip(policy.indexed, steering.indices, strict=True)
    ]
    for axis, bounds, indices in axes:
        if operand_of(axis) == name:
            is_rows = axis.endswith("rows")
            mask = _mask(x, is_rows, bounds, indices, f"`trainable` of `{name}`")
            yield mask[:, tf.newaxis] if is_rows else mask


def _mask(
    x: tf.Tensor,
    is_rows: bool,
    bounds: tuple[int, ...] | None,
    indices: Indices | None,
    what: str,
) -> tf.Tensor:
    """Return which rows or columns are selected."""
    extent = None if x.shape.rank is None else x.shape[-2 if is_rows else -1]
    if extent is not None:
        chosen: Any = bounds
        mask = np.zeros(extent, bool)
        mask[select(Selection("rows" if is_rows else "columns", chosen, indices), extent)] = True
        return tf.constant(mask)
    # How many there are is known when it runs, and so is whether they are enough.
    size = tf.shape(x, tf.int64)[-2 if is_rows else -1]
    axis = "rows" if is_rows else "columns"
    if indices is not None:
        with _asserted(tf.reduce_all(indices < size), f"{what} selects {axis} beyond", size):
            return tf.scatter_nd(indices[:, np.newaxis], tf.ones(len(indices), tf.bool), [size])
    assert bounds is not None
    begin, end = (
        bound + size if bound < 0 else tf.constant(bound, tf.int64) for bound in bounds[:2]
    )
    if bounds[1] == NO_END:
        end = size
    fits = tf.reduce_all([begin >= 0, begin <= end, end <= size])
    with _asserted(fits, f"{what} is a slice of {axis} that does not lie within", size):
        places = tf.range(size)
    return (places >= begin) & (places < end) & ((places - begin) % bounds[2] == 0)


def _asserted(condition: tf.Tensor, message: str, size: tf.Tensor) -> Any:
    return tf.control_dependencies([tf.debugging.Assert(condition, [message, size])])


# --- Values ------------------------------------------------------------------------------------
def _product(operands: Sequence[tf.Tensor], options: MatMulOptions) -> tf.Tensor:
    """Return the activation of the product and the bias."""
    a, b, *bias = operands
    layout_a, layout_b = options.layout_a, options.layout_b

    def run(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        z = tf.matmul(
            a,
            b,
            transpose_a=layout_a == "transpose",
            transpose_b=layout_b == "transpose",
            adjoint_a=layout_a == "adjoint",
            adjoint_b=layout_b == "adjoint",
        )
        return _ACTIVATIONS[options.activation](tf.nn.bias_add(z, bias[0]) if bias else z)

    if a.shape.rank == 2 and b.shape.rank == 2:
        return run(a, b)
    if b.shape.rank == 2:
        # One matrix with all rows of the batch, as a layer's weights meet its data.
        if layout_a != "normal":
            a = tf.linalg.matrix_transpose(a, conjugate=layout_a == "adjoint")
            layout_a = "normal"
        return _unflatten(run(_flatten(a), b), a)
    return run(*_broadcast(a, b))


def _flatten(a: tf.Tensor) -> tf.Tensor:
    """Return the rows of all matrices as one matrix."""
    columns = None if a.shape.rank is None else a.shape[-1]
    if columns:  # with none, how many rows there are does not follow
        return tf.reshape(a, [-1, columns])
    sizes = tf.shape(a)
    return tf.reshape(a, tf.stack([tf.reduce_prod(sizes[:-1]), sizes[-1]]))


def _unflatten(y: tf.Tensor, a: tf.Tensor) -> tf.Tensor:
    """Divide the rows of `y` as those of `a`."""
    if a.shape.rank is not None:
        sizes = [*a.shape[:-1], y.shape[-1]]
        unknown = sizes.count(None)
        if unknown == 0 or (unknown == 1 and 0 not in sizes):
            return tf.reshape(y, [-1 if size is None else size for size in sizes])
    return tf.reshape(y, tf.concat([tf.shape(a)[:-1], tf.shape(y)[-1:]], axis=0))


def _broadcast(*factors: tf.Tensor) -> list[tf.Tensor]:
    """Broadcast batch dimensions in a step of its own, where they are not equal already.

    tf.matmul would do it, but in float32 with oneDNN its results are wrong: [2, 1, 31, 5] @ [5, 5]
    in TensorFlow 2.21.
    """
    batches = [x.shape[:-2] if x.shape.rank is not None else x.shape for x in factors]
    if all(batch.is_fully_defined() for batch in batches):
        known = tf.broadcast_static_shape(*batches)
        pairs = zip(factors, batches, strict=True)
        return [x if own == known else _with_batch(x, known.as_list()) for x, own in pairs]
    # At run time this gives what it was given where nothing is to be done.
    batch = tf.broadcast_dynamic_shape(*(tf.shape(x)[:-2] for x in factors))
    return [_with_batch(x, batch) for x in factors]


def _with_batch(x: tf.Tensor, batch: Any) -> tf.Tensor:
    return tf.broadcast_to(x, tf.concat([batch, tf.shape(x)[-2:]], axis=0))


# --- Errors ------------------------------------------------------------------------------------
def _check_shapes(operands: Sequence[tf.Tensor], options: MatMulOptions) -> tf.TensorShape:
    """Return the shape of the result, as far as it is known."""
    shapes = (None if x.shape.rank is None else tuple(x.shape) for x in operands)
    try:
        return _shape_of_result(tuple(shapes), options.layout_a, options.layout_b)
    except ValueError:
        if tf.executing_eagerly():
            _fused(operands, options.layout_a, options.layout_b)  # has its own words for it
        raise


@lru_cache(maxsize=4096)
def _shape_of_result(
    shapes: tuple[tuple[int | None, ...] | None, ...], layout_a: str, layout_b: str
) -> tf.TensorShape:
    """Ask the fused op, which has words for what does not fit."""
    with tf.Graph().as_default():
        operands = [tf.compat.v1.placeholder(tf.float32, shape) for shape in shapes]
        return _fused(operands, layout_a, layout_b).shape


def _fused(operands: Sequence[tf.Tensor], layout_a: str, layout_b: str) -> tf.Tensor:
    y, _ = load_ops().stopgrad_op_fused_mat_mul(
        a=operands[0],
        b=operands[1],
        bias=operands[2:],
        scales=[],
        rows=[],
        indices=[],
        num_z=0,
        layout_a=layout_a,
        layout_b=layout_b,
    )
    return y
