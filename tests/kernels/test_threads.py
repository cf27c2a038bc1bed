"""What the number of threads may change, and whose threads they are."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import reference
from checks import BORDERS
from reference import COMPLEX, FLOATING, INTEGERS

from stopgrad_op import _kernels

every_dtype = pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX, *INTEGERS), indirect=True)

# Large enough to be split, and not into equal parts.
SPLIT = [((257, 131), (131, 97)), ((67, 131), (131, 401)), ((5, 61, 131), (5, 131, 97))]


@every_dtype
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_split_product_is_right(rng: np.random.Generator, dtype: str, threads: int) -> None:
    activation = "gelu" if dtype in FLOATING else "linear"
    for a, b in SPLIT:
        problem = reference.random_problem(rng, a, b, dtype, bias=True, activation=activation)
        y = _kernels.matmul(
            problem.a,
            problem.b,
            problem.bias,
            activation=activation,
            threads=threads,
            poison=True,
        )
        reference.assert_close(y, reference.forward(problem), dtype)


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_split_gradients_are_right(rng: np.random.Generator, dtype: str, threads: int) -> None:
    for a, b in SPLIT:
        problem = reference.random_problem(rng, a, b, dtype)
        dy = reference.random_array(rng, (*a[:-1], b[-1]), dtype)
        results = _kernels.matmul_gradient(
            dy,
            problem.a,
            problem.b,
            needed=["a", "b", "bias", "z"],
            threads=threads,
            poison=True,
        )
        exact = reference.gradients(problem, dy)
        for name, result in results.items():
            reference.assert_close(result, exact[name], dtype, what=name)


@pytest.mark.parametrize("dtype", (*FLOATING, *COMPLEX), indirect=True)
@pytest.mark.parametrize("needed", [("a",), ("b",), ("a", "b", "bias")], ids=str)
def test_gradients_do_not_depend_on_threads(
    rng: np.random.Generator, dtype: str, needed: tuple[str, ...]
) -> None:
    activation = "gelu" if dtype in FLOATING else "linear"
    for a, b in [*BORDERS.values(), ((9, 70, 41), (9, 41, 65))]:
        problem = reference.random_problem(rng, a, b, dtype, activation=activation)
        z, dy = (reference.random_array(rng, (*a[:-1], b[-1]), dtype) for _ in range(2))
        regions = {
            "a_rows": np.flatnonzero(rng.random(a[-2]) < 0.9),
            "b_columns": np.flatnonzero(rng.random(b[-1]) < 0.3),
        }
        rows = rng.random(a[:-1]) < 0.6
        results = [
            _kernels.matmul_gradient(
                dy,
                problem.a,
                problem.b,
                z,
                needed=needed,
                activation=activation,
                rows=rows,
                regions=regions,
                threads=threads,
                poison=True,
            )
            for threads in (1, 2, 5)
        ]
        for name in needed:
            one, *others = (result[name].tobytes() for result in results)
            assert others == [one, one], name


@pytest.mark.parametrize("dtype", FLOATING, indirect=True)
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "softplus"])
def test_pass_over_dy_does_not_depend_on_threads(
    rng: np.random.Generator, dtype: str, activation: str
) -> None:
    dy, saved = (reference.random_array(rng, (2053, 1031), dtype) for _ in range(2))
    one, three = (
        _kernels.matmul_gradient(
            dy, saved=saved, needed=["bias", "z"], activation=activation, threads=n, poison=True
        )
        for n in (1, 3)
    )
    for name in ("bias", "z"):
        assert one[name].tobytes() == three[name].tobytes()


@pytest.mark.parametrize("dtype", ("float32", "float64", *COMPLEX), indirect=True)
def test_bias_gradient_of_many_rows_keeps_its_digits(rng: np.random.Generator, dtype: str) -> None:
    """Numbers of one sign: a running sum in the dtype itself would be off by a hundred units."""
    dy = np.abs(reference.random_array(rng, (100_003, 3), dtype)).astype(dtype)
    bias = _kernels.matmul_gradient(dy, needed=["bias"], threads=3)["bias"]
    # NumPy adds rows one after the other, which float64 shows.
    long = np.clongdouble if dtype in COMPLEX else np.longdouble
    exact = reference.widen(dy).astype(long).sum(axis=0)
    assert np.all(np.abs(bias - exact) <= 4 * reference.epsilon(dtype) * np.abs(exact))


def test_same_call_gives_the_same_bits(rng: np.random.Generator) -> None:
    problem = reference.random_problem(rng, (257, 131), (131, 97), "float32")
    first = _kernels.matmul(problem.a, problem.b, threads=3)
    for _ in range(5):
        assert _kernels.matmul(problem.a, problem.b, threads=3).tobytes() == first.tobytes()


def test_calls_from_several_python_threads_are_right(rng: np.random.Generator) -> None:
    problems = [
        reference.random_problem(
            rng, (61 + i, 131), (131, 97), "float32", bias=True, activation="gelu"
        )
        for i in range(4)
    ]
    due = [reference.forward(problem) for problem in problems]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        problem = problems[index]
        try:
            for _ in range(20):
                y = _kernels.matmul(
                    problem.a, problem.b, problem.bias, activation="gelu", threads=2
                )
                reference.assert_close(y, due[index], "float32")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


COUNT_THREADS = """
import importlib.util, os, sys

def threads():
    return len(os.listdir("/proc/self/task"))

assert threads() == 1
spec = importlib.util.spec_from_file_location("_kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
assert kernels.build_info()["instructions"]
assert "numpy" not in sys.modules
assert threads() == 1, f"importing the kernels started {threads() - 1} threads"
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in Linux's /proc")
def test_importing_the_kernels_starts_no_threads() -> None:
    result = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS, str(_kernels.__file__)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
