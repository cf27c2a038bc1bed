"""The command line, but for the demo."""

from __future__ import annotations

import pytest

import stopgrad_op as sg
from stopgrad_op import __main__ as command_line

needs_tensorflow = pytest.mark.skipif(
    sg.build_info()["tensorflow"] is None, reason="a build without TensorFlow"
)


@needs_tensorflow
def test_info_says_what_was_built_and_what_runs(run_command):
    import tensorflow as tf

    result = run_command("info")
    assert result.returncode == 0, result.stderr
    assert f"running on    TensorFlow {tf.version.VERSION}, Python 3." in result.stdout
    assert "built for     TensorFlow 2." in result.stdout
    assert f"instructions  {sg.build_info()['instructions']}" in result.stdout


def test_info_works_without_tensorflow(monkeypatch, capsys):
    built = {**command_line.build_info(), "tensorflow": None, "tensorflow_distribution": None}
    monkeypatch.setattr(command_line, "build_info", lambda: built)
    assert command_line.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "built for     no TensorFlow; stopgrad_op._kernels only\n" in printed
    assert "running on    Python 3." in printed


def test_demo_without_tensorflow_says_what_to_type(monkeypatch, capsys):
    def load_ops():
        raise ImportError("built without TensorFlow; type this")

    monkeypatch.setattr(command_line, "load_ops", load_ops)
    assert command_line.main(["demo"]) == 1
    assert capsys.readouterr().err == "built without TensorFlow; type this\n"


def test_unknown_command_is_refused(run_command):
    result = run_command("demos")
    assert result.returncode == 2
    assert "invalid choice: 'demos'" in result.stderr
