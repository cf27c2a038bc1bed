"""Every error names the argument, what came and what is due, eager and in a function."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import stopgrad_op as sg

InvalidArgument = tf.errors.InvalidArgumentError

in_both = pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])


def ones(*shape: int, dtype: Any = tf.float32) -> tf.Tensor:
    return tf.ones(shape, dtype)


def call(*shapes: Any, dtype: Any = tf.float32, **options: Any) -> Callable[[], Any]:
    return lambda: sg.matmul(*(ones(*shape, dtype=dtype) for shape in shapes), **options)


A, B = (5, 7), (7, 3)

OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"activation": "rleu"}, ValueError, '`activation` "rleu".*did you mean "relu".*Due is None'),
    ({"activation": "gleu"}, ValueError, '`activation` "gleu".*did you mean "gelu"'),
    ({"activation": "ReLU"}, ValueError, '`activation` "ReLU".*did you mean "relu"'),
    ({"activation": "zzz"}, ValueError, '`activation` "zzz".*Due is None or one of linear, relu'),
    ({"activation": ""}, ValueError, '`activation` "".*Due is None or one of'),
    ({"activation": tf.nn.softmax}, ValueError, "`activation` is the function '?softmax.*Due is"),
    ({"activation": 3}, TypeError, "`activation` .*int; due is None, a name or a function"),
    ({"activation": ["relu"]}, TypeError, "`activation` .*list; due is None"),
    ({"stop_gradient": "c"}, ValueError, "`stop_gradient`.*\"c\".*Due is one of 'a', 'b'"),
    ({"stop_gradient": "bais"}, ValueError, '"bais"; did you mean "bias".*Due is'),
    ({"stop_gradient": ["a", "B"]}, ValueError, '`stop_gradient`.*"B"; did you mean "b"'),
    ({"stop_gradient": "bias"}, ValueError, '`stop_gradient`.*"bias".*the call has no bias'),
    ({"stop_gradient": ("a", "bias")}, ValueError, '"bias".*the call has no bias'),
    ({"stop_gradient": 1}, TypeError, "`stop_gradient` .*int; due is None, True, False"),
    ({"stop_gradient": 0.5}, TypeError, "`stop_gradient` .*float; due is"),
    ({"stop_gradient": ["a", 2]}, TypeError, "`stop_gradient` names an operand by 2; due is"),
    ({"stop_gradient": [["a"]]}, TypeError, r"`stop_gradient` names an operand by \['a'\]; due"),
    ({"gradient_scale": float("nan")}, ValueError, "`gradient_scale`.* nan; due is a finite"),
    ({"gradient_scale": float("inf")}, ValueError, "`gradient_scale`.* inf; due is a finite"),
    ({"gradient_scale": {"b": -np.inf}}, ValueError, "`gradient_scale` of `b` is -inf; due is"),
    ({"gradient_scale": {"b": "x"}}, TypeError, "`gradient_scale` of `b` is 'x'; due is a"),
    ({"gradient_scale": "x"}, TypeError, "`gradient_scale`.*; due is a"),
    ({"gradient_scale": "ab"}, TypeError, "`gradient_scale`.*; due is a"),
    ({"gradient_scale": [0.5, 0.5]}, TypeError, "`gradient_scale`.*; due is a"),
    ({"gradient_scale": [("a", 0.5, 1)]}, TypeError, "`gradient_scale`.*due is a"),
    ({"gradient_scale": np.ones(2)}, TypeError, "`gradient_scale`.*; due is a.* number"),
    ({"gradient_scale": True}, TypeError, "`gradient_scale`.*True; due is a.* number"),
    ({"gradient_scale": 1j}, TypeError, "`gradient_scale`.*1j; due is a.* number"),
    ({"gradient_scale": {"bais": 1.0}}, ValueError, '`gradient_scale`.*"bais"; did you mean "bias'),
    ({"gradient_scale": {"bias": 0.5}}, ValueError, '`gradient_scale`.*"bias".*has no bias'),
    ({"gradient_scale": {1: 0.5}}, TypeError, "`gradient_scale` names an operand by 1; due is"),
    (
        {"transpose_a": True, "adjoint_a": True},
        ValueError,
        "`transpose_a` and `adjoint_a` are both set; due is at most one",
    ),
    (
        {"transpose_b": True, "adjoint_b": True},
        ValueError,
        "`transpose_b` and `adjoint_b` are both set; due is at most one",
    ),
]


@in_both
@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_wrong_option_is_named(
    wrap: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wrap(call(A, B, **options))()


# What a tensor decides comes as a function, because it must be made where the call is.
STEERING: list[tuple[dict[str, Any], type[Exception], str]] = [
    # Scales.
    ({"gradient_scale": lambda: tf.ones(2)}, ValueError, r"_scale` of `a` has shape \[2\]; due"),
    ({"gradient_scale": lambda: tf.ones(1)}, ValueError, r"has shape \[1\]; due is a scalar"),
    ({"gradient_scale": lambda: tf.constant(True)}, TypeError, "of `a` has dtype bool; due is"),
    ({"gradient_scale": lambda: tf.constant(1j)}, TypeError, "dtype complex128; due is"),
    ({"gradient_scale": lambda: tf.constant("1")}, TypeError, "dtype string; due is"),
    ({"gradient_scale": {"b": lambda: tf.ones((1, 1))}}, ValueError, "`gradient_scale` of `b` has"),
    ({"gradient_scale": {"b": lambda: tf.constant(False)}}, TypeError, "of `b` has dtype bool"),
    ({"gradient_scale": {"bias": lambda: tf.constant(1.0)}}, ValueError, "the call has no bias"),
    (
        {"gradient_scale": lambda: np.datetime64("2020-01-01")},
        TypeError,
        "`gradient_scale` of `a` is .*; due is a real number, or a scalar tensor",
    ),
    # Rows.
    ({"gradient_rows": [1, 0, 1, 0, 1]}, TypeError, "`gradient_rows` has dtype int32; due is one"),
    ({"gradient_rows": ["a"] * 5}, TypeError, "`gradient_rows` has dtype string; due is one of"),
    ({"gradient_rows": [1j] * 5}, TypeError, "`gradient_rows` has dtype complex128; due is one"),
    ({"gradient_rows": [True] * 4}, ValueError, r"_rows` has shape \[4\], .* shape \[5\]; due"),
    ({"gradient_rows": []}, ValueError, r"`gradient_rows` has shape \[0\]"),
    ({"gradient_rows": [[True] * 5]}, ValueError, r"has shape \[1, 5\], .* \[5\]; due is a shape"),
    ({"gradient_rows": [[True]] * 5}, ValueError, r"has shape \[5, 1\], .* \[5\]; due"),
    ({"gradient_rows": lambda: tf.ones(6)}, ValueError, r"has shape \[6\], .* \[5\]; due"),
    ({"gradient_rows": [[True], [True, False]]}, TypeError, "`gradient_rows` has type list and"),
    ({"gradient_rows": object()}, TypeError, "`gradient_rows` has type object and cannot"),
    # Regions: the form.
    ({"trainable": np.s_[1:2]}, TypeError, "`trainable` has type slice; due is a dict from"),
    ({"trainable": True}, TypeError, "`trainable` has type bool; due is a dict"),
    ({"trainable": "b"}, TypeError, "`trainable` has type str; due is a dict"),
    ({"trainable": {"c": np.s_[1:2]}}, ValueError, '`trainable` names the operand "c".*Due is'),
    ({"trainable": {0: np.s_[1:2]}}, TypeError, "`trainable` names an operand by 0; due is"),
    ({"trainable": {"bias": np.s_[1:2]}}, ValueError, "`trainable`.*the call has no bias"),
    ({"trainable": {"b": True}}, TypeError, "`trainable` of `b` is True of type bool; due is"),
    ({"trainable": {"b": None}}, TypeError, "`trainable` of `b` is None"),
    ({"trainable": {"b": [1, 2]}}, TypeError, "`trainable` of `b` is a value of type list; due"),
    ({"trainable": {"b": ()}}, ValueError, "`trainable` of `b` is a tuple of 0 slices; due"),
    ({"trainable": {"b": np.s_[:1, :1, :1]}}, ValueError, "`b` is a tuple of 3 slices; due is"),
    (
        {"trainable": {"b": np.s_[..., :1]}},
        TypeError,
        "`trainable` of `b` is a tuple with Ellipsis",
    ),
    ({"trainable": {"b": np.s_[::-1]}}, ValueError, "`trainable` of `b`.* step is -1; due is 1"),
    ({"trainable": {"b": np.s_[::0]}}, ValueError, "`trainable` of `b`.* step is 0; due is 1"),
    ({"trainable": {"b": np.s_[0.5:]}}, TypeError, "`trainable` of `b`.* begin is 0.5; due is"),
    ({"trainable": {"b": np.s_[3:2]}}, ValueError, "`trainable` of `b` is reversed"),
    # Regions: the range. b has 7 rows and 3 columns.
    ({"trainable": {"b": np.s_[:8]}}, ValueError, "of `b` ends at row 8, and `b` has 7 rows; due"),
    ({"trainable": {"b": np.s_[-8:]}}, ValueError, "`b` begins at row -8, .* due are -7 to 7"),
    ({"trainable": {"b": np.s_[:, 4:]}}, ValueError, "`b` begins at column 4, .* has 3 columns"),
    ({"trainable": {"b": np.s_[4:-4]}}, ValueError, "`trainable` of `b` is reversed.* has 7 rows"),
    ({"trainable": {"a": np.s_[:6]}}, ValueError, "of `a` ends at row 6, and `a` has 5 rows"),
    ({"trainable": {"b": sg.rows([0, 7])}}, ValueError, "`b` selects row 7, and `b` has 7 rows"),
    ({"trainable": {"b": sg.columns([12, 3])}}, ValueError, "selects column 3.*due are 0 to 2"),
    (
        {"trainable": {"bias": sg.rows([0])}, "bias": [0.0] * 3},
        ValueError,
        "`trainable` of `bias` selects rows of a vector; due is",
    ),
    (
        {"trainable": {"bias": np.s_[:4]}, "bias": [0.0] * 3},
        ValueError,
        "`trainable` of `bias` ends at column 4, and `bias` has 3 columns",
    ),
]


def made(option: Any) -> Any:
    if isinstance(option, dict):
        return {name: made(value) for name, value in option.items()}
    return option() if callable(option) else option


@in_both
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("index", range(len(STEERING)))
def test_wrong_steering_is_named(wrap: Any, recorded: bool, index: int) -> None:
    options, error, message = STEERING[index]

    def run() -> Any:
        a, b = ones(*A), ones(*B)
        with tf.GradientTape() as tape:
            tape.watch([a, b] if recorded else [])
            return sg.matmul(a, b, **{name: made(value) for name, value in options.items()})

    with pytest.raises(error, match=message):
        wrap(run)()


@in_both
def test_indexed_slices_want_a_matrix(wrap: Any) -> None:
    region = {"b": sg.rows([0], indexed_slices=True)}
    with pytest.raises(ValueError, match=r"`trainable` of `b` has `indexed_slices`.* rank 3; due"):
        wrap(call(A, (2, *B), trainable=region))()


REGIONS_AT_RUN_TIME = [
    np.s_[:8],
    np.s_[-8:],
    np.s_[:, 4:],
    np.s_[4:-4],
    sg.rows([0, 7]),
    sg.rows([7], indexed_slices=True),
    sg.columns([3]),
]


@pytest.mark.parametrize("region", REGIONS_AT_RUN_TIME, ids=str)
@pytest.mark.parametrize("kind", ["function", "session"])
def test_region_is_checked_when_the_shape_comes(kind: str, region: Any) -> None:
    def gradient(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(b)
            y = sg.matmul(a, b, trainable={"b": region})
        result = tape.gradient(y, b)
        return result.values if isinstance(result, tf.IndexedSlices) else result

    signature = [tf.TensorSpec(None, tf.float32)] * 2
    if kind == "function":
        run = tf.function(gradient, input_signature=signature)
        with pytest.raises(InvalidArgument, match=r"`trainable`.*`b`"):
            run(ones(*A), ones(*B))
        return
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        operands = [tf.compat.v1.placeholder(tf.float32) for _ in signature]
        result = gradient(*operands)
        with pytest.raises(InvalidArgument, match=r"`trainable`.*`b`"):
            session.run(result, {operands[0]: np.ones(A), operands[1]: np.ones(B)})


@in_both
@pytest.mark.parametrize(
    ("operands", "error", "message"),
    [
        (lambda: ("x", "y"), TypeError, "`a` has dtype string; due is one of float32"),
        (lambda: (ones(*A), [["x"]]), TypeError, "`b` has dtype string and `a` has float32"),
        (lambda: (ones(*A, dtype=tf.bool), ones(*B, dtype=tf.bool)), TypeError, "`a`.*bool; due"),
        (lambda: (ones(*A, dtype=tf.int8), ones(*B, dtype=tf.int8)), TypeError, "`a`.*int8; due"),
        (
            lambda: (ones(*A), ones(*B, dtype=tf.float64)),
            TypeError,
            "`b` has dtype float64 and `a` has float32; due is one dtype",
        ),
        (
            lambda: (ones(*A), ones(*B), ones(3, dtype=tf.float16)),
            TypeError,
            "`bias` has dtype float16 and `a` has float32; due is one dtype",
        ),
        (
            lambda: (np.ones(A), ones(*B)),
            TypeError,
            "`b` has dtype float32 and `a` has float64; due is one dtype",
        ),
    ],
)
def test_wrong_dtype_is_named(wrap: Any, operands: Any, error: Any, message: str) -> None:
    a, b, *bias = operands()
    with pytest.raises(error, match=message):
        wrap(lambda: sg.matmul(a, b, bias=bias[0] if bias else None))()


@in_both
@pytest.mark.parametrize("dtype", [tf.complex64, tf.complex128, tf.int32, tf.int64])
@pytest.mark.parametrize("activation", ["relu", tf.nn.gelu])
def test_activation_wants_real_numbers(wrap: Any, dtype: tf.DType, activation: Any) -> None:
    with pytest.raises(ValueError, match=f"`activation` .*real floating dtype.*{dtype.name}"):
        wrap(call(A, B, dtype=dtype, activation=activation))()


SHAPES: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (((7,), B), {}, r"`a` must have rank 2 or more.*\[7\]"),
    (((), B), {}, r"`a` must have rank 2 or more.*\[\]"),
    ((A, (7,)), {}, r"`b` must have rank 2 or more.*\[7\]"),
    (
        (A, (6, 3)),
        {},
        r"`b` must have as many rows as `a` has columns, 7, and has 6.*\[5,7\].*\[6,3",
    ),
    ((A, B), {"transpose_a": True}, r"columns, 5, and has 7: a is \[5,7\] \(transpose\)"),
    ((A, B), {"adjoint_b": True}, r"columns, 7, and has 3.*b is \[7,3\] \(adjoint\)"),
    (((2, 5, 7), (3, 7, 3)), {}, r"batch dimensions of `a` and `b` must be equal or 1.*\[2,5,7\]"),
    (((4, 2, 5, 7), (3, 7, 3)), {}, r"batch dimensions.*\[4,2,5,7\], b is \[3,7,3\]"),
    (((2, 5, 7), (0, 7, 3)), {}, r"batch dimensions.*\[2,5,7\], b is \[0,7,3\]"),
    ((A, B), {"bias": [1.0, 2.0]}, r"`bias` must have shape \[3\].*its shape is \[2\]"),
    ((A, B), {"bias": [1.0]}, r"`bias` must have shape \[3\].*its shape is \[1\]"),
    ((A, B), {"bias": 1.0}, r"`bias` must have shape \[3\].*its shape is \[\]"),
    ((A, B), {"bias": [[1.0, 2.0, 3.0]]}, r"`bias` must have shape \[3\].*its shape is \[1,3\]"),
]


def matches(message: str, error: BaseException) -> bool:
    # Shapes are written with and without spaces.
    return re.search(message, str(error).replace(", ", ",").replace("\n", " ")) is not None


def run_with_unknown_shapes(*operands: tf.Tensor, **options: Any) -> None:
    names = ["a", "b"]
    if "bias" in options:
        names.append("bias")
        operands = (*operands, tf.constant(options.pop("bias")))
    signature = [tf.TensorSpec(None, tf.float32)] * len(names)

    @tf.function(input_signature=signature)
    def run(*operands: Any) -> Any:
        return sg.matmul(**dict(zip(names, operands, strict=True)), **options)

    run(*operands)


@pytest.mark.parametrize(("shapes", "options", "message"), SHAPES)
@pytest.mark.parametrize("kind", ["eager", "function", "unknown_shapes", "graph"])
def test_shapes_that_do_not_fit_are_named(
    kind: str, shapes: Any, options: dict[str, Any], message: str
) -> None:
    due = InvalidArgument if kind in ("eager", "unknown_shapes") else ValueError
    with pytest.raises(due) as caught:  # noqa: PT012
        if kind == "eager":
            call(*shapes, **options)()
        elif kind == "function":
            tf.function(call(*shapes, **options))()
        elif kind == "unknown_shapes":
            run_with_unknown_shapes(*(ones(*shape) for shape in shapes), **options)
        else:
            with tf.Graph().as_default():
                call(*shapes, **options)()
    spaceless = message.replace(", ", ",")
    if kind in ("function", "graph"):
        spaceless = spaceless.replace(r" \(transpose\)", ".*").replace(r" \(adjoint\)", ".*")
    assert matches(spaceless, caught.value), str(caught.value)


@in_both
def test_call_after_an_error_works(wrap: Any) -> None:
    with pytest.raises((ValueError, InvalidArgument)):
        wrap(call(A, (6, 3)))()
    np.testing.assert_array_equal(wrap(call(A, B))(), np.full((5, 3), 7.0))


def test_error_leaves_the_tape_recording() -> None:
    w = tf.Variable(ones(*B))
    with tf.GradientTape() as tape:
        with pytest.raises(InvalidArgument):
            sg.matmul(ones(5, 6), w)
        y = sg.matmul(ones(*A), w)
    np.testing.assert_array_equal(tape.gradient(y, w), np.full(B, 5.0))


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        sg.matmul(ones(*A), ones(*B), True)


@pytest.mark.parametrize(
    ("right", "wrong"), [({"b": 1}, {"b": True}), (1, True), ({"a": 0.0}, {"a": False})]
)
def test_what_is_wrong_stays_wrong_after_a_right_call(right: Any, wrong: Any) -> None:
    a = tf.ones((2, 2))
    sg.matmul(a, a, gradient_scale=right)
    with pytest.raises(TypeError, match="due is a real number"):
        sg.matmul(a, a, gradient_scale=wrong)
