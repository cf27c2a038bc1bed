"""`sg.matmul` and its gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from stopgrad_op import _library, _stock, _tensorflow
from stopgrad_op._activations import SAVED
from stopgrad_op._gradient import ASIDE_GRADIENT, Kept, is_known_zero, product_attributes
from stopgrad_op._keras_tensors import symbolic_matmul
from stopgrad_op._library import load_ops
from stopgrad_op._options import OPERANDS, MatMulOptions, Steering, resolve_options
from stopgrad_op._regions import Columns, Rows
from stopgrad_op._steering import check_steering, index_tensor, read_scales

_ops = load_ops()

_INDEX = {name: index for index, name in enumerate(OPERANDS)}

Region: TypeAlias = slice | tuple[slice, ...] | Rows | Columns

_FLOATING = (tf.float32, tf.float64, tf.float16, tf.bfloat16)
_DTYPES = (*_FLOATING, tf.complex64, tf.complex128, tf.int32, tf.int64)


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
    gradient_scale: Any = None,
    gradient_rows: Any = None,
    trainable: Mapping[str, Region] | None = None,
    name: str | None = None,
) -> tf.Tensor:
    """Multiply matrices, add a bias and apply an activation, in one operation.

    Computes `activation(a @ b + bias)`. A blocked gradient costs nothing: `stop_gradient="b"`
    gives what `tf.stop_gradient(b)` would, and the product for it does not run.

    Gradients have gradients of any order, in forward mode too, and `tf.vectorized_map` and
    `tape.jacobian` make one batched product of many.

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
        What every operand's gradient is multiplied by, or a dict from operands to that: a finite
        number, or a scalar tensor or variable, which is read at each call. 0 gives zeros and runs
        no product; a negative one reverses the gradient. The scale itself has no gradient.
    gradient_rows
        What each row of the result sends back, as a factor: bool or real floating, of a shape that
        broadcasts to `[..., m]`. Rows at 0 send nothing, and the products run without them. The
        rows have no gradient.
    trainable
        A dict from operands to the region that learns; elsewhere the gradient is 0 and is not
        computed. A region is a slice of rows, a tuple of one or two slices (`np.s_[:, 512:]`),
        `sg.rows([...])` or `sg.columns([...])`, of the operand as it is passed, on its last two
        axes; of the bias a slice or `sg.columns([...])`. Bounds outside the operand are an error.
        With `sg.rows([...], indexed_slices=True)` the gradient of a matrix is a
        `tf.IndexedSlices` of these rows.
    name
        Name of the operation in a graph.

    Returns
    -------
    tf.Tensor
        Shape `[..., m, n]`, dtype of `a`. bfloat16 and half products are summed in float32.

    Raises
    ------
    ValueError, TypeError
        For options or dtypes that are wrong, regions and rows that do not fit known shapes, and in
        a graph for static shapes that do not fit.
    tf.errors.InvalidArgumentError
        For shapes that do not fit, when they are known at run time only, or in eager mode; in the
        backward pass for regions and rows that do not fit, and rows that are NaN.
    """
    options, steering = resolve_options(
        transpose_a,
        transpose_b,
        adjoint_a,
        adjoint_b,
        bias is not None,
        activation,
        stop_gradient,
        gradient_scale,
        gradient_rows,
        trainable,
    )
    return run_matmul(a, b, bias, options, steering, name)


def run_matmul(
    a: Any,
    b: Any,
    bias: Any,
    options: MatMulOptions,
    steering: Steering | None,
    name: str | None,
) -> tf.Tensor:
    """Run `matmul` with its options already read."""
    operands = (a, b) if bias is None else (a, b, bias)
    eager = tf.executing_eagerly()
    of_stock_ops = _stock.num_open and _stock.is_asked_for()
    if of_stock_ops or not (eager and _tensorflow.EAGER_TYPES.issuperset(map(type, operands))):
        if _is_keras_tensor(*operands):
            return symbolic_matmul(a, b, bias, options, steering, name)
        ready = _tensorflow.EAGER_TYPES if eager and not of_stock_ops else ()
        operands = _to_tensors(operands, ready)
    if steering is not None:
        if _is_keras_tensor(steering.rows, *steering.scales):
            return symbolic_matmul(a, b, bias, options, steering, name)
        steering = check_steering(steering, options, operands)
    if of_stock_ops:
        _check_dtypes(operands, options.activation)
        return _stock.matmul(operands, options, steering, name)
    if not eager:
        return _matmul_recorded(operands, options, steering, name)
    sources = [_tensorflow.tape_source(operand) for operand in operands]
    if _tensorflow.may_record():
        return _matmul_aside(operands, sources, options, steering)
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


def _matmul_recorded(
    operands: Sequence[tf.Tensor],
    options: MatMulOptions,
    steering: Steering | None,
    name: str | None,
) -> tf.Tensor:
    """Run the op where TensorFlow records it: in a graph, or under several tapes."""
    if _tensorflow.compiles() and (missing := _library.load_xla()):
        raise NotImplementedError(
            f"XLA, which jit_compile=True asks for, cannot compile sg.matmul here: {missing}."
        )
    _check_dtypes(operands, options.activation)
    policy = options.policy
    learns = len(policy.blocked) < len(operands)
    rows, indices = [], []
    if learns and steering is not None:
        rows = [] if steering.rows is None else [steering.rows]
        indices = [index_tensor(each) for each in steering.indices]
    y, _ = _ops.stopgrad_op_fused_mat_mul(
        a=operands[0],
        b=operands[1],
        bias=operands[2:],
        scales=[tf.convert_to_tensor(s, tf.float64) for s in read_scales(policy, steering)],
        rows=rows,
        indices=indices,
        # In a graph z costs nothing where no gradient is built: the kernel leaves out what nobody
        # consumes. Where nothing learns, TensorFlow may consume it all the same, for its shape.
        num_z=int(learns and options.saves_preactivation),
        layout_a=options.layout_a,
        layout_b=options.layout_b,
        activation=options.activation,
        blocked=policy.blocked,
        scaled=policy.scaled,
        sliced=policy.sliced,
        slices=policy.slices,
        indexed=policy.indexed,
        indexed_slices=policy.indexed_slices,
        name=name,
    )
    return y


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
            rows=[],
            indices=[],
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
            *product_attributes(options.layout_a, options.layout_b, options.activation),
        ),
        in_steps,
    )
    return results


def _matmul_aside(
    operands: Sequence[tf.Tensor | tf.Variable],
    sources: list[tf.Tensor],
    options: MatMulOptions,
    steering: Steering | None,
) -> tf.Tensor:
    """Run the op eagerly where no tape sees it, then record what a first derivative needs.

    Left to itself, TensorFlow would record the reading of each variable as a further operation,
    make a tensor of zeros as the gradient of z, and keep all inputs and outputs until backward.
    """
    policy = options.policy
    learning: Sequence[str] = OPERANDS[: len(operands)]
    if policy.blocked:
        learning = [name for name in learning if name not in policy.blocked]
        sources_of_learning = [sources[_INDEX[name]] for name in learning]
    else:
        sources_of_learning = sources
    order = _tensorflow.gradient_order(sources_of_learning)
    if order > 1 or (order == 1 and _tensorflow.has_tangent(sources_of_learning)):
        return _matmul_recorded(_to_tensors(operands), options, steering, None)
    if order == 0:
        with _tensorflow.Unrecorded():
            return _run_eager_op(operands, sources, options)[0]
    # Nobody can ask for the gradient of what no tape watches, such as the data in the first layer,
    # and the other factor need not be kept for it. A bias has no other factor.
    if len(learning) > 1:
        for name in learning:
            if name != "bias" and not _tensorflow.gradient_order((sources[_INDEX[name]],)):
                learning = [other for other in learning if other != name]
        if len(learning) < len(sources_of_learning):
            sources_of_learning = [sources[_INDEX[name]] for name in learning]
    computed = learning
    scales: dict[str, Any] = {}
    with _tensorflow.Unrecorded():
        if policy.scaled:
            scales = dict(zip(policy.scaled, read_scales(policy, steering), strict=True))
            computed = [x for x in learning if not (x in scales and is_known_zero(scales[x]))]
        saved = SAVED[options.activation] if computed else "nothing"
        num_z = 1 if saved == "preactivation" else 0
        # Of each factor the gradient reads the other one. The op returns all values or none.
        reads_a, reads_b = "b" in computed, "a" in computed
        num_values = 0
        if reads_a or reads_b or num_z:
            num_values = sum(map(operator.is_not, operands, sources))
        y, *others = _run_eager_op(operands, sources, options, num_values, num_z)
        a, b = operands[0], operands[1]
        if num_values:
            values = iter(others)
            a = a if a is sources[0] else next(values)
            b = b if b is sources[1] else next(values)
        rows: Sequence[tf.Tensor] = ()
        indices: dict[str, tf.Tensor] = {}
        if steering is not None:
            rows = () if steering.rows is None else (steering.rows,)
            indices = dict(zip(policy.indexed, map(index_tensor, steering.indices), strict=True))
        kept = Kept(
            options,
            learning,
            (a if reads_a else a.shape, b if reads_b else b.shape),
            others[-1:] if num_z else [y] if saved == "output" else [],
            {x: _eager_scale(scales[x]) for x in learning if x in scales} if scales else {},
            rows,
            indices,
        )
    _tensorflow.record_gradient(ASIDE_GRADIENT, sources_of_learning, kept, y)
    return y
