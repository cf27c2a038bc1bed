"""That the README's example does what it says there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stopgrad_op as sg

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(sg.build_info()["tensorflow"] is None, reason="a build without TensorFlow")
def test_example_in_the_readme_prints_what_it_says(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    gradients, stats = result.stdout.splitlines()
    assert gradients == "[True, True, False]"
    assert "'forward': {'products': 2," in stats
    assert "'backward': {'products': 1," in stats

    unblocked = example.replace(", stop_gradient=True", "")
    result = subprocess.run(
        [sys.executable, "-c", unblocked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "'backward': {'products': 3," in result.stdout
