"""Measure the CUDA kernels alone, on one GPU, beside PyTorch where that is installed.

Products as a share of PyTorch's time, the passes as a share of a copy's bandwidth, the backward
pass in products. Each time is the median of several runs, taken in turn with what it is compared
with, of as many calls as take some milliseconds. `--device emulated` shows that the script works
where there is no GPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import statistics
import sys
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
            run()
        self._cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    def medians(self, runs: dict[str, Run]) -> dict[str, float]:
        """Return the median time of each, all taken in turn."""
        calls = {}
        for name, run in runs.items():
            self._once(run, 1)  # algorithms are chosen, kernels loaded
            calls[name] = max(1, int(self._seconds / max(1e-7, self._once(run, 3))))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self._rounds):
            for name, run in runs.items():
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
        """Return random numbers on the device."""
        values = self._rng.standard_normal(shape, np.float32)
        if self.dtype == "bfloat16":
            import ml_dtypes

            return self._cuda.to_device(values.astype(ml_dtypes.bfloat16))
        return self._cuda.to_device(values.astype(self.dtype))

    def matmul(self, *arrays: Any, **options: Any) -> Run:
        """Return a call of the forward pass."""
        return lambda: self._cuda.matmul(*arrays, **self._options, **options)

    def gradient(self, *arrays: Any, **options: Any) -> Run:
        """Return a call of the backward pass."""
        return lambda: self._cuda.matmul_gradient(*arrays, **self._options, **options)


def pytorch() -> Any:
    """Return PyTorch if it is there and sees a GPU."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def measure_products(
    cuda: ModuleType, clock: Clock, sizes: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Time bare products, ours and PyTorch's."""
    torch = pytorch()
    records = []
    for dtype in DTYPES:
        kernels = Kernels(cuda, dtype)
        if torch is not None:
            torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        for m, n, k in sizes:
            a, b = kernels.array(m, k), kernels.array(k, n)
            runs = {"stopgrad_op": kernels.matmul(a, b)}
            if torch is not None:
                x, y = torch.from_dlpack(a), torch.from_dlpack(b)
                runs["torch"] = functools.partial(torch.matmul, x, y)
            records.append(
                {"suite": "products", "case": f"{m}x{n}x{k}", "dtype": dtype}
                | {"seconds": clock.medians(runs), "flops": 2 * m * n * k}
            )
    return records


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

    runs = {
        "product": kernels.matmul(a, b),
        "forward": kernels.matmul(a, b, bias, activation="gelu", return_preactivation=True),
        "backward": backward("a", "b", "bias"),
        "backward, a blocked": backward("b", "bias"),
        "backward, b and bias blocked": backward("a"),
    }
    case = {"suite": "step", "case": f"{rows}x{cols}x{inner}", "dtype": "bfloat16"}
    return [case | {"seconds": clock.medians(runs)}]


def measure_passes(cuda: ModuleType, clock: Clock, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Time the elementwise kernels beside a copy of the same bytes."""
    rows, cols = shape
    records = []
    for dtype in ("bfloat16", "float32"):
        kernels = Kernels(cuda, dtype)
        dy, saved = kernels.array(rows, cols), kernels.array(rows, cols)
        runs = {
            # One tensor read, one written.
            "copy": dy.copy,
            # Two read, one written.
            "dz": kernels.gradient(dy, saved=saved, needed=["z"], activation="gelu"),
            "dz and dbias": kernels.gradient(
                dy, saved=saved, needed=["z", "bias"], activation="gelu"
            ),
            # One read.
            "dbias": kernels.gradient(dy, needed=["bias"]),
        }
        case = {"suite": "passes", "case": f"{rows}x{cols}", "dtype": dtype}
        records.append(case | {"seconds": clock.medians(runs)})
    return records


# How many tensors each pass reads and writes.
TRAFFIC = {"copy": 2, "dz": 3, "dz and dbias": 3, "dbias": 1}


def report(records: list[dict[str, Any]]) -> str:
    """Return the records as tables for a person."""
    lines = []
    for record in records:
        seconds = record["seconds"]
        lines.append(f"{record['suite']} {record['case']} {record['dtype']}")
        for name, value in seconds.items():
            text = f"  {name:<30}{value * 1e6:12.1f} us"
            if record["suite"] == "products":
                ratio = seconds.get("torch", value) / seconds["stopgrad_op"]
                text += f"  {record['flops'] / value / 1e12:8.1f} TFLOP/s, torch / ours {ratio:.3f}"
            elif record["suite"] == "step":
                text += f"  {value / seconds['product']:8.3f} products"
            else:
                share = TRAFFIC[name] / value / (TRAFFIC["copy"] / seconds["copy"])
                text += f"  {share:8.3f} of the copy's bandwidth"
            lines.append(text)
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
    options = parser.parse_args(arguments)
    cuda = load(options.device)
    if options.quick:
        clock = Clock(cuda, rounds=1, seconds=0)
        products: Sequence[tuple[int, int, int]] = ((24, 16, 8),)
        step, shape = (24, 16, 8), (40, 24)
    else:
        clock = Clock(cuda, rounds=9, seconds=0.02)
        products, step, shape = PRODUCTS, STEP, PASS
    records = [
        *measure_products(cuda, clock, products),
        *measure_step(cuda, clock, step),
        *measure_passes(cuda, clock, shape),
    ]
    print(report(records))
    if options.json is not None:
        machine = {"machine": cuda.info()}
        options.json.write_text(json.dumps([machine, *records], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
