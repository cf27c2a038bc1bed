"""Tests that need a GPU in TensorFlow; elsewhere they are skipped, with the reason."""

from __future__ import annotations

import pytest
import tensorflow as tf

from stopgrad_op._library import load_gpu


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU")
    assert load_gpu() is None, load_gpu()
