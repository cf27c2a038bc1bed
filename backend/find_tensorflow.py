"""Find the TensorFlow to build against and say what the build needs to know of it.

As a script it prints one JSON object, which CMake reads; the build hooks import it. It uses the
standard library only, because it runs before anything is installed. Which versions are supported
stands here and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The oldest and newest minor versions that are tested. A nightly after the newest is tried: whether
# it works shows when it compiles. A release after the newest is refused: there is no test of it.
OLDEST = (2, 19)
NEWEST = (2, 21)

# Every name under which TensorFlow is distributed; all of them provide the module `tensorflow`.
DISTRIBUTIONS = (
    "tensorflow",
    "tensorflow-cpu",
    "tf-nightly",
    "tf-nightly-cpu",
    "tensorflow-rocm",
    "tf-nightly-rocm",
    "tensorflow-cpu-aws",
    "tf-nightly-cpu-aws",
    "intel-tensorflow",
)


class TensorFlowError(Exception):
    """TensorFlow is absent or cannot be built against; the message is one line for the user."""


class NoTensorFlowError(TensorFlowError):
    """No distribution of TensorFlow is installed."""


def version_range() -> str:
    """Return the supported releases as a version specifier, `>=2.19,<2.22`."""
    return f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"


def check_supported(distribution: str, version: str) -> None:
    """Raise TensorFlowError unless this version can be built against."""
    match = re.match(r"(\d+)\.(\d+)", version)
    minor = (int(match[1]), int(match[2])) if match else (0, 0)
    nightly = "dev" in version
    if minor >= OLDEST and (minor <= NEWEST or nightly):
        return
    age = "old" if minor < OLDEST else "new"
    # Who has a nightly gets a newer nightly: releases of it do not exist.
    requirement = f"--upgrade {distribution}" if nightly else f"'{distribution}{version_range()}'"
    raise TensorFlowError(
        f"{distribution} {version} is too {age} for this stopgrad_op, which supports TensorFlow"
        f" {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}. Type: pip install {requirement}"
    )


@dataclass(frozen=True)
class Place:
    """A Python and the environment variables under which to ask it what it can import."""

    python: str
    environ: dict[str, str]

    def run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run code there; it finds the arguments in sys.argv[1:]."""
        # `python -c` puts the working directory on the path, and what lies there is not installed.
        code = "import sys; sys.path = [p for p in sys.path if p]\n" + code
        return subprocess.run(
            [self.python, "-c", code, *arguments],
            env={**self.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def places() -> Iterator[Place]:
    """Yield where TensorFlow may be, the place that decides first."""
    # What this very process can import: the environment itself, or under build isolation what the
    # build asked for.
    yield Place(sys.executable, dict(os.environ))
    # pip isolates a build by hiding site-packages, through PYTHONPATH; sys.prefix stays the
    # environment that is installed into. Without pip's variables it is all visible again.
    hiding = ("PYTHONPATH", "PYTHONNOUSERSITE")
    visible = {name: value for name, value in os.environ.items() if name not in hiding}
    yield Place(sys.executable, visible)
    if in_throwaway_environment() and (python := active_python()):
        yield Place(str(python), visible)


def in_throwaway_environment() -> bool:
    """Whether this build runs in a virtual environment of its own and is for another one.

    So it is under uv, `build` and pip's `venv-isolation`, which do not say which the other one is.
    """
    return re.search(r"build-env-|builds-v\d", sys.prefix) is not None


def target_is_unknown() -> bool:
    """Whether the result goes into an environment whose TensorFlow cannot be looked for.

    `build` installs nothing, so with it any TensorFlow will do.
    """
    installs = re.search(r"pip-build-env-|builds-v\d", sys.prefix) is not None
    return installs and active_python() is None


def active_python() -> Path | None:
    """Return the Python of the activated environment: the one that stands first on PATH."""
    program = "python"
    for folder in map(Path, os.environ.get("PATH", "").split(os.pathsep)):
        environment = folder.parent
        known = (environment / "pyvenv.cfg").exists() or (environment / "conda-meta").exists()
        if known and (folder / program).exists() and not environment.samefile(sys.prefix):
            return folder / program
    return None


@dataclass(frozen=True)
class Installed:
    """A distribution of TensorFlow and the place that has it."""

    distribution: str
    version: str
    place: Place


# Prints the first of the distributions in argv that is installed, and its version. Another Python
# than the one that builds is of no use, so it says nothing.
_LIST = """
import importlib.metadata
for name in sys.argv[2:] if sys.argv[1] == "%d.%d" % sys.version_info[:2] else ():
    try:
        print(name, importlib.metadata.version(name))
        break
    except importlib.metadata.PackageNotFoundError:
        pass
"""


def locate() -> Installed:
    """Return the TensorFlow to build against, without importing it.

    Raises
    ------
    NoTensorFlowError
        There is none.
    TensorFlowError
        There is one that is too old or too new.
    """
    tag = "{}.{}".format(*sys.version_info)
    for place in places():
        words = place.run(_LIST, tag, *DISTRIBUTIONS).stdout.split()
        if len(words) == 2:
            check_supported(words[0], words[1])
            return Installed(words[0], words[1], place)
    raise NoTensorFlowError(
        "there is no TensorFlow to build against. Type: pip install"
        f" 'tensorflow{version_range()}', or set STOPGRAD_TENSORFLOW=OFF to build the kernels alone"
    )


# The flags hold what the headers were compiled with; the paths are left to CMake.
_DESCRIBE = """
import json
import tensorflow as tf
flags = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
standards = [flag for flag in flags if "std=c++" in flag]
print("\\n" + json.dumps({
    "version": tf.version.VERSION,
    "include_dir": tf.sysconfig.get_include(),
    "compile_flags": [flag for flag in flags if flag not in standards],
    "cxx_standard": int(standards[0].rpartition("+")[2]) if standards else 17,
    "library_dir": tf.sysconfig.get_lib(),
}))
"""


def describe() -> dict[str, object]:
    """Import TensorFlow in a process of its own and return what CMake needs to know of it.

    Raises
    ------
    TensorFlowError
        There is none, it is not supported, or it cannot be imported.
    """
    installed = locate()
    probe = installed.place.run(_DESCRIBE)
    if probe.returncode != 0:
        raise TensorFlowError(
            f"{installed.distribution} {installed.version} is installed but cannot be imported:"
            f" {_last_words(probe)}. Type: pip install --force-reinstall"
            f" {installed.distribution}=={installed.version}"
        )
    facts: dict[str, object] = json.loads(probe.stdout.splitlines()[-1])
    folder = Path(str(facts.pop("library_dir")))
    return {
        "distribution": installed.distribution,
        **facts,
        "framework_library": _library(folder, "tensorflow_framework"),
        "cc_library": _library(folder, "tensorflow_cc"),
    }


def _library(folder: Path, name: str) -> str:
    library = folder / f"lib{name}.so.2"
    if not library.exists():
        raise TensorFlowError(f"the TensorFlow in {folder} has no {library.name} to build against")
    return str(library)


def _last_words(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode < 0:
        # TensorFlow's wheels need AVX; a machine without it kills the import with SIGILL.
        return f"the process died of {signal.Signals(-process.returncode).name}"
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else f"exit status {process.returncode}"


def main() -> int:
    """Print what CMake needs to know as JSON, or one line that says why not.

    With `--supported`, print the supported releases as a version specifier.
    """
    if sys.argv[1:] == ["--supported"]:
        print(version_range())
        return 0
    try:
        print(json.dumps(describe()))
    except TensorFlowError as error:
        print(f"stopgrad_op: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
