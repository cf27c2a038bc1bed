"""That each peer computes what the table says of gradients of which a part is switched off.

The reference is NumPy. Peers that are not installed are skipped.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import peers
import stopgrad_op as sg
from agreement import disagreement
from stopgrad_op._library import load_xla
from workloads import Case, Layer, Part, make_arrays

pytestmark = pytest.mark.skipif(
    sg.build_info()["tensorflow"] is None, reason="a build without TensorFlow"
)

CONTROLS = {
    "columns": {"trainable": Part("columns", 0.4)},
    "no columns": {"trainable": Part("columns", 0)},
    "columns by index": {"trainable": Part("columns", 0.5, by_index=True)},
    "rows": {"trainable": Part("rows", 0.3)},
    "rows by index": {"trainable": Part("rows", 0.5, by_index=True)},
    "half of the output rows": {"active_rows": 0.5},
    "no output rows": {"active_rows": 0.0},
    "scale 0 on the weights": {"gradient_scale": 0.0, "scaled": "weights"},
    "scale -2 on the weights": {"gradient_scale": -2.0, "scaled": "weights"},
    "scale 0 on all": {"gradient_scale": 0.0},
    "scale 0.5 on all": {"gradient_scale": 0.5},
    "all together": {
        "trainable": Part("columns", 0.5),
        "active_rows": 0.5,
        "gradient_scale": -0.5,
    },
}
PEERS = [name for name, entry in peers.PEERS.items() if name not in ("keras", "numpy")]


@functools.cache
def load(name):
    # Once, because PyTorch takes its number of threads once.
    return peers.load(name, 1)


def modes(name):
    """Return a peer's modes, without XLA's where this package's library for it is left out."""
    lacks_xla = name == "stopgrad_op" and load_xla() is not None
    return [mode for mode in peers.PEERS[name].modes if mode != "xla" or not lacks_xla]


@pytest.fixture(autouse=True)
def _leave_threads_alone(monkeypatch):
    # TensorFlow's cannot be changed any more when tests before these have used it.
    from peers import _on_tensorflow

    monkeypatch.setattr(_on_tensorflow, "use_threads", lambda _: None)


def make_case(control):
    return Case("", "", "gradients", (12, 10), (Layer((10, 8), **control),), x_learns=True)


def due(case):
    """Return what stock TensorFlow's formulas give, by the hand."""
    arrays, layer = make_arrays(case), case.layers[0]
    x, w, upstream = arrays.x, arrays.weights[0], arrays.upstream
    scale = 1 if layer.gradient_scale is None else layer.gradient_scale
    if arrays.active[0] is not None:
        upstream = upstream * arrays.active[0][:, np.newaxis]
    dx = upstream @ w.T * (scale if layer.scaled == "all" else 1)
    dw = x.T @ upstream * scale
    if arrays.learning[0] is not None:
        dw = dw * arrays.learning[0]
    return {"y": x @ w, "dx": dx, "dw0": dw}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("name", PEERS)
def test_peer_switches_off_what_the_case_says(name, control):
    pytest.importorskip(peers.PEERS[name].package)
    case = make_case(control)
    for mode in modes(name):
        found = load(name).build(case, mode, make_arrays(case)).results()
        assert disagreement(due(case), found, "float32") is None


@pytest.mark.parametrize(
    ("option", "control"),
    [
        ("trainable", "columns"),
        ("trainable", "rows by index"),
        ("gradient_rows", "half of the output rows"),
        ("gradient_scale", "scale 0 on the weights"),
        ("gradient_scale", "scale 0.5 on all"),
    ],
)
def test_package_that_forgets_an_option_does_not_agree(monkeypatch, option, control):
    def forgetful(*arguments, **options):
        del options[option]
        return matmul(*arguments, **options)

    matmul = sg.matmul
    monkeypatch.setattr(sg, "matmul", forgetful)
    case = make_case(CONTROLS[control])
    found = load("stopgrad_op").build(case, "eager", make_arrays(case)).results()
    assert disagreement(found, due(case), "float32") is not None


@pytest.mark.parametrize(
    ("name", "mode", "compiled"),
    [
        ("stopgrad_op", "function", False),
        ("stopgrad_op", "xla", True),
        ("tf-function", "function", False),
        ("tf-xla", "function", True),
        ("tf-xla", "xla", True),
    ],
)
def test_xla_compiles_all_in_its_mode_and_one_peer_beside_a_function(
    monkeypatch, name, mode, compiled
):
    import tensorflow as tf

    def function(*arguments, jit_compile, **options):
        asked.append(jit_compile)
        return tensorflow_function(*arguments, jit_compile=jit_compile, **options)

    asked, tensorflow_function = [], tf.function
    monkeypatch.setattr(tf, "function", function)
    case = make_case({})
    load(name).build(case, mode, make_arrays(case))
    assert mode in peers.PEERS[name].modes
    assert asked == [compiled]


def test_layers_of_keras_have_no_part_that_learns():
    keras_layers = load("keras")
    assert keras_layers.supports(make_case({}))
    assert not any(keras_layers.supports(make_case(control)) for control in CONTROLS.values())
