"""The examples run as they stand, and what they say about freezing is so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stopgrad_op as sg

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(
    sg.build_info()["tensorflow"] is None, reason="a build without TensorFlow"
)

CALL = """
import json, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
print(json.dumps(main(**json.loads(sys.argv[2]))))
"""


def run(cwd: Path, *arguments: str) -> str:
    # In a process of its own and elsewhere, as a user runs it.
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def returned(cwd: Path, name: str, **options: int) -> Any:
    """Return what the example's `main` returns."""
    output = run(cwd, "-c", CALL, str(EXAMPLES / name), json.dumps(options))
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_runs_and_prints_a_table(tmp_path: Path, path: Path) -> None:
    lines = run(tmp_path, str(path), "--steps", "2").splitlines()
    assert len(lines) >= 3
    assert "  " in lines[-1]


def test_reversed_gradient_helps_on_the_other_domain(tmp_path: Path) -> None:
    ((plain, adapted),) = returned(tmp_path, "domain_adversarial.py", steps=2000, seeds=1)
    assert adapted > plain + 0.03
    assert adapted > 0.8


def test_old_rows_are_the_same_where_they_are_kept(tmp_path: Path) -> None:
    results = returned(tmp_path, "new_rows.py", steps=30)
    assert len(results) == 4
    for name, (old_is_the_same, moved, first_loss, last_loss, gradient) in results.items():
        assert old_is_the_same == ("not kept" not in name)
        assert moved == 100
        assert last_loss < 0.9 * first_loss
        assert (gradient == "IndexedSlices") == ("IndexedSlices" in name)


def test_frozen_layer_runs_no_product(tmp_path: Path) -> None:
    results = returned(tmp_path, "freeze_schedule.py", steps=6)
    assert results == [[1, 3], [1, 3], [0, 2], [0, 2], [1, 3], [1, 3]]
