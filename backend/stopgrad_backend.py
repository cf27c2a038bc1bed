"""PEP 517 and 660 hooks: scikit-build-core's, after a look at what is there to build with.

scikit-build-core does the work. These hooks add one thing: they settle which TensorFlow to build
against, and where something is missing they stop with one line that says what to type, before CMake
says it in fifty.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil

import find_cuda
import find_tensorflow
from stopgrad_metadata import wants_tensorflow

if importlib.util.find_spec("scikit_build_core") is None:
    # Only --no-build-isolation gets here: with isolation pip installs what pyproject.toml requires.
    raise SystemExit(
        "stopgrad_op: a build without isolation needs its tools in this environment."
        " Type: pip install scikit-build-core pybind11 cmake ninja"
    )

from scikit_build_core import build as _scikit_build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ConfigSettings = dict[str, str | list[str]] | None


def check_compiler() -> None:
    """Stop with one line if there is no C++ compiler."""
    chosen = shlex.split(os.environ.get("CXX", ""))[:1]
    if chosen and shutil.which(chosen[0]) is None:
        raise SystemExit(
            f"stopgrad_op: CXX={os.environ['CXX']} names a compiler that is not there."
            " Type: unset CXX"
        )
    if not chosen and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise SystemExit(
            "stopgrad_op: there is no C++17 compiler. Type: sudo apt-get install g++ (Debian,"
            " Ubuntu) or sudo dnf install gcc-c++ (Fedora)"
        )


def _settle_options(config_settings: ConfigSettings) -> None:
    # CMake gets the options from the same two places, see cmake.define in pyproject.toml; the
    # metadata provider sees only the environment.
    for option in ("STOPGRAD_TENSORFLOW", "STOPGRAD_CUDA"):
        for prefix in ("cmake.define.", "skbuild.cmake.define."):
            if prefix + option in (config_settings or {}):
                os.environ[option] = str((config_settings or {})[prefix + option])


def _requirements(config_settings: ConfigSettings) -> list[str]:
    check_compiler()
    _settle_options(config_settings)
    if not wants_tensorflow():
        return []
    wanted = os.environ.get("STOPGRAD_TENSORFLOW_REQUIREMENT")
    if wanted:
        distribution = re.split(r"[^\w.-]", wanted.strip(), maxsplit=1)[0]
        return [wanted, *find_cuda.requirements(distribution)]
    default = f"tensorflow{find_tensorflow.version_range()}"
    try:
        return find_cuda.requirements(find_tensorflow.locate().distribution)
    except find_tensorflow.NoTensorFlowError:
        if find_tensorflow.target_is_unknown():
            # Asking for one could put a second TensorFlow over the one that is there.
            raise SystemExit(
                "stopgrad_op: this installer does not say which environment it installs into, so"
                " the TensorFlow there cannot be seen. Activate that environment, or say which"
                f" TensorFlow it has: export STOPGRAD_TENSORFLOW_REQUIREMENT='{default}'"
            ) from None
        return [default, *find_cuda.requirements("tensorflow")]
    except find_tensorflow.TensorFlowError as error:
        raise SystemExit(f"stopgrad_op: {error}") from None


def _check(config_settings: ConfigSettings) -> None:
    check_compiler()
    _settle_options(config_settings)
    if wants_tensorflow():
        try:
            find_tensorflow.describe()
        except find_tensorflow.TensorFlowError as error:
            raise SystemExit(f"stopgrad_op: {error}") from None


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """Ask for what is missing: CMake, Ninja, TensorFlow, and where that uses GPUs, for nvcc."""
    requirements = _requirements(config_settings)
    return [*requirements, *_scikit_build.get_requires_for_build_wheel(config_settings)]


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    """Ask for what get_requires_for_build_wheel asks for."""
    requirements = _requirements(config_settings)
    return [*requirements, *_scikit_build.get_requires_for_build_editable(config_settings)]


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """Write the wheel's metadata."""
    _check(config_settings)
    return _scikit_build.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """Write the editable wheel's metadata."""
    _check(config_settings)
    return _scikit_build.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: ConfigSettings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel."""
    _check(config_settings)
    return _scikit_build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: ConfigSettings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel of an editable install."""
    _check(config_settings)
    return _scikit_build.build_editable(wheel_directory, config_settings, metadata_directory)
