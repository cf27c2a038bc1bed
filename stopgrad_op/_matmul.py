"""`sg.matmul` and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import keras
import tensorflow as tf

from stopgrad_op import _tensorflow
from stopgrad_op._activations import SAVED
from stopgrad_op._keras_tensors import symbolic_matmul
from stopgrad_op._library import load_ops
from stopgrad_op._options import OPERANDS, GradientPolicy, MatMulOptions, resolve_options

_ops = load_ops()

_FLOATING = (tf.float32, tf.float64, tf.float16, tf.bfloat16)
_DTYPES = (*_FLOATING, tf.complex64, tf.complex128, tf.int32, tf.int64)

# What _matmul_aside records has a gradient of its own.
_ASIDE_GRADIENT = "StopgradOp>FusedMatMul/aside"


@_tensorflow.not_converted
def matmul(
    a: Any,
    b: Any,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    bias: Any = None,
    activation: str | Callable[..., Any] | None = None,
    stop_gradient: bool | str | Iterable[str] | None = None,
    gradient_scale: float | Mapping[str, float] | None = None,
    gradient_rows: Any = None,
    trainable: Any = None,
    name: str | None = None,
) -> tf.Tensor:
    """Multiply matrices, add a bias and apply an activation, in one operation.

    Computes `activation(a @ b + bias)`. A blocked gradient costs nothing: `stop_gradient="b"`
    gives what `tf.stop_gradient(b)` would, and the product for it does not run.

    Parameters
    ----------
    a
        Tensor of shape `[..., m, k]`, dtype float32, float64, half, bfloat16, complex64,
        complex128, int32 or int64, or anything that `tf.matmul` takes. Integers have no gradient.
    b
        Shape `[..., k, n]`, the same dtype. Batch dimensions broadcast as in `tf.matmul`.
    transpose_a, transpose_b
        The operand is stored transposed, `a` as `[..., k, m]`, `b` as `[..., n, k]`.
    adjoint_a, adjoint_b
        It is stored transposed and conjugated.
    bias
        Shape `[n]`, the same dtype, or `None`.
    activation
        `None` or "linear", "relu", "relu6", "leaky_relu" (slope 0.2), "elu", "selu", "gelu" (the
        exact one), "gelu_tanh", "sigmoid", "tanh", "silu" or "swish", "softplus"; or the function
        of that meaning from `tf.nn`, `keras.activations` or `keras.ops`. Real floating dtypes only.
    stop_gradient
        Which operands get no gradient: `None` or `False` for none, `True` for all, "a", "b" or
        "bias", or several of them. Their gradient is `None`.
    gradient_scale
        A finite number that every operand's gradient is multiplied by, or a dict from operands to
        numbers. 0 gives zeros and runs no product; a negative number reverses the gradient.
    gradient_rows, trainable
        Not built yet; must be `None`.
    name
        Name of the operation in a graph.

    Returns
    -------
    tf.Tensor
        Shape `[..., m, n]`, dtype of `a`. bfloat16 and half products are summed in float32.

    Raises
    ------
    ValueError, TypeError
        For options or dtypes that are wrong, and in a graph for static shapes that do not fit.
    tf.errors.InvalidArgumentError
        For shapes that do not fit, when they are known at run time only, or in eager mode.
    NotImplementedError
        For `gradient_rows`, `trainable` and a `gradient_scale` that is a tensor.
    """
    if gradient_rows is not None:
        raise NotImplementedError("`gradient_rows` is not built yet; due is None.")
    if trainable is not None:
        raise NotImplementedError("`trainable` is not built yet; due is None.")
    options = resolve_options(
        transpose_a,
        transpose_b,
        adjoint_a,
        adjoint_b,
        bias is not None,
        activation,
        stop_gradient,
        gradient_scale,
    )
    return run_matmul(a, b, bias, options, name)


def run_matmul(a: Any, b: Any, bias: Any, options: MatMulOptions, name: str | None) -> tf.Tensor:
    """Run `matmul` with its options already read."""
    if _is_keras_tensor(a, b, bias):
        return symbolic_matmul(a, b, bias, options, name)
    operands = _to_tensors(a, b, bias)
    if not tf.executing_eagerly():
        return _matmul_recorded(operands, options, name)
    learning = [
        operand
        for operand_name, operand in zip(OPERANDS, operands, strict=False)
        if operand_name not in options.policy.blocked
    ]
    order = _tensorflow.gradient_order(learning)
    try:
        if order > 1:
            return _matmul_recorded(operands, options, name)
        return _matmul_aside(operands, options, name, learns=order == 1)
    except (TypeError, ValueError, tf.errors.OpError):
        _check_dtypes(operands, options.activation)
        raise


def _is_keras_tensor(*values: Any) -> bool:
    """Return whether one is Keras's placeholder for a tensor."""
    return any(isinstance(value, keras.KerasTensor) for value in values)


def _to_tensors(a: Any, b: Any, bias: Any) -> list[tf.Tensor]:
    """Convert the operands; lists and the like take the dtype of a tensor among them."""

    def convert(value: Any, name: str, dtype_hint: Any) -> tf.Tensor:
        if isinstance(value, tf.Tensor):  # converting one to itself would take microseconds
            return value
        return tf.convert_to_tensor(value, dtype_hint=dtype_hint, name=name)

    a = convert(a, "a", None if hasattr(a, "dtype") else getattr(b, "dtype", None))
    operands = [a, convert(b, "b", a.dtype)]
    if bias is not None:
        operands.append(convert(bias, "bias", a.dtype))
    return operands


def _check_dtypes(operands: Sequence[tf.Tensor], activation: str) -> None:
    dtype = operands[0].dtype.base_dtype
    if dtype not in _DTYPES:
        raise TypeError(
            f"`a` has dtype {dtype.name}; due is one of {', '.join(d.name for d in _DTYPES)}."
        )
    for name, operand in zip(OPERANDS, operands, strict=False):
        if operand.dtype.base_dtype != dtype:
            raise TypeError(
                f"`{name}` has dtype {operand.dtype.name} and `a` has {dtype.name}; due is one"
                " dtype for all operands."
            )
    if activation != "linear" and dtype not in _FLOATING:
        raise ValueError(
            f'`activation` "{activation}" needs a real floating dtype; the operands have'
            f" {dtype.name}."
        )


@lru_cache(maxsize=4096)
def _eager_scale(scale: float) -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.constant(scale, tf.float64)


def _run_op(
    operands: Sequence[tf.Tensor],
    scales: Sequence[tf.Tensor],
    options: MatMulOptions,
    name: str | None,
    *,
    with_z: bool,
    blocked: Sequence[str] = (),
    scaled: Sequence[str] = (),
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    y, z = _ops.stopgrad_op_fused_mat_mul(
        a=operands[0],
        b=operands[1],
        bias=operands[2:],
        scales=scales,
        num_z=int(with_z),
        layout_a=options.layout_a,
        layout_b=options.layout_b,
        activation=options.activation,
        blocked=list(blocked),
        scaled=list(scaled),
        name=name,
    )
    return y, z


def _matmul_recorded(
    operands: Sequence[tf.Tensor], options: MatMulOptions, name: str | None
) -> tf.Tensor:
    """Run the op where TensorFlow records it: in a graph, or under several tapes."""
    _check_dtypes(operands, options.activation)
    scales = [tf.constant(scale, tf.float64) for scale in options.policy.scales]
    # In a graph z costs nothing where no gradient is built: the kernel leaves out what nobody
    # consumes.
    y, _ = _run_op(
        operands,
        scales,
        options,
        name,
        with_z=options.saves_preactivation,
        blocked=options.policy.blocked,
        scaled=options.policy.scaled,
    )
    return y


def _matmul_aside(
    operands: Sequence[tf.Tensor], options: MatMulOptions, name: str | None, *, learns: bool
) -> tf.Tensor:
    """Run the op eagerly where no tape sees it, then record what a first derivative needs.

    Left to itself, the tape would make a tensor of zeros as the gradient of z, and keep the inputs
    of calls that are all blocked.
    """
    with_z = learns and options.saves_preactivation
    with _tensorflow.stop_recording():
        y, z = _run_op(operands, (), options, name, with_z=with_z)
    if learns:
        scales = [_eager_scale(scale) for scale in options.policy.scales]
        _tensorflow.record_gradient(_ASIDE_GRADIENT, [*operands, *scales, *z], options, [y])
    return y


@tf.RegisterGradient("StopgradOp>FusedMatMul")
def _recorded_gradient(op: tf.Operation, dy: tf.Tensor, *_: Any) -> list[tf.Tensor | None]:
    # The gradient of z is left out: z goes to the gradient op alone, which has none to give.
    def names(attribute: str) -> tuple[str, ...]:
        return tuple(tf.compat.as_str(name) for name in op.get_attr(attribute))

    options = MatMulOptions(
        layout_a=tf.compat.as_str(op.get_attr("layout_a")),
        layout_b=tf.compat.as_str(op.get_attr("layout_b")),
        activation=tf.compat.as_str(op.get_attr("activation")),
        policy=GradientPolicy(blocked=names("blocked"), scaled=names("scaled")),
    )
    saved = op.outputs[1:] if options.saves_preactivation else op.outputs[:1]
    return _gradients(op, options, dy, list(op.inputs), saved)


@tf.RegisterGradient(_ASIDE_GRADIENT)
def _aside_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    options: MatMulOptions = _tensorflow.recorded_note(op)
    inputs = list(op.inputs)
    saved = [inputs.pop()] if options.saves_preactivation else list(op.outputs)
    gradients = _gradients(op, options, dy, inputs, saved)
    return gradients + [None] * (len(op.inputs) - len(inputs))


@tf.RegisterGradient("StopgradOp>FusedMatMulGrad")
def _second_gradient(*_: Any) -> list[tf.Tensor | None]:
    raise NotImplementedError(
        "sg.matmul has first derivatives only; here a second one, a tf.function's gradient under a"
        " further tape, or forward mode asks for more. Use tf.matmul where that is needed."
    )


def _gradients(
    op: Any,
    options: MatMulOptions,
    dy: tf.Tensor,
    inputs: list[tf.Tensor],
    saved: Sequence[tf.Tensor],
) -> list[tf.Tensor | None]:
    """Return the gradient of each input: the operands', and None for the scales.

    With z = a b + bias, y = f(z) and upstream dy:
    dz = dy f'(z),  da = s_a dz b^H,  db = s_b a^H dz,  dbias = s_bias sum over rows of dz.
    """
    policy = options.policy
    num_operands = len(inputs) - len(policy.scaled)
    operands = dict(zip(OPERANDS, inputs[:num_operands], strict=False))
    scales = dict(zip(policy.scaled, inputs[num_operands:], strict=True))
    skipped = _tensorflow.skipped_inputs(op)
    needed = [
        name
        for index, name in enumerate(operands)
        if name not in policy.blocked and (skipped is None or index not in skipped)
    ]
    # A scale that is known to be 0 needs no kernel.
    results = {
        name: tf.zeros_like(operands[name])
        for name in needed
        if name in scales and _is_known_zero(scales[name])
    }
    needed = [name for name in needed if name not in results]

    def run(needed: Sequence[str], dy: tf.Tensor, activation: str) -> list[tf.Tensor]:
        return _run_gradient_op(needed, dy, activation, options, operands, scales, saved)

    if skipped is not None or len(needed) == 1:
        if needed:
            results.update(zip(needed, run(needed, dy, options.activation), strict=True))
    else:
        # Nobody knows here which gradients will be used. Each product gets a node of its own, so
        # that TensorFlow prunes the others away, and the pass over dy one before them.
        products = [name for name in needed if name != "bias"]
        first = [name for name in needed if name == "bias"]
        if products and options.activation != "linear":
            first.append("z")
        if first:
            results.update(zip(first, run(first, dy, options.activation), strict=True))
        dz = results.get("z", dy)
        for name in products:
            (results[name],) = run([name], dz, "linear")
    return [results.get(name) for name in operands] + [None] * len(scales)


def _is_known_zero(scale: tf.Tensor) -> bool:
    value = tf.get_static_value(scale)
    return value is not None and not value


def _run_gradient_op(
    needed: Sequence[str],
    dy: tf.Tensor,
    activation: str,
    options: MatMulOptions,
    operands: Mapping[str, tf.Tensor],
    scales: Mapping[str, tf.Tensor],
    saved: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Run the gradient op with no other inputs than it will read."""
    scaled = [name for name in needed if name in scales]
    inputs = {name: [operands[name]] if other in needed else [] for name, other in _OTHER.items()}
    shapes = {
        # Where one of the two is a matrix, the op knows a missing operand's shape without this.
        name: [tf.shape(operands[name], tf.int64)]
        if name in needed
        and not inputs[name]
        and operands[name].shape.rank != 2
        and operands[other].shape.rank != 2
        else []
        for name, other in _OTHER.items()
    }
    gradients: list[tf.Tensor] = _ops.stopgrad_op_fused_mat_mul_grad(
        dy=dy,
        a=inputs["a"],
        b=inputs["b"],
        saved=list(saved) if SAVED[activation] != "nothing" else [],
        shape_a=shapes["a"],
        shape_b=shapes["b"],
        scales=[scales[name] for name in scaled],
        num_needed=len(needed),
        needed=list(needed),
        layout_a=options.layout_a,
        layout_b=options.layout_b,
        activation=activation,
        scaled=scaled,
    )
    return gradients


# The gradient of each factor reads the other one.
_OTHER = {"a": "b", "b": "a"}
