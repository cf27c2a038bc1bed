"""Run everything that needs a GPU and write one report: `make gpu-check`.

The tests of the kernels and of the CUDA library, under compute-sanitizer where that is installed,
the ops' tests where TensorFlow sees the GPU, the kernels' speed, and that of the ops beside others,
whose figures go to `benchmarks/results/gpu.*`. A step that cannot run says why; the exit status is
1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "gpu")
# Shared memory, barriers, lists and odd sizes, and no more: the tools slow down what they watch.
SANITIZED = (
    "tests/cuda/test_elementwise.py",
    "tests/cuda/test_arrays.py",
    "tests/kernels/test_control.py::test_compact_result_is_the_region_alone",
    "tests/kernels/test_control.py::test_matrices_of_a_batch_without_an_active_row",
)


@dataclass(frozen=True)
class Step:
    """A command, and what stands for it in the report; or why it cannot run."""

    name: str
    command: tuple[str, ...]
    missing: str = ""


def steps(quick: bool) -> list[Step]:
    """Return what to run on this machine."""
    sanitizer = shutil.which("compute-sanitizer")
    probe = "import tensorflow as tf; assert tf.config.list_physical_devices('GPU')"
    sees_none = subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode
    without_ops = "TensorFlow is not there or sees no GPU" if sees_none else ""
    without_sanitizer = "" if sanitizer else "there is no compute-sanitizer"
    found = [
        Step("machine", ("nvidia-smi",), "" if shutil.which("nvidia-smi") else "no nvidia-smi"),
        Step("info", (sys.executable, "-m", "stopgrad_op", "info")),
        Step("kernels", (*PYTEST, "tests/kernels", "tests/cuda")),
    ]
    for tool in ("memcheck", "racecheck"):
        command = (str(sanitizer), "--tool", tool, "--error-exitcode", "1", *PYTEST, *SANITIZED)
        found.append(Step(tool, command, without_sanitizer))
    ops = (*PYTEST, "tests/gpu", "tests/ops", "tests/xla")
    found.append(Step("ops", ops, without_ops))
    speed = (sys.executable, "benchmarks/cuda_kernels.py", *(("--quick",) if quick else ()))
    found.append(Step("speed", speed))
    bench = (sys.executable, "benchmarks/run.py", "--device", "gpu")
    found.append(Step("bench-quick", (*bench, "--quick"), without_ops))
    if not quick:
        files = {"--json": "json", "--report": "md"}
        if find_spec("matplotlib"):
            files["--plot"] = "png"
        written = (part for option, end in files.items() for part in (option, f"{RESULTS}.{end}"))
        found.append(Step("bench", (*bench, *written), without_ops))
    return found


def main() -> int:
    """Run the steps one after the other."""
    parser = argparse.ArgumentParser(description="Run everything that needs a GPU.")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "gpu-report.md")
    parser.add_argument("--only", nargs="*", help="names of steps: machine, info, kernels, ...")
    parser.add_argument("--quick", action="store_true", help="small sizes in the benchmarks")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    summary, details, failed = [], [], False
    for step in steps(options.quick):
        if options.only and step.name not in options.only:
            continue
        begin = time.monotonic()
        if step.missing:
            result, output = f"not run: {step.missing}", ""
        else:
            run = subprocess.run(
                step.command,
                cwd=ROOT,
                # TensorFlow would take all memory, of which its tests leave nothing to others.
                env={**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            failed = failed or run.returncode != 0
            result = "passed" if run.returncode == 0 else f"FAILED, exit status {run.returncode}"
            output = run.stdout
        line = f"| {step.name} | {result} | {time.monotonic() - begin:.0f} s |"
        print(line, flush=True)
        summary.append(line)
        details.append(f"## {step.name}\n\n```\n{output[-20000:]}\n```\n")
    options.report.parent.mkdir(parents=True, exist_ok=True)
    table = "\n".join(["| step | result | time |", "| --- | --- | --- |", *summary])
    options.report.write_text(
        f"# On a GPU, at {commit or 'an unknown commit'}\n\n{table}\n\n" + "\n".join(details)
    )
    print(f"report: {options.report}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
