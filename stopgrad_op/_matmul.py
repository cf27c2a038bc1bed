"""`sg.matmul` and its gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

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
    operands = (a, b) if bias is None else (a, b, bias)
    eager = tf.executing_eagerly()
    if not (eager and _tensorflow.EAGER_TYPES.issuperset(map(type, operands))):
        if _is_keras_tensor(*operands):
            return symbolic_matmul(a, b, bias, options, name)
        operands = _to_tensors(operands, _tensorflow.EAGER_TYPES if eager else ())
    if not eager:
        return _matmul_recorded(operands, options, name)
    sources = [_tensorflow.tape_source(operand) for operand in operands]
    if _tensorflow.may_record():
        return _matmul_aside(operands, sources, options)
    return _run_eager_op(operands, sources, options)[0]


def _is_keras_tensor(*values: Any) -> bool:
    """Return whether one is Keras's placeholder for a tensor."""
    return any(isinstance(value, keras.KerasTensor) for value in values)


def _to_tensors(operands: Sequence[Any], ready: Container[type] = ()) -> tuple[Any, ...]:
    """Convert the operands, unless their type is among those that are `ready`.

    Lists and the like take the dtype of a tensor among the operands.
    """

    def convert(value: Any, name: str, dtype_hint: Any) -> Any:
        if isinstance(value, keras.Variable):
            value = value.value
        if isinstance(value, tf.Tensor) or type(value) in ready:
            return value
        return tf.convert_to_tensor(value, dtype_hint=dtype_hint, name=name)

    a, b, *bias = operands
    a = convert(a, "a", None if hasattr(a, "dtype") else getattr(b, "dtype", None))
    others = zip(OPERANDS[1:], (b, *bias), strict=False)
    return (a, *(convert(value, name, a.dtype) for name, value in others))


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


@lru_cache(maxsize=4096)
def _attributes(layout_a: str, layout_b: str, activation: str) -> tuple[str, ...]:
    """Return what both ops take of the options, as names and values in turn, but for defaults."""
    attributes: tuple[str, ...] = ()
    if layout_a != "normal":
        attributes += ("layout_a", layout_a)
    if layout_b != "normal":
        attributes += ("layout_b", layout_b)
    if activation != "linear":
        attributes += ("activation", activation)
    return attributes


def _matmul_recorded(
    operands: Sequence[tf.Tensor], options: MatMulOptions, name: str | None
) -> tf.Tensor:
    """Run the op where TensorFlow records it: in a graph, or under several tapes."""
    _check_dtypes(operands, options.activation)
    y, _ = _ops.stopgrad_op_fused_mat_mul(
        a=operands[0],
        b=operands[1],
        bias=operands[2:],
        scales=[tf.constant(scale, tf.float64) for scale in options.policy.scales],
        # In a graph z costs nothing where no gradient is built: the kernel leaves out what nobody
        # consumes.
        num_z=int(options.saves_preactivation),
        layout_a=options.layout_a,
        layout_b=options.layout_b,
        activation=options.activation,
        blocked=options.policy.blocked,
        scaled=options.policy.scaled,
        name=name,
    )
    return y


class _Kept(NamedTuple):
    """What backward needs of a call of _matmul_aside."""

    options: MatMulOptions
    learning: Sequence[str]  # the operands that are not blocked, as the tapes know them
    operands: list[tf.Tensor]
    scales: tuple[tf.Tensor, ...]
    z: list[tf.Tensor]  # none or one


def _run_eager_op(
    operands: Sequence[tf.Tensor | tf.Variable],
    sources: Sequence[tf.Tensor],
    options: MatMulOptions,
    num_values: int = 0,
    num_z: int = 0,
) -> list[tf.Tensor]:
    """Return y, then the values of the variables if they are wanted, then z if it is."""

    def in_steps() -> list[tf.Tensor]:
        # Where the op does not go, to a variable on another device say, or to learn what is wrong.
        tensors = _to_tensors(operands)
        _check_dtypes(tensors, options.activation)
        y, z = _ops.stopgrad_op_fused_mat_mul(
            a=tensors[0],
            b=tensors[1],
            bias=tensors[2:],
            scales=[],
            num_z=num_z,
            layout_a=options.layout_a,
            layout_b=options.layout_b,
            activation=options.activation,
        )
        read = [x for x, operand in zip(tensors, operands, strict=True) if x is not operand]
        return [y, *read[:num_values], *z]

    results: list[tf.Tensor] = _tensorflow.run_op(
        "StopgradOp>FusedMatMulEager",
        (sources,),
        (
            "result_types",
            (operands[0].dtype,) * (1 + num_values + num_z),
            *_attributes(options.layout_a, options.layout_b, options.activation),
        ),
        in_steps,
    )
    return results


def _matmul_aside(
    operands: Sequence[tf.Tensor | tf.Variable],
    sources: list[tf.Tensor],
    options: MatMulOptions,
) -> tf.Tensor:
    """Run the op eagerly where no tape sees it, then record what a first derivative needs.

    Left to itself, TensorFlow would record the reading of each variable as a further operation,
    make a tensor of zeros as the gradient of z, and keep the inputs of calls that are all blocked.
    """
    learning: Sequence[str] = OPERANDS[: len(operands)]
    learning_sources = sources
    policy = options.policy
    if policy.blocked:
        learning = [name for name in learning if name not in policy.blocked]
        learning_sources = [sources[OPERANDS.index(name)] for name in learning]
    order = _tensorflow.gradient_order(learning_sources)
    if order > 1:
        return _matmul_recorded(_to_tensors(operands), options, None)
    with _tensorflow.Unrecorded():
        if order == 0:
            return _run_eager_op(operands, sources, options)[0]
        num_values = sum(map(operator.is_not, operands, sources))
        num_z = 1 if options.saves_preactivation else 0
        y, *kept_results = _run_eager_op(operands, sources, options, num_values, num_z)
    values = iter(kept_results)
    tensors = [
        operand if operand is source else next(values)
        for operand, source in zip(operands, sources, strict=True)
    ]
    z = list(values)
    scales = tuple(map(_eager_scale, policy.scales))
    kept = _Kept(options, learning, tensors, scales, z)
    _tensorflow.record_gradient(_ASIDE_GRADIENT, learning_sources, kept, [y])
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
    num_operands = len(op.inputs) - len(options.policy.scaled)
    operands, scales = op.inputs[:num_operands], op.inputs[num_operands:]
    skipped = _tensorflow.skipped_inputs(op)
    needed = [
        name
        for index, name in enumerate(OPERANDS[:num_operands])
        if name not in options.policy.blocked and (skipped is None or index not in skipped)
    ]
    results = _gradients(needed, options, dy, operands, scales, saved, all_used=skipped is not None)
    return [results.get(name) for name in OPERANDS[:num_operands]] + [None] * len(scales)


@tf.RegisterGradient(_ASIDE_GRADIENT)
def _aside_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    kept: _Kept = _tensorflow.recorded_note(op)
    skipped = _tensorflow.skipped_inputs(op) or ()
    needed = [name for index, name in enumerate(kept.learning) if index not in skipped]
    results = _gradients(
        needed, kept.options, dy, kept.operands, kept.scales, kept.z or op.outputs, all_used=True
    )
    return list(map(results.get, kept.learning))


@tf.RegisterGradient("StopgradOp>FusedMatMulGrad")
def _second_gradient(*_: Any) -> list[tf.Tensor | None]:
    raise NotImplementedError(
        "sg.matmul has first derivatives only; here a second one, a tf.function's gradient under a"
        " further tape, or forward mode asks for more. Use tf.matmul where that is needed."
    )


def _gradients(
    needed: list[str],
    options: MatMulOptions,
    dy: tf.Tensor,
    operands: Sequence[tf.Tensor],
    scales: Sequence[tf.Tensor],
    saved: Sequence[tf.Tensor],
    *,
    all_used: bool,
) -> dict[str, tf.Tensor]:
    """Return the gradients of the operands that are `needed`.

    With z = a b + bias, y = f(z) and upstream dy:
    dz = dy f'(z),  da = s_a dz b^H,  db = s_b a^H dz,  dbias = s_bias sum over rows of dz.
    """
    results: dict[str, tf.Tensor] = {}
    named_scales: dict[str, tf.Tensor] = {}
    if scales:
        named_scales = dict(zip(options.policy.scaled, scales, strict=True))
        # A scale that is known to be 0 needs no kernel.
        results = {
            name: tf.zeros_like(operands[OPERANDS.index(name)])
            for name in needed
            if name in named_scales and _is_known_zero(named_scales[name])
        }
        needed = [name for name in needed if name not in results]

    def run(needed: Sequence[str], dy: tf.Tensor, activation: str) -> None:
        gradients = _run_gradient_op(needed, dy, activation, options, operands, named_scales, saved)
        results.update(zip(needed, gradients, strict=True))

    if all_used or len(needed) == 1:
        if needed:
            run(needed, dy, options.activation)
    else:
        # Nobody knows here which gradients will be used. Each product gets a node of its own, so
        # that TensorFlow prunes the others away, and the pass over dy one before them.
        products = [name for name in needed if name != "bias"]
        first = [name for name in needed if name == "bias"]
        if products and options.activation != "linear":
            first.append("z")
        if first:
            run(first, dy, options.activation)
        dz = results.get("z", dy)
        for name in products:
            run([name], dz, "linear")
    return results


def _is_known_zero(scale: tf.Tensor) -> bool:
    value = tf.get_static_value(scale)
    return value is not None and not value


def _run_gradient_op(
    needed: Sequence[str],
    dy: tf.Tensor,
    activation: str,
    options: MatMulOptions,
    operands: Sequence[tf.Tensor],
    scales: Mapping[str, tf.Tensor],
    saved: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Run the gradient op with no other inputs than it will read."""
    a, b = operands[0], operands[1]
    needs_a, needs_b = "a" in needed, "b" in needed
    shape_a: list[tf.Tensor] = []
    shape_b: list[tf.Tensor] = []
    # The gradient of each factor reads the other one, and of itself the shape. Where one of the two
    # is a matrix, the op knows it without.
    if needs_a != needs_b and a.shape.rank != 2 and b.shape.rank != 2:
        if needs_a:
            shape_a = [tf.shape(a, tf.int64)]
        else:
            shape_b = [tf.shape(b, tf.int64)]
    scaled = [name for name in needed if name in scales]
    inputs = (
        dy,
        [a] if needs_b else [],
        [b] if needs_a else [],
        saved if SAVED[activation] != "nothing" else [],
        shape_a,
        shape_b,
        [scales[name] for name in scaled],
    )
    attributes = (
        *("num_needed", len(needed), "needed", needed),
        *(("scaled", scaled) if scaled else ()),
        *_attributes(options.layout_a, options.layout_b, activation),
    )
    gradients: list[tf.Tensor] = _tensorflow.run_op(
        "StopgradOp>FusedMatMulGrad",
        inputs,
        attributes,
        lambda: _ops.stopgrad_op_fused_mat_mul_grad(
            *inputs, **dict(zip(attributes[::2], attributes[1::2], strict=True))
        ),
    )
    return gradients
