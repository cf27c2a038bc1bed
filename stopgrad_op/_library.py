"""Load the compiled parts: the kernels, and the ops that TensorFlow runs or compiles them through.

A library of ops is tied to one minor version of TensorFlow and one C++ ABI. Both are compared
before the library is loaded, because the loader's own complaint would be an undefined symbol.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypedDict

REINSTALL = (
    "pip install --force-reinstall --no-deps --no-cache-dir <folder of stopgrad_op's source>"
)


class BuildInfo(TypedDict):
    """What this copy of stopgrad_op was built with."""

    version: str
    tensorflow: str | None
    tensorflow_distribution: str | None
    xla_missing: str | None
    cuda_missing: str | None
    cxx11_abi: int
    compiler: str
    instructions: str


@dataclass(frozen=True)
class TensorFlowAbi:
    """What must agree between the TensorFlow that was built for and the one that runs.

    Attributes
    ----------
    version
        As `tf.version.VERSION` spells it.
    cxx11_abi
        The value of `_GLIBCXX_USE_CXX11_ABI`: how `std::string` is laid out.
    """

    version: str
    cxx11_abi: int

    @property
    def interface(self) -> str:
        """The versions that share this one's C++ interface, as pip spells them.

        Releases of one minor version do, 2.21.0 and 2.21.1: `2.21.*`. A nightly,
        2.22.0-dev20260905, or a candidate, 2.21.0-rc1, shares it with nothing.
        """
        major, minor, patch = self.version.partition("+")[0].split(".", 2)
        return f"{major}.{minor}.*" if patch.replace(".", "").isdigit() else self.version


def check_compatible(built: TensorFlowAbi, running: TensorFlowAbi) -> None:
    """Raise ImportError, saying what to type, unless what was built can be loaded."""
    if built.interface != running.interface:
        raise ImportError(
            f"stopgrad_op was built for TensorFlow {built.version} and TensorFlow"
            f" {running.version} is running. Build it again for this one: {REINSTALL}"
        )
    if built.cxx11_abi != running.cxx11_abi:
        raise ImportError(
            f"stopgrad_op was built with the C++ ABI _GLIBCXX_USE_CXX11_ABI={built.cxx11_abi} and"
            f" the TensorFlow {running.version} that is running with {running.cxx11_abi}."
            f" Build it again for this one: {REINSTALL}"
        )


# Beside the kernels.
OPS_LIBRARY = "libstopgrad_ops.so"
XLA_LIBRARY = "libstopgrad_xla.so"
GPU_LIBRARY = "libstopgrad_gpu.so"


@cache
def load_kernels() -> ModuleType:
    """Return `stopgrad_op._kernels`, the kernels on NumPy arrays, which need no TensorFlow."""
    import stopgrad_op

    # In a checkout the source folder comes first on the path, and nothing is compiled there. The
    # compiled parts are then those of the installed package, wherever that is.
    stopgrad_op.__path__ = pkgutil.extend_path(stopgrad_op.__path__, stopgrad_op.__name__)
    try:
        return importlib.import_module("stopgrad_op._kernels")
    except ModuleNotFoundError as error:
        if error.name != "stopgrad_op._kernels":
            raise
        raise ImportError(
            f"stopgrad_op in {Path(__file__).parent} has no compiled kernels for Python"
            f" {sys.version_info.major}.{sys.version_info.minor}: it is not installed, or was"
            " installed for another Python. In the folder of its source, type: pip install ."
        ) from error


def build_info() -> BuildInfo:
    """Return what this copy was built with, and which instructions it uses on this machine."""
    info: BuildInfo = load_kernels().build_info()
    return info


@cache
def load_ops() -> ModuleType:
    """Check that the ops fit the TensorFlow that runs, load them, and return their module."""
    built = build_info()
    if built["tensorflow"] is None:
        raise ImportError(
            "this stopgrad_op was built without TensorFlow (STOPGRAD_TENSORFLOW=OFF) and has"
            f" stopgrad_op._kernels only. Build it with TensorFlow installed: {REINSTALL}"
        )
    built_abi = TensorFlowAbi(built["tensorflow"], built["cxx11_abi"])
    # Not at the head of this module: the kernels alone need no TensorFlow.
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise ImportError(
            f"stopgrad_op was built for TensorFlow {built_abi.version}, and there is none. Type:"
            f" pip install '{built['tensorflow_distribution']}=={built_abi.interface}'"
        ) from error
    check_compatible(built_abi, TensorFlowAbi(tf.version.VERSION, int(tf.sysconfig.CXX11_ABI_FLAG)))
    path = _path_of(OPS_LIBRARY)
    if not path.exists():
        raise ImportError(f"stopgrad_op has lost its ops, {path}. Install it again: {REINSTALL}")
    ops: ModuleType = tf.load_op_library(str(path))
    load_xla()
    load_gpu()
    return ops


@cache
def load_xla() -> str | None:
    """Let XLA compile the ops.

    Returns
    -------
    str or None
        Why it cannot; the ops run without it.
    """
    return build_info()["xla_missing"] or _load(XLA_LIBRARY)


class CudaInfo(TypedDict):
    """What the CUDA kernels find on this machine; what is missing is empty where nothing is."""

    devices: list[str]
    devices_missing: str
    driver: int
    runtime: int
    cublas_lt: str
    cublas_lt_missing: str
    architectures: str


def cuda_info() -> CudaInfo | None:
    """Return what there is to run the CUDA kernels on, or None where they were not built."""
    if build_info()["cuda_missing"]:
        return None
    info: CudaInfo = load_kernels().cuda.info()
    return info


@cache
def load_gpu() -> str | None:
    """Let TensorFlow run the ops on its GPUs.

    Returns
    -------
    str or None
        Why it cannot; the ops run on the CPU then.
    """
    if missing := build_info()["cuda_missing"]:
        return missing
    # Of a machine without a driver nothing is asked. TensorFlow then looks before anything else is
    # loaded: it has to find its own libraries.
    if not load_kernels().cuda.driver():
        return "there is no NVIDIA driver"
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return "TensorFlow sees no GPU"
    info = cuda_info()
    assert info is not None
    # A kernel that is there is used, and would fail where the ops could have run on the CPU.
    return info["devices_missing"] or info["cublas_lt_missing"] or _load(GPU_LIBRARY)


def _load(library: str) -> str | None:
    """Load a library of kernels beside the ops and return why that failed, if it did."""
    import tensorflow as tf

    path = _path_of(library)
    try:
        tf.load_library(str(path))
    except (OSError, tf.errors.OpError) as error:
        return f"{path} cannot be loaded: {str(error).splitlines()[0]}"
    return None


def _path_of(library: str) -> Path:
    return Path(str(load_kernels().__file__)).with_name(library)
