"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from limit import Limit
from runner import Plan, worker_environment

_PACKAGES = (
    "stopgrad_op",
    "tensorflow",
    "tensorflow-cpu",
    "tf-nightly",
    "tf-nightly-cpu",
    "keras",
    "torch",
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cublas-cu12",
    "nvidia-cublas",
    "triton",
    "numpy",
)
# Environment variables that choose kernels or threads, and so the result.
_CHOOSERS = (
    "OPENBLAS_CORETYPE",
    "STOPGRAD_",
    "MKL_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "ONEDNN_",
    "DNNL_",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "LD_PRELOAD",
    "CUBLAS",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "TF_GPU_",
)
# What nvidia-smi is asked.
_ABOUT_GPU = ("name", "compute_cap", "memory.total", "clocks.max.sm", "clocks.sm", "driver_version")


def available_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def chooser_variables() -> dict[str, str]:
    """Return the environment variables that change what is measured."""
    return {name: value for name, value in os.environ.items() if name.startswith(_CHOOSERS)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    name = fields.get("model name", platform.machine())
    wide = [flag for flag in ("avx2", "fma", "avx512f") if flag in fields.get("flags", "").split()]
    family = f"family {fields.get('cpu family')} model {fields.get('model')}"
    return ", ".join([name, family, *wide])


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions.setdefault("stopgrad_op", "from a build folder")
    return versions


def describe_gpu() -> dict[str, str]:
    """Return what nvidia-smi says of the GPU that workers see; nothing where it is not there."""
    number = worker_environment(1, "gpu")["CUDA_VISIBLE_DEVICES"].partition(",")[0]
    query = f"--query-gpu={','.join(_ABOUT_GPU)}"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--id={number}", query, "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(_ABOUT_GPU, answer.strip().split(", "), strict=True))


def describe(plan: Plan, quick: bool, threads: int, device: str) -> dict[str, Any]:
    """Return machine, versions, and how long was measured. The limits come later."""
    return {
        "device": device,
        "gpu": describe_gpu() if device == "gpu" else {},
        "processor": _processor(),
        "processors": available_threads(),
        "threads": threads,
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "plan": asdict(plan),
        "versions": _versions(),
        "environment": chooser_variables(),
    }


def limits_as_json(limits: Mapping[int, Limit]) -> dict[str, Limit]:
    """Return the limits by number of threads, as JSON has keys."""
    return {str(threads): limit for threads, limit in limits.items()}
