"""The demo, run as a user runs it, and that its checks find what they should."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import stopgrad_op as sg
from stopgrad_op import __main__ as command_line

if sg.build_info()["tensorflow"] is None:
    pytest.skip("the demo needs TensorFlow", allow_module_level=True)
from stopgrad_op import _demo


@pytest.fixture(scope="module")
def demo(run_command):
    """Return a run of the demo."""
    return run_command("demo")


def test_demo_passes_and_shows_what_blocking_does(demo):
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for line in (
        "x [3, 2], its elements sum to 0.32864934",
        "after, TF1 graph in a tf.compat.v1.Session",
        "after, eager, with a tf.GradientTape",
        "after, in a tf.function",
        "w1 is still ones, bit for bit; w2 is 0.67135066 everywhere, bit for bit as",
        "The frozen w1 and b1 are the same, bit for bit.",
    ):
        assert line in demo.stdout
    # Three rows in each of three modes, ours beside stock's.
    assert demo.stdout.count(" ".join(["0.67135066"] * 4 + [""] + ["0.67135066"] * 4)) == 9
    (everything,) = (s for s in demo.stdout.splitlines() if s.startswith("everything learns"))
    (frozen,) = (s for s in demo.stdout.splitlines() if s.startswith("first layer frozen"))
    assert [everything.split()[i] for i in (2, 4)] == ["2", "3"]
    assert [frozen.split()[i] for i in (3, 5)] == ["2", "1"]
    assert max(map(len, demo.stdout.splitlines())) <= 100


def test_demo_without_scikit_learn_says_what_to_install(monkeypatch, capsys):
    # None in sys.modules: the import says that there is no such module.
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command_line.main(["demo"]) == 1
    printed = capsys.readouterr()
    assert "everywhere, bit for bit" in printed.out
    assert printed.err == (
        "demo failed: the second part needs scikit-learn; type: pip install 'stopgrad_op[demo]'\n"
    )


W2_AFTER = np.full_like(_demo.W2, 0.67135066)


def test_check_passes_weights_that_are_right():
    right = _demo.Weights(_demo.W1, W2_AFTER)
    assert _demo.check_step("eager", right, right) == []


def test_check_finds_a_blocked_weight_that_moved_by_one_unit_in_the_last_place():
    right = _demo.Weights(_demo.W1, W2_AFTER)
    w1 = _demo.W1.copy()
    w1[1, 2] = np.nextafter(w1[1, 2], np.float32(2))
    (wrong,) = _demo.check_step("eager", right._replace(w1=w1), right)
    assert wrong.startswith("eager: the blocked w1 moved from ones to [[1.0, 1.0, 1.0], [1.0, 1.0,")


def test_check_finds_a_w2_that_is_not_stocks():
    right = _demo.Weights(_demo.W1, W2_AFTER)
    w2 = np.nextafter(W2_AFTER, np.float32(1))
    (wrong,) = _demo.check_step("eager", right, right._replace(w2=w2))
    assert "stock TensorFlow's" in wrong


def test_check_finds_a_w2_that_is_not_the_blogs():
    both = _demo.Weights(_demo.W1, np.nextafter(W2_AFTER, np.float32(1)))
    (wrong,) = _demo.check_step("eager", both, both)
    assert wrong.endswith("and not 0.67135066 everywhere")


def test_demo_fails_where_nothing_is_blocked(monkeypatch, capsys):
    def learning(x, w1, w2):
        return sg.matmul(sg.matmul(x, w1), w2)

    monkeypatch.setattr(_demo, "blocked_in_the_op", learning)
    monkeypatch.setattr(_demo, "load_digits", lambda: None)
    monkeypatch.setattr(_demo, "demonstrate_training", lambda _: [])
    assert command_line.main(["demo"]) == 1
    errors = capsys.readouterr().err
    for mode in _demo.MODES:
        assert f"demo failed: {mode.name}: the blocked w1 moved" in errors


@pytest.fixture
def training():
    """Return what `check_training` gets after a training as it should be."""
    learned = {name: np.ones(2, np.float32) for name in ("w1", "b1", "w2", "b2")}
    final = {**learned, "w2": np.zeros(2, np.float32), "b2": np.zeros(2, np.float32)}
    changes = dict.fromkeys(learned, 0.5)
    trained = _demo.Stage(0.5, 0.94, changes, _demo.Work(2, 200, 3, 300))
    frozen = _demo.Stage(0.4, 0.95, changes, _demo.Work(2, 200, 1, 100))
    return {"learned": learned, "final": final, "trained": trained, "frozen": frozen}


def test_check_passes_a_training_that_is_right(training):
    assert _demo.check_training(**training) == []


@pytest.mark.parametrize(
    ("key", "change", "complaint"),
    [
        ("final", {"w1": np.zeros(2, np.float32)}, "the frozen w1 moved"),
        ("final", {"b1": np.zeros(2, np.float32)}, "the frozen b1 moved"),
        ("final", {"w2": np.ones(2, np.float32)}, "w2 did not move"),
        ("trained", {"accuracy": 0.5}, "accuracy is 0.500 after everything learned"),
        ("frozen", {"accuracy": 0.5}, "accuracy is 0.500 after the first layer was frozen"),
        ("frozen", {"loss": 0.5}, "the head learned nothing"),
        ("frozen", {"work": _demo.Work(2, 200, 3, 100)}, "backward ran 3 products a step"),
        ("frozen", {"work": _demo.Work(2, 200, 1, 300)}, "backward ran 300 flops a step"),
    ],
)
def test_check_finds_what_is_wrong_with_a_training(training, key, change, complaint):
    old = training[key]
    training[key] = {**old, **change} if isinstance(old, dict) else old._replace(**change)
    (wrong,) = _demo.check_training(**training)
    assert wrong.startswith(complaint)
