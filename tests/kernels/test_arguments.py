"""What is wrong with an argument is said by name, with what came and what is due."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stopgrad_op import _kernels

A = np.ones((5, 7), np.float32)
B = np.ones((7, 3), np.float32)
DY = np.ones((5, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((A.astype(bool), B), {}, TypeError, "`a` has dtype bool; due is one of float32"),
        ((A.astype(np.uint8), B), {}, TypeError, "`a` has dtype uint8; due is one of float32"),
        ((np.array([["x"]]), B), {}, TypeError, "`a` has dtype str"),
        ((A, B.astype(np.float64)), {}, TypeError, "`b` has dtype float64; due is float32"),
        ((A, B, np.ones(3)), {}, TypeError, "`bias` has dtype float64; due is float32"),
        ((A[0], B), {}, ValueError, r"`a` must have rank 2 or more.*\[7\]"),
        ((A, np.array(1, np.float32)), {}, ValueError, r"`b` must have rank 2 or more.*\[\]"),
        ((A, B[1:]), {}, ValueError, r"`b` must have as many rows.*7.*6"),
        ((A, B, B[0, :2]), {}, ValueError, r"`bias` must have shape \[3\].*\[2\]"),
        ((A, B, B), {}, ValueError, r"`bias` must have shape \[3\].*\[7, 3\]"),
        ((A, B, np.array(1, np.float32)), {}, ValueError, r"`bias` must have shape \[3\].*\[\]"),
        ((A, B), {"layout_a": "T"}, ValueError, '`layout_a` is "T"; due is "normal"'),
        ((A, B), {"layout_b": ""}, ValueError, '`layout_b` is ""; due is "normal"'),
        ((A, B), {"activation": "rleu"}, ValueError, '`activation` "rleu" is unknown'),
        ((A, B), {"threads": 0}, ValueError, "`threads` must be from 1 to 256 and is 0"),
        ((A, B), {"threads": -3}, ValueError, "`threads` must be from 1 to 256 and is -3"),
        (
            (A.astype(np.complex64), B.astype(np.complex64)),
            {"activation": "relu"},
            ValueError,
            '`activation` "relu" needs a real floating dtype; the arrays are complex64',
        ),
        (
            (A.astype(np.int32), B.astype(np.int32)),
            {"activation": "relu"},
            ValueError,
            "the arrays are int32",
        ),
        ((A,), {}, TypeError, "incompatible function arguments"),
        ((A, B), {"bais": None}, TypeError, "unexpected keyword argument `bais`"),
    ],
)
def test_bad_forward_arguments_are_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _kernels.matmul(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((DY,), {"needed": ["a"]}, ValueError, "gradient of `a` needs `b`"),
        ((DY, A), {"needed": ["a", "b"]}, ValueError, "gradient of `a` needs `b`"),
        ((DY, None, B), {"needed": ["b"]}, ValueError, "gradient of `b` needs `a`"),
        ((DY, A), {"needed": ["w"]}, ValueError, '`needed` has "w"; due are'),
        ((DY,), {"needed": ["bias"], "scales": {"y": 1.0}}, ValueError, '`scales` has "y"'),
        (
            (DY,),
            {"needed": ["z"], "activation": "relu"},
            ValueError,
            r"`saved` must have the shape of `dy`, \[5, 3\], and is missing",
        ),
        (
            (DY, None, None, DY[1:]),
            {"needed": ["z"], "activation": "relu"},
            ValueError,
            r"`saved` must have the shape of `dy`, \[5, 3\]; its shape is \[4, 3\]",
        ),
        (
            (DY, None, None, DY.astype(np.float16)),
            {"needed": ["z"], "activation": "relu"},
            TypeError,
            "`saved` has dtype float16; due is float32",
        ),
        ((DY[0],), {"needed": ["bias"]}, ValueError, r"`dy` must have rank 2 or more.*\[3\]"),
        (
            (np.array(1, np.float32),),
            {"needed": ["z"]},
            ValueError,
            r"`dy` must have rank 2 or more.*\[\]",
        ),
        ((DY[1:], A), {"needed": ["b"]}, ValueError, r"`dy` must have the shape.*\[5, 3\].*\[4, 3"),
        ((DY, A[0]), {"needed": ["b"]}, ValueError, "`a` must have rank 2 or more"),
        ((DY, None, B[:, :1]), {"needed": ["a"]}, ValueError, "`dy` must have the shape"),
        (
            (DY, A),
            {"needed": ["b"], "b_shape": (6, 3)},
            ValueError,
            "`b` must have as many rows",
        ),
        ((DY, A), {"needed": ["b"], "b_shape": (-7, 3)}, ValueError, "`b` must have as many rows"),
        ((DY, A), {"needed": ["b"], "b_shape": (3,)}, ValueError, "`b` must have rank 2 or more"),
        ((DY, A), {"needed": ["b"], "b_shape": (2, 7, 3)}, ValueError, "`dy` must have the shape"),
        ((DY, A), {"needed": ["b"], "b_shape": (2**40, 7, 3)}, ValueError, "`dy` must have"),
        ((DY.astype(np.int32),), {"needed": ["bias"]}, TypeError, "`dy` is an integer array"),
        ((DY,), {"needed": ["bias"], "threads": 0}, ValueError, "`threads` must be from 1 to 256"),
        ((DY, A), {"needed": ["b"], "layout_a": "x"}, ValueError, '`layout_a` is "x"'),
        ((DY, A), {"needed": ["b"], "activation": "x"}, ValueError, '`activation` "x"'),
    ],
)
def test_bad_gradient_arguments_are_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _kernels.matmul_gradient(*arguments, **options)


def test_nothing_needed_gives_nothing() -> None:
    assert _kernels.matmul_gradient(DY, needed=[]) == {}


def test_sizes_that_no_memory_holds_are_an_error() -> None:
    columns = np.ones((2**31, 0), np.float32)
    with pytest.raises((ValueError, MemoryError)):
        _kernels.matmul(columns, np.ones((0, 2**33), np.float32))


def test_operands_are_not_written() -> None:
    a, b, bias, dy = (np.full(shape, 0.5) for shape in ((5, 7), (7, 3), (3,), (5, 3)))
    for array in (a, b, bias, dy):
        array.setflags(write=False)
    y = _kernels.matmul(a, b, bias, activation="gelu")
    assert y.flags.writeable
    _kernels.matmul_gradient(dy, a, b, dy, needed=["a", "b", "bias", "z"], activation="gelu")
    for array in (a, b, bias, dy):
        assert np.all(array == 0.5)
