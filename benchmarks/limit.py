"""What the machine can do at most, measured on the spot by a program that prints it.

For the CPU that is `limit.cc`: fused multiply-adds in registers, and copies. For a GPU it is this
file, in a process of its own, with which its memory goes: square matrices that cublasLt multiplies
by the fastest of its algorithms, and copies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from runner import worker_environment

# Floating-point operations a second by what they are computed in, and under "copy" the bytes a
# second, read and written, in copying memory beyond the caches.
Limit = Mapping[str, float]

_SOURCE = Path(__file__).with_suffix(".cc")
_SIZE = 8192
_AT_ONCE = 4  # calls, so that waiting for the last one does not count


def _compiled(folder: str) -> list[str]:
    """Compile the program for the CPU, and return how it is called."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler was found")
    program = str(Path(folder, "limit"))
    options = ["-std=c++17", "-O3", "-march=native", "-pthread"]
    command = [*compiler.split(), *options, str(_SOURCE), "-o", program]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return [program]


# What to call, by device, with a number of threads and seconds for each figure.
_PROGRAMS: dict[str, Callable[[str], list[str]]] = {
    "cpu": _compiled,
    "gpu": lambda _: [sys.executable, __file__],
}


def measure_limits(
    threads: set[int], seconds: float, device: str
) -> tuple[dict[int, Limit], str | None]:
    """Run the program for the device with each number of threads.

    Returns
    -------
    limits, problem
        By number of threads; none of them, and why, where the program cannot run.
    """
    limits = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = _PROGRAMS[device](folder)
            for count in sorted(threads):
                run = subprocess.run(
                    [*program, str(count), str(seconds)],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=worker_environment(count, device),
                )
                limits[count] = json.loads(run.stdout)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            return {}, f"the machine's limit is not measured: {str(why).strip()[-500:]}"
    return limits, None


def higher(first: Mapping[int, Limit], second: Mapping[int, Limit]) -> dict[int, Limit]:
    """Return the higher of two measurements; a busy machine can only make them too low."""
    return {
        count: {name: max(rate, second[count][name]) for name, rate in first[count].items()}
        for count in first.keys() & second.keys()
    }


def measure_gpu(cuda: ModuleType, seconds: float, size: int) -> Limit:
    """Multiply square matrices by the CUDA kernels' module, and copy them."""
    from cuda_kernels import DTYPES, Kernels

    def shortest(run: Callable[[], object]) -> float:
        """Return the time of a call, after one in which algorithms are chosen."""
        run()
        cuda.synchronize()
        times: list[float] = []
        while sum(times) < seconds or not times:
            start = time.perf_counter()
            for _ in range(_AT_ONCE):
                run()
            cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times) / _AT_ONCE

    rates = {}
    for dtype in DTYPES:
        kernels = Kernels(cuda, dtype)
        matrix = kernels.array(size, size)
        rates[dtype] = 2 * size**3 / shortest(kernels.matmul(matrix, matrix))
    matrix = Kernels(cuda, "float64").array(size, size)
    return {**rates, "copy": 2 * 8 * size**2 / shortest(matrix.copy)}


if __name__ == "__main__":
    from cuda_kernels import load

    print(json.dumps(measure_gpu(load("gpu"), float(sys.argv[2]), _SIZE)))
