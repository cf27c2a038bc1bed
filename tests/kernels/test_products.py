"""Products of every dtype, layout and size, forward and backward, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from checks import check_forward, check_gradients
from reference import COMPLEX, FLOATING, INTEGERS, LAYOUTS, Problem

from stopgrad_op import _kernels

GRADIENT_DTYPES = (*FLOATING, *COMPLEX)
every_dtype = pytest.mark.parametrize("dtype", (*GRADIENT_DTYPES, *INTEGERS), indirect=True)
every_gradient_dtype = pytest.mark.parametrize("dtype", GRADIENT_DTYPES, indirect=True)

# The shapes of a and b as they are read.
MATRICES = [
    ((1, 1), (1, 1)),
    ((1, 7), (7, 1)),
    ((7, 1), (1, 5)),
    ((1, 13), (13, 29)),
    ((17, 13), (13, 1)),
    ((31, 5), (5, 5)),
    ((67, 101), (101, 37)),
]
EMPTY = [
    ((0, 3), (3, 4)),
    ((3, 4), (4, 0)),
    ((0, 0), (0, 0)),
    ((3, 0), (0, 4)),  # k = 0: a product of zeros
    ((2, 3, 0), (0, 4)),
    ((0, 3, 2), (2, 4)),
    ((3, 2), (0, 2, 4)),
    ((2, 0, 3, 2), (2, 1, 2, 4)),
    ((2, 1, 3, 2), (0, 2, 4)),
]
BATCHES = [
    ((11, 5, 7), (7, 3)),
    ((5, 7), (11, 7, 3)),
    ((11, 5, 7), (11, 7, 3)),
    ((1, 7), (11, 7, 3)),  # one row: the columns of y follow each other across the batch
    ((2, 1, 31, 5), (5, 5)),  # where stock TensorFlow's oneDNN is wrong
    ((2, 1, 5, 7), (3, 7, 2)),
    ((4, 1, 3, 6), (5, 6, 2)),
    ((1, 3, 5, 2), (4, 1, 2, 3)),
    ((3, 1, 2), (3, 2, 1)),
    ((2, 3, 4, 5), (2, 3, 5, 6)),
    ((1, 1, 5, 7), (7, 3)),
    ((2, 3, 1, 5, 7), (3, 4, 7, 2)),
]


@every_dtype
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("layout_a", LAYOUTS)
def test_product_in_every_layout(
    rng: np.random.Generator, dtype: str, layout_a: str, layout_b: str
) -> None:
    for a, b in MATRICES + EMPTY + BATCHES:
        for bias in (False, True):
            problem = reference.random_problem(
                rng, a, b, dtype, bias=bias, layout_a=layout_a, layout_b=layout_b
            )
            check_forward(problem, dtype)


@every_gradient_dtype
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("layout_a", LAYOUTS)
def test_gradients_in_every_layout(
    rng: np.random.Generator, dtype: str, layout_a: str, layout_b: str
) -> None:
    for a, b in MATRICES + EMPTY + BATCHES:
        problem = reference.random_problem(rng, a, b, dtype, layout_a=layout_a, layout_b=layout_b)
        check_gradients(problem, dtype, rng, scales={"a": 0.5, "b": -2.0, "bias": 0.75})


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATING, indirect=True)
@pytest.mark.parametrize("bias", [False, True])
def test_activation_of_a_product(
    rng: np.random.Generator, dtype: str, activation: str, bias: bool
) -> None:
    for a, b in [*MATRICES, *EMPTY, ((11, 5, 7), (7, 3)), ((5, 7), (11, 7, 3))]:
        problem = reference.random_problem(rng, a, b, dtype, bias=bias, activation=activation)
        check_forward(problem, dtype)
        check_gradients(problem, dtype, rng)


@every_dtype
def test_no_inner_dimension_leaves_the_bias(rng: np.random.Generator, dtype: str) -> None:
    problem = reference.random_problem(rng, (3, 0), (0, 5), dtype, bias=True)
    y = _kernels.matmul(problem.a, problem.b, problem.bias, poison=True)
    assert problem.bias is not None
    np.testing.assert_array_equal(y, np.broadcast_to(problem.bias, (3, 5)))
    y = _kernels.matmul(problem.a, problem.b, poison=True)
    np.testing.assert_array_equal(y, np.zeros((3, 5), y.dtype))


@pytest.mark.parametrize("dtype", FLOATING, indirect=True)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_no_inner_dimension_leaves_the_activation_of_the_bias(
    rng: np.random.Generator, dtype: str, activation: str
) -> None:
    problem = reference.random_problem(rng, (3, 0), (0, 5), dtype, bias=True, activation=activation)
    check_forward(problem, dtype)


@every_dtype
def test_preactivation_is_returned_beside_the_result(rng: np.random.Generator, dtype: str) -> None:
    activation = "gelu" if dtype in FLOATING else "linear"
    problem = reference.random_problem(
        rng, (2, 5, 7), (7, 3), dtype, bias=True, activation=activation
    )
    y, z = _kernels.matmul(
        problem.a,
        problem.b,
        problem.bias,
        activation=activation,
        return_preactivation=True,
        poison=True,
    )
    reference.assert_close(y, reference.forward(problem), dtype, what="y")
    reference.assert_close(z, reference.preactivation(problem), dtype, what="z")


@every_dtype
def test_operands_that_are_not_dense_are_read_right(rng: np.random.Generator, dtype: str) -> None:
    wide = reference.random_problem(rng, (10, 14), (14, 6), dtype)
    problem = Problem(wide.a[::2, ::-2], wide.b.T[::3, :7].T)
    check_forward(problem, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int32"], indirect=True)
def test_operands_of_the_other_byte_order_are_not_misread(
    rng: np.random.Generator, dtype: str
) -> None:
    problem = reference.random_problem(rng, (5, 7), (7, 3), dtype)
    swapped = problem.a.astype(problem.a.dtype.newbyteorder())
    y = _kernels.matmul(swapped, problem.b)
    assert y.dtype.isnative
    reference.assert_close(y, reference.forward(problem), dtype)


@every_gradient_dtype
@pytest.mark.parametrize(
    ("a", "b"), [((5, 7), (7, 3)), ((2, 5, 7), (7, 3)), ((5, 7), (2, 7, 3)), ((4, 1, 5, 7), (7, 3))]
)
def test_operand_that_is_not_given_gets_its_shape_from_the_others(
    rng: np.random.Generator, dtype: str, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    for layout in LAYOUTS:
        problem = reference.random_problem(rng, a, b, dtype, layout_a=layout, layout_b=layout)
        dy = reference.random_array(rng, (*np.broadcast_shapes(a[:-2], b[:-2]), 5, 3), dtype)
        exact = reference.gradients(problem, dy)
        layouts = {"layout_a": layout, "layout_b": layout}
        da = _kernels.matmul_gradient(dy, None, problem.b, needed=["a"], **layouts)["a"]
        db = _kernels.matmul_gradient(dy, problem.a, None, needed=["b"], **layouts)["b"]
        reference.assert_close(da, exact["a"], dtype)
        reference.assert_close(db, exact["b"], dtype)


@every_gradient_dtype
def test_scale_zero_gives_exact_zeros_and_runs_no_product(
    rng: np.random.Generator, dtype: str
) -> None:
    problem = reference.random_problem(rng, (2, 5, 7), (7, 3), dtype)
    dy = reference.random_array(rng, (2, 5, 3), dtype)
    _kernels.reset_kernel_stats()
    results = _kernels.matmul_gradient(
        dy,
        problem.a,
        problem.b,
        needed=["a", "b", "bias"],
        scales={"a": 0.0, "b": 0.0, "bias": 0.0},
        poison=True,
    )
    assert _kernels.kernel_stats()["backward"] == {"products": 0, "flops": 0}
    for name, shape in (("a", (2, 5, 7)), ("b", (7, 3)), ("bias", (3,))):
        assert results[name].shape == shape
        assert not np.any(results[name])


@every_dtype
def test_counters_count_products_and_their_operations(rng: np.random.Generator, dtype: str) -> None:
    operations = 8 if dtype in COMPLEX else 2
    problem = reference.random_problem(rng, (2, 5, 7), (11, 1, 7, 3), dtype)
    _kernels.reset_kernel_stats()
    y = _kernels.matmul(problem.a, problem.b)
    flops = operations * 22 * 5 * 7 * 3
    assert _kernels.kernel_stats() == {
        "forward": {"products": 1, "flops": flops},
        "backward": {"products": 0, "flops": 0},
    }
    if dtype in INTEGERS:
        return
    _kernels.reset_kernel_stats()
    for needed, products in ((["a", "b"], 2), (["a"], 1), (["bias"], 0), (["bias", "z"], 0)):
        _kernels.reset_kernel_stats()
        _kernels.matmul_gradient(y, problem.a, problem.b, needed=needed)
        assert _kernels.kernel_stats() == {
            "forward": {"products": 0, "flops": 0},
            "backward": {"products": products, "flops": products * flops},
        }


@every_dtype
def test_empty_product_is_not_counted(rng: np.random.Generator, dtype: str) -> None:
    _kernels.reset_kernel_stats()
    for a, b in EMPTY:
        problem = reference.random_problem(rng, a, b, dtype)
        y = _kernels.matmul(problem.a, problem.b)
        if dtype not in INTEGERS:
            _kernels.matmul_gradient(y, problem.a, problem.b, needed=["a", "b"])
    stats = _kernels.kernel_stats()
    assert (stats["forward"]["products"], stats["backward"]["products"]) == (0, 0)
