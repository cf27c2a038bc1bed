"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from limit import Limit
from runner import Plan

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
)


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


def describe(plan: Plan, quick: bool, threads: int) -> dict[str, Any]:
    """Return machine, versions, and how long was measured. The limits come later."""
    return {
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


def limits_as_json(limits: dict[int, Limit]) -> dict[str, dict[str, float]]:
    """Return the limits by number of threads, as JSON has keys."""
    return {str(threads): asdict(limit) for threads, limit in limits.items()}
