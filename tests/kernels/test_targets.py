"""The kernels are compiled for several instruction sets; one machine runs one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS_OF_PRODUCTS = (
    "test_blocking.py",
    "test_control.py",
    "test_float16.py",
    "test_products.py",
)
TESTS = ("test_activation_accuracy.py", "test_activations.py", *TESTS_OF_PRODUCTS)
CASES = [
    *((target, file, "") for target in ("baseline", "avx2", "avx512") for file in TESTS),
    # This target differs from avx512 in the products of bfloat16 alone.
    *(("avx512_bf16", file, "bfloat16 or nothing_is_read") for file in TESTS_OF_PRODUCTS),
]


@pytest.mark.parametrize(("target", "file", "which"), CASES)
def test_kernels_of_every_target_pass_the_same_tests(target: str, file: str, which: str) -> None:
    """The best target that the machine has is the one that all other tests run on."""
    folder = Path(__file__).parent
    environment = {
        **os.environ,
        "STOPGRAD_INSTRUCTION_SET": target,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    script = "from stopgrad_op import _kernels; print(_kernels.build_info()['instructions'])"
    chosen = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    if chosen.stdout.strip() != target:
        pytest.skip(f"this machine does not have {target}")
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-k", which),
            str(folder / file),
        ],
        cwd=folder.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout
