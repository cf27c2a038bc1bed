"""How the tests of the command line run it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def run_command(tmp_path_factory):
    """Run `python -m stopgrad_op` in an empty folder, so that no checkout stands on its path."""

    def run(*arguments, **environ):
        return subprocess.run(
            [sys.executable, "-m", "stopgrad_op", *arguments],
            cwd=tmp_path_factory.mktemp("empty"),
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
