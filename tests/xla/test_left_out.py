"""A build that lacks the library for XLA: the ops run, and whoever asks for XLA is told why not.

TensorFlow 2.19 makes such a build; elsewhere the tests pretend to have one.
"""

from __future__ import annotations

import re

import pytest
import tensorflow as tf

import stopgrad_op as sg
from stopgrad_op import _library
from stopgrad_op._library import build_info, load_xla


def product() -> tf.Tensor:
    return sg.matmul(tf.ones((2, 3)), tf.ones((3, 2)))


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why the library is not there."""
    missing = load_xla()
    if missing is None:
        missing = "its headers were lost"
        monkeypatch.setattr(_library, "load_xla", lambda: missing)
    return missing


def test_the_error_says_why(left_out: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"jit_compile=True.*{re.escape(left_out)}"):
        tf.function(product, jit_compile=True)()


def test_what_is_not_compiled_runs(left_out: str) -> None:
    del left_out
    for run in (product, tf.function(product)):
        assert float(tf.reduce_sum(run())) == 12


def test_stock_ops_are_compiled_all_the_same(left_out: str) -> None:
    del left_out
    with sg.stock_ops():
        assert float(tf.reduce_sum(tf.function(product, jit_compile=True)())) == 12


def test_a_build_without_it_is_one_for_tensorflow_2_19() -> None:
    """So no other cause leaves it out unseen."""
    missing = build_info()["xla_missing"]
    assert missing is None or re.search(r"tensorflow.* 2\.19\..* lack llvm/", missing)
    assert (missing is None) == (not tf.version.VERSION.startswith("2.19."))


def test_a_library_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "build_info", lambda: {**build_info(), "xla_missing": None})
    monkeypatch.setattr(_library, "XLA_LIBRARY", "libstopgrad_xla.lost")
    assert "libstopgrad_xla.lost cannot be loaded" in str(load_xla.__wrapped__())
