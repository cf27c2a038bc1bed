"""Measure the CUDA kernels alone, on one GPU, beside PyTorch and JAX where those are installed.

Products beside the best that cublasLt has for them, PyTorch and JAX; the passes as a share of a
copy's bandwidth; a layer's passes in products; what a call costs the host. Each time is the median
of several runs, taken in turn with what it is compared with, of as many calls as take some
milliseconds. `--device emulated` shows that the script works where there is no GPU; its times mean
nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Run = Callable[[], object]

PRODUCTS = (
    (1024, 1024, 1024),
    (4096, 4096, 4096),
    (8192, 4096, 1024),
    (8192, 16384, 4096),
    (16384, 4096, 16384),
)
DTYPES = ("bfloat16", "float16", "tf32", "float32", "float64")
STEP = (8192, 16384, 4096)  # rows, columns, inner dimension
PASS = (8192, 4096)
OURS, BEST = "stopgrad_op", "cublasLt's best"
# How hard to look for cublasLt's best: no first call could take so long.
SEARCH = {"candidates": 100, "milliseconds": 3000.0}


class Clock:
    """Times of calls on the default stream, in seconds."""

    def __init__(self, cuda: ModuleType, rounds: int, seconds: float) -> None:
        self._cuda = cuda
        self._rounds = rounds
        self._seconds = seconds

    def _once(self, run: Run, calls: int) -> float:
        self._cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait = getattr(result, "block_until_ready", None)  # JAX has a stream of its own
        if wait is not None:
            wait()
        self._cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    def enqueue(self, run: Run, calls: int) -> float:
        """Return what a call takes the host, which does not wait for the device."""
        self._once(run, 3)
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = (time.perf_counter() - begin) / calls
        self._once(run, 1)
        return seconds

    def first(self, run: Run) -> float:
        """Return by how much the first call is longer than a later one."""
        return self._once(run, 1) - self._once(run, 1)

    def medians(self, runs: dict[str, Run]) -> dict[str, float]:
        """Return the median time of each, all taken in turn."""
        calls = {}
        for name, run in runs.items():
            self._once(run, 1)  # algorithms are chosen, kernels loaded
            calls[name] = max(1, int(self._seconds / max(1e-7, self._once(run, 3))))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self._rounds):
            for name, run in runs.items():
                self._once(run, 1)  # it may have to load what another one replaced
                times[name].append(self._once(run, calls[name]))
        return {name: statistics.median(values) for name, values in times.items()}


class Kernels:
    """The kernels on random arrays of a dtype; tf32 is float32 that may be rounded."""

    def __init__(self, cuda: ModuleType, dtype: str) -> None:
        self._cuda = cuda
        self._options = {"allow_tf32": dtype == "tf32"}
        self.dtype = "float32" if dtype == "tf32" else dtype
        self._rng = np.random.default_rng(0)

    def array(self, *shape: int) -> Any:
        """Return random numbers on the device: a million of them, again and again."""
        values = self._rng.standard_normal(min(math.prod(shape), 1_000_003), np.float32)
        if self.dtype == "bfloat16":
            import ml_dtypes  # noqa: F401, which makes it a dtype of NumPy's
        return self._cuda.to_device(np.resize(values.astype(self.dtype), shape))

    def matmul(self, *arrays: Any, **options: Any) -> Run:
        """Return a call of the forward pass."""
        return lambda: self._cuda.matmul(*arrays, **self._options, **options)

    def gradient(self, *arrays: Any, **options: Any) -> Run:
        """Return a call of the backward pass."""
        return lambda: self._cuda.matmul_gradient(*arrays, **self._options, **options)


Others = Callable[[Any, Any, str], Run]


def pytorch() -> Others | None:
    """Return how PyTorch multiplies, if it is there and sees a GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def product(a: Any, b: Any, dtype: str) -> Run:
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        return functools.partial(torch.matmul, torch.from_dlpack(a), torch.from_dlpack(b))

    return product


def jax_jit() -> Others | None:
    """Return how JAX multiplies, if it is there and sees a GPU."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except ImportError:
        return None
    if jax.default_backend() != "gpu":
        return None
    jax.config.update("jax_enable_x64", True)  # or float64 becomes float32

    def product(a: Any, b: Any, dtype: str) -> Run:
        precision = "highest" if dtype == "float32" else "default"  # which is TF32
        multiply = jax.jit(functools.partial(jax.numpy.matmul, precision=precision))
        return functools.partial(multiply, *map(jax.dlpack.from_dlpack, (a, b)))

    return product


def with_best(cuda: ModuleType, run: Run, folder: str) -> dict[str, Run]:
    """Return the call with the algorithm that it chooses, and with the best there is.

    Either algorithm is loaded from a file where the other one ran before.
    """
    runs: dict[str, Run] = {}
    for name, search in ((OURS, {}), (BEST, SEARCH)):
        file = str(Path(folder) / name)
        cuda.forget_algorithms()
        cuda.set_search(**search)
        run()
        cuda.save_algorithms(file)
        runs[name] = functools.partial(run_with, cuda, run, file)
    cuda.set_search()
    return runs


_loaded = ""


def run_with(cuda: ModuleType, run: Run, file: str) -> object:
    """Run with the algorithms of a file."""
    global _loaded
    if _loaded != file:
        cuda.forget_algorithms()
        cuda.load_algorithms(file)
        _loaded = file
    return run()


def measure_products(
    cuda: ModuleType, clock: Clock, sizes: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Time bare products, ours, the best of cublasLt and others'."""
    others = {"torch": pytorch(), "jax": jax_jit()}
    records = []
    for dtype in DTYPES:
        kernels = Kernels(cuda, dtype)
        for m, n, k in sizes:
            a, b = kernels.array(m, k), kernels.array(k, n)
            with tempfile.TemporaryDirectory() as folder:
                runs = with_best(cuda, kernels.matmul(a, b), folder)
                for name, other in others.items():
                    if other is not None:
                        runs[name] = other(a, b, dtype)
                seconds = clock.medians(runs)
            records.append(
                {"suite": "products", "case": f"{m}x{n}x{k}", "dtype": dtype}
                | {"seconds": seconds, "flops": 2 * m * n * k}
            )
    return records


def measure_host(cuda: ModuleType, clock: Clock, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Time what a call costs the host, at first for sizes that are new, and later."""
    kernels = Kernels(cuda, "bfloat16")
    small = kernels.array(16, 16), kernels.array(16, 16)
    kernels.matmul(*small)()  # the libraries are loaded
    cuda.forget_algorithms()
    firsts = []
    for size in sizes:
        arrays = (kernels.array(size, size), kernels.array(size, size), kernels.array(size))
        firsts.append(clock.first(kernels.matmul(*arrays, activation="relu")))
    seconds = {
        "first call at a new size, the longest": max(firsts),
        "first call at a new size, the median": statistics.median(firsts),
        "later call": clock.enqueue(kernels.matmul(*small), 1000),
    }
    for name, other in (("torch", pytorch()), ("jax", jax_jit())):
        if other is not None:
            seconds[f"later call, {name}"] = clock.enqueue(other(*small, "bfloat16"), 1000)
    return [
        {"suite": "host", "case": f"{len(sizes)} sizes, 16x16x16", "dtype": "bfloat16"}
        | {"seconds": seconds}
    ]


def measure_step(
    cuda: ModuleType, clock: Clock, size: tuple[int, int, int]
) -> list[dict[str, Any]]:
    """Time a layer with bias and GELU, forward and backward, whole and with operands blocked."""
    rows, cols, inner = size
    kernels = Kernels(cuda, "bfloat16")
    a, b, bias = kernels.array(rows, inner), kernels.array(inner, cols), kernels.array(cols)
    dy, z = kernels.array(rows, cols), kernels.array(rows, cols)

    def backward(*needed: str) -> Run:
        return kernels.gradient(dy, a, b, z, needed=needed, activation="gelu")

    def forward(activation: str, keeps_z: bool) -> Run:
        return kernels.matmul(a, b, bias, activation=activation, return_preactivation=keeps_z)

    runs = {
        "product": kernels.matmul(a, b),
        "forward": forward("gelu", True),
        "forward, z not kept": forward("gelu", False),
        "forward, gelu_tanh": forward("gelu_tanh", True),
        "forward, relu": forward("relu", False),
        "backward": backward("a", "b", "bias"),
        "backward, a blocked": backward("b", "bias"),
        "backward, b and bias blocked": backward("a"),
    }
    case = {"suite": "step", "case": f"{rows}x{cols}x{inner}", "dtype": "bfloat16"}
    return [case | {"seconds": clock.medians(runs)}]


# How many tensors each pass reads and writes; taking or putting half of the rows, half as many. To
# bring the list of rows to the device is a part of that, which may take the host longer.
TRAFFIC = {
    "copy": 2,
    "bias": 2,
    "bias and relu": 2,
    "bias and gelu": 2,
    "bias and silu": 2,
    "dz": 3,
    "dz and dbias": 3,
    "dbias": 1,
    "take every second row": 1,
    "put every second row": 1,
}


def measure_passes(cuda: ModuleType, clock: Clock, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Time the elementwise kernels beside a copy of the same bytes."""
    rows, cols = shape
    records = []
    for dtype in ("bfloat16", "float32"):
        kernels = Kernels(cuda, dtype)
        dy, saved, bias = (kernels.array(*s) for s in (shape, shape, (cols,)))
        every_second = np.arange(0, rows, 2)
        half = cuda.take_rows(dy, every_second)

        def activate(activation: str, x: Any = dy, bias: Any = bias) -> Run:
            return lambda: cuda.activate(x, bias, activation=activation)

        def gradient(*needed: str, kernels: Kernels = kernels, dy: Any = dy, z: Any = saved) -> Run:
            return kernels.gradient(dy, saved=z, needed=needed, activation="gelu")

        runs: dict[str, Run] = {
            "copy": dy.copy,
            "bias": activate("linear"),
            "bias and relu": activate("relu"),
            "bias and gelu": activate("gelu"),
            "bias and silu": activate("silu"),
            "dz": gradient("z"),
            "dz and dbias": gradient("z", "bias"),
            "dbias": kernels.gradient(dy, needed=["bias"]),
            "take every second row": functools.partial(cuda.take_rows, dy, every_second),
            "put every second row": functools.partial(cuda.put_rows, half, every_second, rows),
        }
        case = {"suite": "passes", "case": f"{rows}x{cols}", "dtype": dtype}
        records.append(case | {"seconds": clock.medians(runs)})
    return records


def geometric_mean(values: Sequence[float]) -> float:
    """Return the mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


def report(records: list[dict[str, Any]]) -> str:
    """Return the records as tables for a person."""
    lines = []
    ratios: dict[str, list[float]] = {}
    for record in records:
        seconds = record["seconds"]
        lines.append(f"{record['suite']} {record['case']} {record['dtype']}")
        for name, value in seconds.items():
            text = f"  {name:<40}{value * 1e6:12.1f} us"
            if record["suite"] == "products":
                ratio = value / seconds[OURS]
                text += (
                    f"  {record['flops'] / value / 1e12:8.1f} TFLOP/s, its time / ours {ratio:.3f}"
                )
                ratios.setdefault(name, []).append(ratio)
            elif record["suite"] == "step":
                text += f"  {value / seconds['product']:8.3f} products"
            elif record["suite"] == "passes":
                share = TRAFFIC[name] / value / (TRAFFIC["copy"] / seconds["copy"])
                text += f"  {share:8.3f} of the copy's bandwidth"
            lines.append(text)
    if ratios:
        lines.append("products, geometric mean of its time / ours")
    lines += [f"  {name:<40}{geometric_mean(r):8.3f}" for name, r in ratios.items() if name != OURS]
    return "\n".join(lines)


def load(device: str) -> ModuleType:
    """Return the kernels, or say why there are none and leave."""
    if device == "emulated":
        sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("tests", "backend")]
        module: ModuleType = importlib.import_module("emulated_gpu").load()
        return module
    from stopgrad_op._library import build_info, cuda_info, load_kernels

    info = cuda_info()
    missing = (
        build_info()["cuda_missing"]
        if info is None
        else info["devices_missing"] or info["cublas_lt_missing"]
    )
    if missing:
        raise SystemExit(f"there is nothing to measure: {missing}")
    cuda: ModuleType = load_kernels().cuda
    return cuda


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a report and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    parser.add_argument("--json", type=Path, help="where to write the records")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    suites = ("products", "step", "passes", "host")
    parser.add_argument("--suite", nargs="+", choices=suites, default=suites)
    options = parser.parse_args(arguments)
    cuda = load(options.device)
    if options.quick:
        clock = Clock(cuda, rounds=1, seconds=0)
        products: Sequence[tuple[int, int, int]] = ((24, 16, 8),)
        step, shape, new_sizes = (24, 16, 8), (40, 24), range(8, 32, 8)
    else:
        clock = Clock(cuda, rounds=9, seconds=0.02)
        products, step, shape, new_sizes = PRODUCTS, STEP, PASS, range(512, 4097, 256)
    measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "products": lambda: measure_products(cuda, clock, products),
        "step": lambda: measure_step(cuda, clock, step),
        "passes": lambda: measure_passes(cuda, clock, shape),
        "host": lambda: measure_host(cuda, clock, new_sizes),
    }
    records = [record for suite in options.suite for record in measure[suite]()]
    print(report(records))
    if options.json is not None:
        machine = {"machine": cuda.info()}
        options.json.write_text(json.dumps([machine, *records], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
