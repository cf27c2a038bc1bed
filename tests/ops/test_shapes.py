"""Partial shapes: what is known before anything runs, and that the rest is right when it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import stopgrad_op as sg
from stopgrad_op._library import load_ops

v1 = tf.compat.v1
_ = None

FORWARD: list[tuple[Any, Any, Any, dict[str, Any], Any]] = [
    # a, b, bias, options, y
    ([5, 7], [7, 3], False, {}, [5, 3]),
    ([_, 7], [7, 3], False, {}, [_, 3]),
    ([5, _], [7, 3], False, {}, [5, 3]),
    ([_, _], [_, _], False, {}, [_, _]),
    (_, [7, 3], False, {}, _),
    ([5, 7], _, False, {}, _),
    (_, _, False, {}, _),
    ([_, 7], [7, _], [3], {}, [_, 3]),
    ([_, 7], [7, _], [_], {}, [_, _]),
    ([_, 7], [7, 3], _, {}, [_, 3]),
    ([7, _], [7, 3], False, {"transpose_a": True}, [_, 3]),
    ([7, 5], [3, _], False, {"adjoint_a": True, "transpose_b": True}, [5, 3]),
    ([2, _, 5, 7], [7, 3], False, {}, [2, _, 5, 3]),
    ([2, _, 5, 7], [4, 7, 3], False, {}, [2, 4, 5, 3]),
    ([_, 1, 5, 7], [6, 1, 7, 3], False, {}, [6, 1, 5, 3]),
    ([_, 5, 7], [_, 7, 3], False, {}, [_, 5, 3]),
    ([_, 5, 7], [1, 7, 3], False, {}, [_, 5, 3]),
    ([0, 7], [7, _], False, {}, [0, _]),
]


def as_list(shape: tf.TensorShape) -> Any:
    return None if shape.rank is None else shape.as_list()


@pytest.mark.parametrize(("a", "b", "bias", "options", "y"), FORWARD)
def test_shape_of_the_result_is_known_as_far_as_it_can_be(
    a: Any, b: Any, bias: Any, options: dict[str, Any], y: Any
) -> None:
    with tf.Graph().as_default():
        x = {
            "a": v1.placeholder(tf.float32, a),
            "b": v1.placeholder(tf.float32, b),
            "bias": None if bias is False else v1.placeholder(tf.float32, bias),
        }
        assert as_list(sg.matmul(**x, **options).shape) == y
        # The pre-activation, which backward reads, has the same one.
        result = sg.matmul(**x, activation="gelu", **options)
        assert [as_list(output.shape) for output in result.op.outputs] == [y, y]


@pytest.mark.parametrize(("a", "b", "bias", "options", "y"), FORWARD)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_gradient_has_the_static_shape_of_its_operand(
    a: Any, b: Any, bias: Any, options: dict[str, Any], y: Any, activation: str | None
) -> None:
    del y
    with tf.Graph().as_default():
        operands = [v1.placeholder(tf.float32, shape) for shape in (a, b)]
        if bias is not False:
            operands.append(v1.placeholder(tf.float32, bias))
        result = sg.matmul(
            operands[0],
            operands[1],
            bias=operands[2] if len(operands) == 3 else None,
            activation=activation,
            **options,
        )
        for operand, gradient in zip(operands, tf.gradients(result, operands), strict=True):
            known = as_list(operand.shape)
            inferred = as_list(gradient.shape)
            if known is None or inferred is None:
                continue
            assert len(known) == len(inferred)
            # More may be known of the gradient: of a [5, None] @ [7, 3], that a has 7 columns.
            for due, extent in zip(known, inferred, strict=True):
                assert due is None or extent in (due, None)


@pytest.mark.parametrize(
    ("operands", "shapes"),
    [
        (([_, 7], [7, 3]), ([_, 7], [7, 3])),
        (([5, _], [7, 3]), ([5, 7], [7, 3])),
        (([_, 2, 5, 7], [7, 3]), ([_, 2, 5, 7], [7, 3])),
        (([2, 5, 7], [3, 1, 7, 4]), ([2, 5, 7], [3, 1, 7, 4])),
    ],
)
def test_gradients_shapes_are_inferred_where_the_operands_are_known(
    operands: Any, shapes: Any
) -> None:
    with tf.Graph().as_default():
        a, b = (v1.placeholder(tf.float32, shape) for shape in operands)
        gradients = tf.gradients(sg.matmul(a, b), [a, b])
        assert tuple(as_list(gradient.shape) for gradient in gradients) == shapes


@pytest.mark.parametrize("rank_known", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 7), (7, 3)),
        ((2, 5, 7), (7, 3)),
        ((5, 7), (2, 7, 3)),
        ((2, 1, 5, 7), (4, 7, 3)),
        ((0, 7), (7, 3)),
        ((5, 0), (0, 3)),
        ((1, 1), (1, 1)),
        ((0, 5, 7), (7, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["function", "graph"])
def test_unknown_shapes_give_the_same_numbers(
    kind: str, a: Any, b: Any, activation: str | None, rank_known: bool
) -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape) for shape in (a, b, b[-1:])]
    unknown = [[None] * x.ndim if rank_known else None for x in arrays]

    def compute(a: Any, b: Any, bias: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch([a, b, bias])
            y = sg.matmul(a, b, bias=bias, activation=activation)
        return [y, *tape.gradient(y, [a, b, bias])]

    due = [x.numpy() for x in compute(*map(tf.constant, arrays))]
    if kind == "function":
        signature = [tf.TensorSpec(shape, tf.float64) for shape in unknown]
        values = [x.numpy() for x in tf.function(compute, input_signature=signature)(*arrays)]
    else:
        with tf.Graph().as_default(), v1.Session() as session:
            operands = [v1.placeholder(tf.float64, shape) for shape in unknown]
            y = sg.matmul(operands[0], operands[1], bias=operands[2], activation=activation)
            values = session.run(
                [y, *tf.gradients(y, operands)], dict(zip(operands, arrays, strict=True))
            )
    for value, exact in zip(values, due, strict=True):
        assert value.shape == exact.shape
        np.testing.assert_allclose(value, exact, rtol=1e-12)


def gradient_op(dy: Any, a: Any, b: Any, **options: Any) -> Any:
    def given(shape: Any) -> list[tf.Tensor]:
        return [] if shape is False else [v1.placeholder(tf.float32, shape)]

    return load_ops().stopgrad_op_fused_mat_mul_grad(
        dy=v1.placeholder(tf.float32, dy),
        a=given(a),
        b=given(b),
        saved=[],
        scales=[],
        rows=[],
        indices=[],
        num_needed=len(options["needed"]),
        **{"shape_a": [], "shape_b": [], **options},
    )


@pytest.mark.parametrize(
    ("dy", "a", "b", "options", "shapes"),
    [
        (
            [5, 3],
            [5, 7],
            [7, 3],
            {"needed": ["a", "b", "bias", "z"]},
            [[5, 7], [7, 3], [3], [5, 3]],
        ),
        ([5, 3], False, [7, 3], {"needed": ["a"]}, [[5, 7]]),
        ([5, 3], False, [7, 3], {"needed": ["a"], "layout_a": "transpose"}, [[7, 5]]),
        ([5, 3], False, [3, 7], {"needed": ["a"], "layout_b": "adjoint"}, [[5, 7]]),
        ([5, 3], [5, 7], False, {"needed": ["b"]}, [[7, 3]]),
        ([5, 3], [7, 5], False, {"needed": ["b"], "layout_a": "adjoint"}, [[7, 3]]),
        ([5, 3], [5, 7], False, {"needed": ["b"], "layout_b": "transpose"}, [[3, 7]]),
        ([_, _], [_, 7], False, {"needed": ["b"]}, [[7, _]]),
        (_, False, False, {"needed": ["bias", "z"]}, [[_], _]),
        ([_, 5, 3], False, False, {"needed": ["z", "bias"]}, [[_, 5, 3], [3]]),
        # A batch of dy that a matrix cannot have given came from the other operand.
        ([_, 5, 3], False, [7, 3], {"needed": ["a"]}, [[_, 5, 7]]),
        ([2, 5, 3], [5, 7], False, {"needed": ["b"]}, [[2, 7, 3]]),
        ([2, 5, 3], False, [2, 7, 3], {"needed": ["a"]}, [[5, 7]]),
        (_, False, _, {"needed": ["a"]}, [_]),
    ],
)
def test_shapes_of_the_gradient_op(
    dy: Any, a: Any, b: Any, options: dict[str, Any], shapes: list[Any]
) -> None:
    with tf.Graph().as_default():
        results = gradient_op(dy, a, b, **options)
        assert [as_list(result.shape) for result in results] == shapes


def test_gradient_op_reads_static_shapes_from_its_shape_inputs() -> None:
    with tf.Graph().as_default():
        batch = v1.placeholder(tf.int64, [])
        shape = tf.stack([batch, 1, tf.constant(7, tf.int64), tf.constant(3, tf.int64)])
        (db,) = gradient_op(_, [_, 5, 7], False, needed=["b"], shape_b=[shape])
        assert as_list(db.shape) == [_, 1, 7, 3]
