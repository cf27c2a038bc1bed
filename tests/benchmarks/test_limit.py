"""That limits are asked of one program a device, and what the program for a GPU measures."""

from __future__ import annotations

import stat

import pytest

import limit
from limit import higher, measure_gpu, measure_limits
from stopgrad_op import _library
from workloads import multiplied_in


class FakeArray:
    def __init__(self, array, log):
        self.array, self.log = array, log

    def copy(self):
        self.log.append(("copy", self.array.nbytes))
        return FakeArray(self.array.copy(), self.log)


class FakeCuda:
    """The CUDA kernels' module, on the host."""

    def __init__(self):
        self.log = []

    def to_device(self, array):
        return FakeArray(array, self.log)

    def matmul(self, a, b, *, allow_tf32):
        self.log.append((a.array.dtype.name, allow_tf32, a.array.shape, b.array.shape))

    def synchronize(self):
        self.log.append("waited")


def test_limit_of_a_gpu_has_a_rate_for_each_precision_and_copies():
    pytest.importorskip("ml_dtypes")
    cuda = FakeCuda()
    rates = measure_gpu(cuda, 0.0, 16)
    assert set(rates) >= {
        multiplied_in(dtype, "gpu")
        for dtype in ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
    }
    assert all(rate > 0 for rate in rates.values())
    called = [entry for entry in cuda.log if entry != "waited"]
    square = ((16, 16), (16, 16))
    assert {entry for entry in called if entry[0] in ("float32", "bfloat16")} == {
        ("float32", True, *square),
        ("float32", False, *square),
        ("bfloat16", False, *square),
    }
    assert called[-1] == ("copy", 16 * 16 * 8)
    assert cuda.log[-1] == "waited"


def test_rate_is_that_of_what_was_done_in_the_shortest_time(monkeypatch):
    pytest.importorskip("ml_dtypes")
    cuda = FakeCuda()
    took = {"now": 0.0}

    def synchronize():
        # A second for each call since the last time, and the first time ten.
        calls = next(
            i for i, entry in enumerate([*reversed(cuda.log), "waited"]) if entry == "waited"
        )
        took["now"] += calls if "waited" in cuda.log else 10
        cuda.log.append("waited")

    monkeypatch.setattr(cuda, "synchronize", synchronize)
    monkeypatch.setattr(limit.time, "perf_counter", lambda: took["now"])
    rates = measure_gpu(cuda, 0.0, 16)
    assert rates["copy"] == 2 * 8 * 16**2
    assert {rate for name, rate in rates.items() if name != "copy"} == {2 * 16**3}


def program(folder, text):
    file = folder / "program"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return [str(file)]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_program_of_the_device_is_asked_with_each_number_of_threads(monkeypatch, tmp_path, device):
    command = program(tmp_path, """echo '{"tf32": '$1', "copy": '$2'}'""")
    monkeypatch.setitem(limit._PROGRAMS, device, lambda _: command)
    limits, problem = measure_limits({1, 2}, 0.5, device)
    assert limits == {1: {"tf32": 1, "copy": 0.5}, 2: {"tf32": 2, "copy": 0.5}}
    assert problem is None


def test_program_that_fails_leaves_no_limit_and_says_why(monkeypatch, tmp_path):
    command = program(tmp_path, "echo there is nothing >&2; exit 1")
    monkeypatch.setitem(limit._PROGRAMS, "gpu", lambda _: command)
    assert measure_limits({1}, 0.5, "gpu") == (
        {},
        "the machine's limit is not measured: there is nothing",
    )


def test_without_a_gpu_there_is_no_limit_of_one():
    if _library.load_gpu() is None:
        pytest.skip("there is a GPU")
    limits, problem = measure_limits({1}, 0.001, "gpu")
    assert limits == {}
    assert problem.startswith("the machine's limit is not measured: ")
    assert "there is nothing to measure: " in problem


def test_higher_of_two_measurements_counts():
    first, second = {1: {"tf32": 2, "copy": 1}}, {1: {"tf32": 1, "copy": 3}}
    assert higher(first, second) == {1: {"tf32": 2, "copy": 3}}
    assert higher(first, {}) == {}


@pytest.mark.parametrize(
    ("dtype", "device", "precision"),
    [
        ("float32", "cpu", "float32"),
        ("float32", "gpu", "tf32"),
        ("complex64", "cpu", "float32"),
        ("complex64", "gpu", "tf32"),
        ("complex128", "gpu", "float64"),
        ("bfloat16", "gpu", "bfloat16"),
    ],
)
def test_float32_is_tf32_on_a_gpu_alone(dtype, device, precision):
    assert multiplied_in(dtype, device) == precision
