"""What the wheel requires: NumPy, and the very TensorFlow that it was built against."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import find_tensorflow

NUMPY = "numpy>=1.26"


def is_on(option: str) -> bool:
    """Whether an option of the build, which the hooks settle, is on as CMake reads it."""
    value = os.environ.get(option, "ON")
    return value.upper() not in ("", "0", "OFF", "NO", "N", "FALSE", "IGNORE")


def wants_tensorflow() -> bool:
    """Whether this build includes the TensorFlow ops."""
    return is_on("STOPGRAD_TENSORFLOW")


def tensorflow_requirement(distribution: str, version: str) -> str:
    """Return the requirement of a wheel built against this TensorFlow.

    Patch releases keep TensorFlow's C++ interface, minor releases do not, and a nightly or a
    release candidate is like nothing but itself. Naming the distribution keeps pip from adding
    `tensorflow` beside `tensorflow-cpu`: both would own the same files.
    """
    match = re.fullmatch(r"(\d+\.\d+)(?:\.\d+)*(?:\.post\d+)?(?:\+.*)?", version)
    return f"{distribution}=={match[1]}.*" if match else f"{distribution}=={version}"


class Dependencies:
    """Provider of the dynamic field `dependencies`, named in pyproject.toml."""

    def __init__(self) -> None:
        self._state = ""

    def build_state(self, state: str) -> None:
        """Remember which kind of build this is; scikit-build-core calls it first."""
        self._state = state

    def dynamic_wheel(self, settings: Mapping[str, Any]) -> dict[str, bool]:
        """Say that a source distribution does not know yet what its wheel will require."""
        return {"dependencies": True}

    def dynamic_metadata(
        self, settings: Mapping[str, Any], project: Mapping[str, Any]
    ) -> dict[str, list[str]]:
        """Return the field `dependencies`."""
        if self._state == "sdist" or not wants_tensorflow():
            return {"dependencies": [NUMPY]}
        found = find_tensorflow.locate()
        return {"dependencies": [NUMPY, tensorflow_requirement(found.distribution, found.version)]}
