"""The ops called past the Python checks: whatever comes, an error and never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from stopgrad_op._library import load_ops

ops = load_ops()
# An AssertionError comes from the generated functions, in a graph, for a list of the wrong dtype.
Rejected = (
    ValueError,
    TypeError,
    AssertionError,
    tf.errors.InvalidArgumentError,
    tf.errors.ResourceExhaustedError,
)


# Autograph would rewrite the generated functions, and turn their errors into others.
in_both = pytest.mark.parametrize(
    "wrap", [lambda f: f, tf.function(autograph=False)], ids=["eager", "function"]
)


def ones(*shape: int, dtype: Any = tf.float32) -> tf.Tensor:
    return tf.ones(shape, dtype)


def sizes(*extents: int) -> list[tf.Tensor]:
    return [tf.constant(extents, tf.int64)]


def forward(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "a": ones(5, 7),
        "b": ones(7, 3),
        "bias": [],
        "scales": [],
        "rows": [],
        "indices": [],
    }
    return ops.stopgrad_op_fused_mat_mul(**{**arguments, **changes})


def backward(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "dy": ones(5, 3),
        "a": [ones(5, 7)],
        "b": [ones(7, 3)],
        "saved": [],
        "shape_a": [],
        "shape_b": [],
        "scales": [],
        "rows": [],
        "indices": [],
        "needed": ["a", "b", "bias", "z"],
    }
    arguments.update(changes)
    arguments.setdefault("num_needed", len(arguments["needed"]))
    return ops.stopgrad_op_fused_mat_mul_grad(**arguments)


def test_the_calls_that_the_others_change_are_right() -> None:
    y, z = forward(num_z=1, bias=[ones(3)], activation="relu")
    np.testing.assert_array_equal(y, np.full((5, 3), 8.0))
    np.testing.assert_array_equal(z[0], np.full((5, 3), 8.0))
    da, db, dbias, dz = backward()
    np.testing.assert_array_equal(da, np.full((5, 7), 3.0))
    np.testing.assert_array_equal(db, np.full((7, 3), 5.0))
    np.testing.assert_array_equal(dbias, np.full(3, 5.0))
    np.testing.assert_array_equal(dz, np.ones((5, 3)))


one_scale = [tf.constant(0.5, tf.float64)]


def indices(*values: int, dtype: Any = tf.int64) -> tf.Tensor:
    return tf.constant(values, dtype)


# What neither op takes, and Python would not send.
BAD_STEERING: list[dict[str, Any]] = [
    {"rows": [ones(5)] * 2},
    {"rows": [ones(5, dtype=tf.int32)]},
    {"rows": [ones(5, dtype=tf.complex64)]},
    {"sliced": ["b_rows"]},
    {"slices": [0, 1, 1]},
    {"sliced": ["b_rows"], "slices": [0, 1]},
    {"sliced": ["b_rows"], "slices": [0, 1, 1, 0, 1, 1]},
    {"sliced": ["b_rows", "b_rows"], "slices": [0, 1, 1, 0, 1, 1]},
    {"sliced": ["c_rows"], "slices": [0, 1, 1]},
    {"sliced": ["b"], "slices": [0, 1, 1]},
    {"sliced": ["bias_rows"], "slices": [0, 1, 1]},
    {"sliced": [""], "slices": [0, 1, 1]},
    {"sliced": ["b_rows"], "slices": [0, 1, 0]},
    {"sliced": ["b_rows"], "slices": [0, 1, -1]},
    {"sliced": ["b_rows"], "slices": [0, 1, -(2**63)]},
    {"indexed": ["b_rows"]},
    {"indices": [indices(0, 1)]},
    {"indexed": ["b_rows"], "indices": [indices(0), indices(1)]},
    {"indexed": ["b_rows", "b_rows"], "indices": [indices(0), indices(1)]},
    {"indexed": ["x_columns"], "indices": [indices(0)]},
    {"indexed": ["b_rows"], "indices": [indices(0, dtype=tf.int32)]},
    {
        "indexed": ["b_rows"],
        "indices": [indices(0)],
        "sliced": ["b_rows"],
        "slices": [0, 1, 1],
    },
    {"indexed_slices": ["bias"]},
]

BAD_FORWARD: list[dict[str, Any]] = [
    {"a": ones(7)},
    {"a": ones()},
    {"b": ones(7)},
    {"b": ones()},
    {"b": ones(6, 3)},
    {"b": ones(7, 3, dtype=tf.float64)},
    {"a": ones(2, 5, 7), "b": ones(3, 7, 3)},
    {"bias": [ones(2)]},
    {"bias": [ones()]},
    {"bias": [ones(1, 3)]},
    {"bias": [ones(3), ones(3)]},
    {"bias": [ones(3, dtype=tf.float64)]},
    {"layout_a": "transpose"},
    {"layout_b": "adjoint"},
    {"layout_a": "T"},
    {"layout_b": ""},
    {"activation": "rleu"},
    {"activation": "relu", "a": ones(5, 7, dtype=tf.int32), "b": ones(7, 3, dtype=tf.int32)},
    {
        "activation": "gelu",
        "a": ones(5, 7, dtype=tf.complex64),
        "b": ones(7, 3, dtype=tf.complex64),
    },
    {"scaled": ["a"]},
    {"scales": one_scale},
    {"scales": one_scale, "scaled": ["z"]},
    {"scales": one_scale * 2, "scaled": ["a", "a"]},
    {"scales": [tf.constant(1.0)], "scaled": ["a"]},
    {"blocked": ["z"]},
    {"num_z": -1},
    {"num_z": 2},
    # More elements than any tensor can have.
    {"a": ones(2**40, 0), "b": ones(0, 2**40)},
    *BAD_STEERING,
]

BAD_BACKWARD: list[dict[str, Any]] = [
    {"dy": ones(3)},
    {"dy": ones()},
    {"dy": ones(4, 3)},
    {"dy": ones(5, 2)},
    {"dy": ones(1, 5, 3)},
    {"dy": ones(5, 3, dtype=tf.int32), "a": [], "b": [], "needed": ["bias"]},
    {"a": []},
    {"b": []},
    {"a": [], "b": []},
    {"a": [ones(5, 7)] * 2},
    {"b": [ones(7, 3)] * 2},
    {"a": [ones(7)], "needed": ["b"]},
    {"a": [ones()], "needed": ["b"]},
    {"b": [ones()], "needed": ["a"]},
    {"b": [ones(7)], "needed": ["a"]},
    {"a": [ones()], "b": [], "needed": ["b"]},
    {"a": [], "b": [ones()], "needed": ["a"]},
    {"a": [ones()]},
    {"b": [ones()]},
    {"a": [ones(4, 7)]},
    {"b": [ones(6, 3)]},
    {"b": [ones(7, 4)]},
    {"a": [ones(5, 7, dtype=tf.float64)]},
    {"saved": [ones(5, 3)] * 2, "activation": "relu"},
    {"activation": "relu"},
    {"activation": "relu", "saved": [ones(5, 2)]},
    {"activation": "relu", "saved": [ones(15)]},
    {"activation": "relu", "saved": [ones()]},
    {"activation": "gelu", "saved": [ones(1, 5, 3)]},
    {"activation": "relu", "dy": ones(5, 3, dtype=tf.complex64), "needed": ["z"], "a": [], "b": []},
    {"activation": "x"},
    {"layout_a": "transpose"},
    {"layout_b": "transpose"},
    {"layout_a": "x"},
    {"needed": []},
    {"needed": ["a", "a"]},
    {"needed": ["y"]},
    {"needed": ["a"], "num_needed": 2},
    {"needed": ["a", "b"], "num_needed": 1},
    {"needed": ["a"], "num_needed": 0},
    {"needed": ["a"], "num_needed": -1},
    {"scaled": ["a"]},
    {"scales": one_scale},
    {"scales": one_scale, "scaled": ["z"]},
    {"scales": one_scale * 2, "scaled": ["a", "a"]},
    {"scales": [tf.constant([0.5, 0.5], tf.float64)], "scaled": ["a"]},
    {"scales": [tf.constant([], tf.float64)], "scaled": ["a"]},
    # Shapes that lie.
    {"a": [], "needed": ["a"], "shape_a": sizes(6, 7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(5, 8)},
    {"a": [], "needed": ["a"], "shape_a": sizes(7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(1, 5, 7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(0, 5, 7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(-5, 7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(-1, 5, 7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(2**40, 7)},
    {"a": [], "needed": ["a"], "shape_a": sizes(5, 2**62)},
    {"a": [], "needed": ["a"], "shape_a": sizes(2**31, 2**33, 5, 7)},
    {"a": [], "needed": ["a"], "shape_a": [tf.constant([[5, 7]], tf.int64)]},
    {"a": [], "needed": ["a"], "shape_a": [tf.constant(5, tf.int64)]},
    {"a": [], "needed": ["a"], "shape_a": sizes(5, 7) * 2},
    {"a": [], "needed": ["a"], "shape_a": [tf.constant([5, 7], tf.int32)]},
    {"b": [], "needed": ["b"], "shape_b": sizes(7, 4)},
    {"b": [], "needed": ["b"], "shape_b": sizes(-7, 3)},
    {"b": [], "needed": ["b"], "shape_b": sizes(2, 7, 3)},
    {"b": [], "needed": ["b"], "shape_b": sizes(3)},
    # A shape beside the tensor itself.
    {"dy": ones(1000, 3), "shape_a": sizes(1000, 1000), "b": [], "needed": ["b"]},
    {"dy": ones(5, 1000), "shape_b": sizes(7, 1000), "a": [], "needed": ["a"]},
    {"dy": ones(9, 5, 3), "shape_a": sizes(9, 5, 7), "needed": ["b"]},
    *BAD_STEERING,
    {"rows": [ones(4)]},
    {"rows": [ones(0)]},
    {"rows": [ones(1, 5)]},
    {"rows": [ones(5, 1)]},
    {"rows": [ones(5, 3)]},
    {"rows": [tf.constant([1.0, np.nan, 0.0, 0.0, 0.0])]},
    {"rows": [tf.constant(np.nan, tf.float16)]},
    {"rows": [ones(4)], "needed": ["bias"], "a": [], "b": []},
    # b has 7 rows and 3 columns.
    *(
        {"sliced": ["b_rows"], "slices": slices}
        for slices in (
            [0, 8, 1],
            [-8, 7, 1],
            [8, 8, 1],
            [0, -8, 1],
            [3, 2, 1],
            [-1, -2, 1],
            [2**62, 2**62, 1],
            [-(2**63), 1, 1],
            [2**63 - 1, 2**63 - 1, 1],
            [0, 2**63 - 2, 1],
        )
    ),
    {"sliced": ["b_columns"], "slices": [0, 4, 1]},
    {"sliced": ["a_rows"], "slices": [0, 6, 1]},
    {"sliced": ["bias"], "slices": [0, 4, 1]},
    {"sliced": ["bias"], "slices": [0, 4, 1], "needed": ["bias"], "a": [], "b": []},
    *(
        {"indexed": ["b_rows"], "indices": [indices(*values)], "indexed_slices": compact}
        for values in ([7], [-1], [0, 0], [1, 0], [0, 2**62], [-(2**63)], [2**63 - 1], [3, 3, 4])
        for compact in ([], ["b"])
    ),
    {"indexed": ["b_columns"], "indices": [indices(3)]},
    {"indexed": ["bias"], "indices": [indices(0, 3)]},
    {"indexed": ["b_rows"], "indices": [tf.constant(0, tf.int64)]},
    {"indexed": ["b_rows"], "indices": [tf.constant([[0]], tf.int64)]},
    {
        "dy": ones(2, 5, 3),
        "b": [ones(2, 7, 3)],
        "indexed": ["b_rows"],
        "indices": [indices(0)],
        "indexed_slices": ["b"],
    },
    # A result with more elements than any tensor can have.
    {"dy": ones(2**40, 0), "a": [], "b": [ones(2**40, 0)], "needed": ["a"]},
]


def eager(*operands: Any, results: Any = (tf.float32,), **attributes: Any) -> Any:
    return ops.stopgrad_op_fused_mat_mul_eager(
        operands=operands, result_types=results, **attributes
    )


def handle(*shape: int, dtype: Any = tf.float32) -> Any:
    variable = tf.Variable(ones(*shape, dtype=dtype))
    kept_alive.append(variable)
    return variable.handle


kept_alive: list[tf.Variable] = []
two, three = (tf.float32,) * 2, (tf.float32,) * 3


def test_eager_op_returns_what_is_asked_for() -> None:
    for a, b, results in (
        (ones(5, 7), ones(7, 3), [(5, 3)]),
        (ones(5, 7), ones(7, 3), [(5, 3), (5, 3)]),
        (ones(5, 7), handle(7, 3), [(5, 3)]),
        (ones(5, 7), handle(7, 3), [(5, 3), (7, 3)]),
        (handle(5, 7), handle(7, 3), [(5, 3), (5, 7), (7, 3)]),
        (handle(5, 7), handle(7, 3), [(5, 3), (5, 7), (7, 3), (5, 3)]),
    ):
        y, *others = eager(a, b, results=[tf.float32] * len(results), activation="relu")
        assert [x.shape for x in (y, *others)] == results
        np.testing.assert_array_equal(y, np.full((5, 3), 7.0))


def two_handles() -> tf.Tensor:
    with tf.device("/CPU:0"):  # where alone they can be stacked
        return tf.stack([handle(7, 3)] * 2)


BAD_EAGER: list[Callable[[], tuple[list[Any], dict[str, Any]]]] = [
    lambda: ([ones(5, 7)], {}),
    lambda: ([ones(5, 7), ones(7, 3), ones(3), ones(3)], {}),
    lambda: ([ones(5, 7), ones(6, 3)], {}),
    lambda: ([ones(7), ones(7, 3)], {}),
    lambda: ([ones(5, 7), ones(7, 3), ones(2)], {}),
    lambda: ([ones(5, 7), ones(7, 3, dtype=tf.float64)], {}),
    lambda: ([ones(5, 7), ones(7, 3)], {"results": (tf.float64,)}),
    lambda: ([ones(5, 7), ones(7, 3)], {"results": ()}),
    lambda: ([ones(5, 7), ones(7, 3)], {"results": (tf.float32, tf.float64)}),
    lambda: ([ones(5, 7), ones(7, 3)], {"results": three}),
    lambda: ([ones(5, 7), ones(7, 3)], {"layout_a": "transpose"}),
    lambda: ([ones(5, 7), ones(7, 3)], {"activation": "rleu"}),
    lambda: ([ones(5, 7, dtype=tf.int8), ones(7, 3, dtype=tf.int8)], {"results": (tf.int8,)}),
    lambda: ([ones(5, 7, dtype=tf.bool), ones(7, 3, dtype=tf.bool)], {"results": (tf.bool,)}),
    lambda: (
        [ones(5, 7, dtype=tf.int32), ones(7, 3, dtype=tf.int32)],
        {"results": (tf.int32,), "activation": "relu"},
    ),
    lambda: ([ones(5, 7), handle(6, 3)], {}),
    lambda: ([handle(7), handle(7, 3)], {}),
    lambda: ([ones(5, 7), handle(7, 3, dtype=tf.float64)], {}),
    lambda: ([handle(5, 7, dtype=tf.float64), handle(7, 3, dtype=tf.float64)], {"results": two}),
    lambda: ([handle(5, 7), handle(7, 3)], {"results": two}),
    lambda: ([ones(5, 7), handle(7, 3)], {"results": (tf.float32,) * 4}),
    lambda: ([ones(5, 7), two_handles()], {}),
    lambda: ([ones(5, 7), two_handles()[:0]], {}),
    # No variables: one that does not exist, and another resource.
    lambda: (
        [ones(5, 7), tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=(7, 3), shared_name="no")],
        {},
    ),
    lambda: ([ones(5, 7), tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)], {}),
]


@pytest.mark.parametrize("index", range(len(BAD_EAGER)))
@in_both
def test_eager_op_rejects(wrap: Any, index: int) -> None:
    operands, options = BAD_EAGER[index]()
    operands = [getattr(x, "resource_handle", x) for x in operands]
    with pytest.raises((*Rejected, tf.errors.FailedPreconditionError, tf.errors.NotFoundError)):
        wrap(lambda: eager(*operands, **options))()


@pytest.mark.parametrize("index", range(len(BAD_FORWARD)))
@in_both
def test_forward_op_rejects(wrap: Any, index: int) -> None:
    with pytest.raises(Rejected):
        wrap(lambda: forward(**BAD_FORWARD[index]))()


@pytest.mark.parametrize("index", range(len(BAD_BACKWARD)))
@in_both
def test_gradient_op_rejects(wrap: Any, index: int) -> None:
    with pytest.raises(Rejected):
        wrap(lambda: backward(**BAD_BACKWARD[index]))()


@pytest.mark.parametrize("index", range(len(BAD_BACKWARD)))
def test_gradient_op_rejects_what_comes_when_it_runs(index: int) -> None:
    """The same with inputs of unknown shape, so that the kernel is asked and not the inference."""
    changes = dict(BAD_BACKWARD[index])
    tensors = {
        name: value
        for name, value in changes.items()
        if name in ("dy", "a", "b", "saved", "shape_a", "shape_b", "scales", "rows", "indices")
    }
    for name in tensors:
        del changes[name]

    def hide(x: tf.Tensor) -> tf.Tensor:
        return tf.compat.v1.placeholder_with_default(x, None)

    @tf.function(autograph=False)
    def run() -> Any:
        hidden = {
            name: hide(value) if name == "dy" else [hide(x) for x in value]
            for name, value in tensors.items()
        }
        usual = {
            "dy": hide(ones(5, 3)),
            "a": [hide(ones(5, 7))],
            "b": [hide(ones(7, 3))],
        }
        return backward(**{**usual, **hidden, **changes})

    with pytest.raises(Rejected):
        run()


@pytest.mark.parametrize("dtype", [tf.string, tf.bool, tf.uint8, tf.int16, tf.qint8])
def test_ops_take_no_other_dtypes(dtype: tf.DType) -> None:
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(dtype, [3, 3])
        with pytest.raises(TypeError):
            forward(a=x, b=x)
        with pytest.raises(TypeError):
            backward(dy=x, a=[x], b=[x])


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_gradient_op_takes_no_integers(dtype: tf.DType) -> None:
    x = ones(3, 3, dtype=dtype)
    with pytest.raises(Rejected):
        backward(dy=x, a=[x], b=[x])


def test_scale_that_is_not_finite_reaches_the_gradient() -> None:
    scale = [tf.constant(np.nan, tf.float64)]
    da, db, *_ = backward(scales=scale, scaled=["a"])
    assert np.all(np.isnan(da))
    np.testing.assert_array_equal(db, np.full((7, 3), 5.0))


def test_any_call_ends_in_a_result_or_an_error() -> None:
    """Random attributes and shapes, in a process of its own, which has to survive them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Freed and fresh memory is filled, so that what is read outside a buffer is seen.
    environment.update(MALLOC_PERTURB_="165", TF_CPP_MIN_LOG_LEVEL="3")
    fuzz = Path(__file__).with_name("fuzz_raw_ops.py")
    process = subprocess.run(
        [sys.executable, str(fuzz), "3000"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    accepted, rejected = map(int, process.stdout.split()[-2:])
    # Random calls that are all wrong, or all right, would show nothing.
    assert accepted > 200
    assert rejected > 200
