"""What the machine can do at most, measured on the spot by `limit.cc`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".cc")
# In which units a dtype's products run. 16-bit types have instructions of their own on some
# processors, and integers no fused multiply-add; neither has a limit here.
_RUNS_IN = {
    "float32": "float32",
    "complex64": "float32",
    "float64": "float64",
    "complex128": "float64",
}


@dataclass(frozen=True)
class Limit:
    """Rates with a number of threads at work at once.

    Attributes
    ----------
    float32, float64
        Floating-point operations a second in fused multiply-adds.
    copy
        Bytes a second, read and written, in copying memory beyond the caches.
    """

    float32: float
    float64: float
    copy: float

    def peak(self, dtype: str) -> float | None:
        """Return the peak of a dtype, where it is known."""
        runs_in = _RUNS_IN.get(dtype)
        return None if runs_in is None else float(getattr(self, runs_in))


def measure_limits(threads: set[int], seconds: float) -> tuple[dict[int, Limit], str | None]:
    """Compile the program, and run it with each number of threads.

    Returns
    -------
    limits, problem
        By number of threads; none of them, and why, where there is no compiler.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return {}, "no C++ compiler was found, so the machine's limit is not measured"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "limit")
        options = ["-std=c++17", "-O3", "-march=native", "-pthread"]
        command = [*compiler.split(), *options, str(_SOURCE), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            return {}, f"the machine's limit is not measured: {why}"
        limits = {}
        for count in sorted(threads):
            run = subprocess.run(
                [program, str(count), str(seconds)], check=True, capture_output=True, text=True
            )
            limits[count] = Limit(**json.loads(run.stdout))
    return limits, None


def higher(first: dict[int, Limit], second: dict[int, Limit]) -> dict[int, Limit]:
    """Return the higher of two measurements; a busy machine can only make them too low."""
    return {
        count: Limit(
            *(
                max(getattr(limits[count], name) for limits in (first, second))
                for name in ("float32", "float64", "copy")
            )
        )
        for count in first.keys() & second.keys()
    }
