"""Products larger than the pieces that they are computed in, on both sides of every border.

The pieces are csrc/cpu/blocking.cc's: strips of at most 14 rows, or 32 of 16-bit types where the
processor has tiles, which take 16 rows or 32 at a time; panels of at most 32 columns, blocks of at
most 384 of k, 768 of bfloat16's without tiles, 192 of half's with them and 96 of complex numbers',
tiles of 8 strips, chunks of 512 KiB of packed panels, 4 MiB of these in all, passes of 8192 of k,
or of a block where C can hold the sums. A C of fewer than 32 micro-tiles is computed in slices of
two blocks and more. B's rows are read where they lie unless strips times a block's bytes are more
than 8 MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import reference
from checks import check_gradients
from reference import COMPLEX, FLOATING, INTEGERS

from stopgrad_op import _kernels

every_dtype = pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX, *INTEGERS), indirect=True)

# The shapes of a and b.
BORDERS = {
    "strip and panel": ((28, 31), (31, 64)),
    "a row and a column more": ((29, 33), (33, 65)),
    "a column less, few rows": ((13, 40), (40, 95)),
    "few rows of a gradient": ((50, 20), (20, 64)),
    "blocks of k": ((43, 769), (769, 33)),
    "tiles": ((127, 50), (50, 161)),
    "more than is read unpacked": ((310, 769), (769, 330)),
    "ranges of panels": ((45, 4099), (4099, 290)),
    "ranges of panels of pairs": ((45, 8000), (8000, 290)),
    "ranges and chunks of panels of a block": ((45, 350), (350, 4200)),
    "slices of k, chunks of panels": ((10, 1600), (1600, 600)),
    "passes over k": ((43, 8193), (8193, 3)),
    "whole tiles of sums": ((64, 832), (832, 64)),
    "half a strip of tiles": ((80, 801), (801, 48)),
    "slices of k": ((30, 4001), (4001, 40)),
    "a number, of slices of k": ((1, 3100), (3100, 1)),
    "slices of k, each matrix by a thread": ((7, 10, 1700), (7, 1700, 20)),
    "passes over k, without slices": ((190, 8200), (8200, 170)),
    "a batch that each thread takes a matrix of": ((9, 30, 41), (9, 41, 35)),
}


@every_dtype
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("layout", ["normal", "transpose", "adjoint"])
@pytest.mark.parametrize("border", BORDERS)
def test_product_across_a_border(
    rng: np.random.Generator, dtype: str, border: str, layout: str, threads: int
) -> None:
    a, b = BORDERS[border]
    activation = "relu" if dtype in FLOATING else "linear"
    problem = reference.random_problem(
        rng, a, b, dtype, bias=True, layout_a=layout, layout_b=layout, activation=activation
    )
    y = _kernels.matmul(
        problem.a,
        problem.b,
        problem.bias,
        layout_a=layout,
        layout_b=layout,
        activation=activation,
        threads=threads,
        poison=True,
    )
    reference.assert_close(y, reference.forward(problem), dtype)


@pytest.mark.parametrize("dtype", FLOATING, indirect=True)
@pytest.mark.parametrize("layout", ["normal", "transpose"])
@pytest.mark.parametrize("border", BORDERS)
def test_gradients_through_an_activation_across_a_border(
    rng: np.random.Generator, dtype: str, border: str, layout: str
) -> None:
    """Where one of a and b is needed, the activation's gradient is computed while it is packed."""
    a, b = BORDERS[border]
    problem = reference.random_problem(
        rng, a, b, dtype, layout_a=layout, layout_b=layout, activation="elu"
    )
    check_gradients(problem, dtype, rng, threads=3)


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize("threads", [1, 3])
def test_gradient_that_sums_over_a_batch(
    rng: np.random.Generator, dtype: str, threads: int
) -> None:
    """Of b, which the batch shares and whose matrices do not lie one behind the other."""
    problem = reference.random_problem(rng, (3, 2, 67, 45), (2, 45, 37), dtype)
    dy = reference.random_array(rng, (3, 2, 67, 37), dtype)
    result = _kernels.matmul_gradient(
        dy, problem.a, problem.b, needed=["b"], scales={"b": -0.5}, threads=threads, poison=True
    )["b"]
    exact = reference.gradients(problem, dy, {"b": -0.5})["b"]
    reference.assert_close(result, exact, dtype)


@every_dtype
@pytest.mark.parametrize("border", BORDERS)
def test_result_does_not_depend_on_threads(
    rng: np.random.Generator, dtype: str, border: str
) -> None:
    problem = reference.random_problem(rng, *BORDERS[border], dtype, bias=True)
    one, *others = (
        _kernels.matmul(problem.a, problem.b, problem.bias, threads=n, poison=True).tobytes()
        for n in (1, 2, 5)
    )
    assert others == [one, one]


@pytest.mark.parametrize("dtype", FLOATING, indirect=True)
@pytest.mark.parametrize("needed", ["a", "b"])
@pytest.mark.parametrize("layout", ["normal", "transpose"])
@pytest.mark.parametrize("border", BORDERS)
def test_gradient_through_an_activation_does_not_depend_on_threads(
    rng: np.random.Generator, dtype: str, border: str, layout: str, needed: str
) -> None:
    a, b = BORDERS[border]
    problem = reference.random_problem(rng, a, b, dtype, layout_a=layout, layout_b=layout)
    z, dy = (reference.random_array(rng, (*a[:-1], b[-1]), dtype) for _ in range(2))
    one, *others = (
        _kernels.matmul_gradient(
            dy,
            problem.a,
            problem.b,
            z,
            needed=[needed],
            layout_a=layout,
            layout_b=layout,
            activation="gelu",
            threads=n,
            poison=True,
        )[needed].tobytes()
        for n in (1, 2, 5)
    )
    assert others == [one, one]


@pytest.mark.parametrize("dtype", FLOATING, indirect=True)
def test_not_a_number_beside_a_piece_stays_out_of_it(dtype: str) -> None:
    """Packing reads whole vectors, beyond the last row and column of a piece."""
    number = reference.numpy_dtype(dtype)
    whole = np.full((64, 64), np.nan, number)
    whole[3:32, 5:38] = 1.0
    part = whole[3:32, 5:38]
    y = _kernels.matmul(part, part.T.copy())
    np.testing.assert_array_equal(y, np.full((29, 29), 33.0, number))
    row = np.ones((1, 64), number)
    nan_columns = np.ones((64, 33), number)
    nan_columns[:, 32] = np.nan
    y = _kernels.matmul(row, nan_columns)
    np.testing.assert_array_equal(y[0, :32], np.full(32, 64.0, number))
    assert np.isnan(y[0, 32])


def test_scale_of_zero_reads_nothing(rng: np.random.Generator) -> None:
    a = np.full((43, 50), np.nan, np.float32)
    dy = reference.random_array(rng, (43, 30), "float32")
    result = _kernels.matmul_gradient(
        dy, a, None, needed=["b"], b_shape=(50, 30), scales={"b": 0.0}, poison=True
    )["b"]
    np.testing.assert_array_equal(result, np.zeros((50, 30)))


READ_TO_THE_END = """
import ctypes, mmap, sys
import ml_dtypes  # gives NumPy bfloat16
import numpy as np
from stopgrad_op import _kernels

memory = mmap.mmap(-1, 64 * mmap.PAGESIZE)
begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
end = 63 * mmap.PAGESIZE
mprotect = ctypes.CDLL(None, use_errno=True).mprotect
assert mprotect(ctypes.c_void_p(begin + end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

def before_the_end(shape, dtype):
    count = int(np.prod(shape))
    array = np.frombuffer(memory, dtype, count, end - count * np.dtype(dtype).itemsize)
    return array.reshape(shape)

for dtype in sys.argv[1:]:
    for m, k, n in ((29, 31, 65), (13, 17, 33), (3, 1, 5), (43, 16, 64), (1, 50, 31), (15, 7, 15),
                    (45, 65, 67)):
        for layout in ("normal", "transpose"):
            a = before_the_end((m, k) if layout == "normal" else (k, m), dtype)
            _kernels.matmul(a, np.ones((k, n), dtype), layout_a=layout)
            b = before_the_end((k, n) if layout == "normal" else (n, k), dtype)
            _kernels.matmul(np.ones((m, k), dtype), b, layout_b=layout)
            if np.dtype(dtype).kind == "i":
                continue
            # Some rows of dy and a, and regions, the last ones among them, of what is read there.
            # Of the largest shape the rows are gathered, and those of a run read where they lie.
            rows = np.arange(m) % 3 == 2
            rows[m // 2:] |= layout == "normal"
            options = {"rows": rows, "layout_a": layout, "layout_b": layout}
            for axis, extent in (("b_columns", n), ("b_rows", k), ("a_rows", m), ("a_columns", k)):
                if layout != "normal":
                    extent = {"b_columns": k, "b_rows": n, "a_rows": k, "a_columns": m}[axis]
                for region in ((extent // 2, None, 1), np.arange(extent % 2, extent, 2)):
                    options["regions"] = {axis: region}
                    shapes = ((m, n), (m, k) if layout == "normal" else (k, m),
                              (k, n) if layout == "normal" else (n, k))
                    for i in range(3):
                        arrays = [np.ones(shape, dtype) for shape in shapes]
                        arrays[i] = before_the_end(shapes[i], dtype)
                        for needed in (["a"], ["b"]):
                            _kernels.matmul_gradient(*arrays, needed=needed, **options)
print("read", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page of memory as Linux does")
def test_nothing_is_read_beyond_an_operand() -> None:
    """Packing reads whole vectors; behind the operands is memory that must not be read."""
    dtypes = (
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "int32",
        "int64",
    )
    result = subprocess.run(
        [sys.executable, "-c", READ_TO_THE_END, *dtypes],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "read\n", f"exit status {result.returncode}: {result.stderr}"
