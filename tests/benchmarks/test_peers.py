"""That each peer computes what the table says of gradients of which a part is switched off.

The reference is NumPy. Peers that are not installed are skipped.
"""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest

import peers
import stopgrad_op as sg
from agreement import disagreement
from runner import ProcessWorker
from stopgrad_op import _library
from workloads import Case, Layer, Part, make_arrays, multiplied_in

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
    return peers.load(name, 1, "cpu")


def modes(name):
    """Return a peer's modes, without XLA's where this package's library for it is left out."""
    lacks_xla = name == "stopgrad_op" and _library.load_xla() is not None
    return [mode for mode in peers.PEERS[name].modes if mode != "xla" or not lacks_xla]


@pytest.fixture(autouse=True)
def _as_in_a_process_that_runs(monkeypatch):
    # Threads cannot be changed any more when tests before these have computed something.
    for name in ("_on_tensorflow", "pytorch"):
        if name == "_on_tensorflow" or peers.is_installed("torch"):
            module = importlib.import_module(f"peers.{name}")
            monkeypatch.setattr(module, "use_threads", lambda _: None)
    if peers.is_installed("torch"):
        import torch

        # All but the code that a compiler would take seconds for.
        compiled = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", compiled)


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


@pytest.fixture
def load_for_gpu(monkeypatch):
    """Load a peer whose GPU is this machine's processor, and a list of whose GPU is waited for."""
    restore = []

    def load_for_gpu(name):
        waits = []
        if name.startswith("torch"):
            from peers import pytorch

            precision = pytorch.torch.get_float32_matmul_precision()
            restore.append(lambda: pytorch.torch.set_float32_matmul_precision(precision))
            place = ("cpu", lambda: waits.append(name))
            monkeypatch.setitem(pytorch.DEVICES, "gpu", place)
        elif name == "jax":
            import jax

            from peers import jax_jit

            restore.append(lambda: jax.config.update("jax_default_matmul_precision", None))
            monkeypatch.setitem(jax_jit.PLATFORMS, "gpu", "cpu")
            block = jax.block_until_ready
            monkeypatch.setattr(jax, "block_until_ready", lambda y: waits.append(name) or block(y))
        else:
            import tensorflow as tf

            from peers import _on_tensorflow

            monkeypatch.setitem(_on_tensorflow.PLACES, "gpu", "CPU:0")
            sync = tf.test.experimental.sync_devices
            monkeypatch.setattr(
                tf.test.experimental, "sync_devices", lambda: waits.append(name) or sync()
            )
        return peers.load(name, 1, "gpu"), waits

    yield load_for_gpu
    for undo in restore:
        undo()


ON_GPU = [name for name, entry in peers.PEERS.items() if "gpu" in entry.devices]
LAYERS = (Layer((10, 8), bias=True, activation="gelu"), Layer((8, 6), bias=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["forward", "gradients", "train"])
@pytest.mark.parametrize("name", ON_GPU)
def test_what_is_written_for_a_gpu_computes_the_same_and_waits_when_asked(
    load_for_gpu, name, kind, dtype
):
    pytest.importorskip("ml_dtypes")
    pytest.importorskip(peers.PEERS[name].package)
    case = Case("", "", kind, (12, 10), LAYERS, dtype=dtype)
    due = load("tf-eager").build(case, "eager", make_arrays(case)).results()
    on_gpu, waits = load_for_gpu(name)
    for mode in modes(name):
        work = on_gpu.build(case, mode, make_arrays(case))
        precision = multiplied_in(dtype, "gpu")
        # Twice: a step of training has put back what it changed.
        for _ in range(2):
            assert disagreement(due, work.results(), precision, layers=2) is None
        waits.clear()
        result = work.run()
        assert waits == []
        work.wait(result)
        assert waits == [name]


@pytest.mark.parametrize("name", ["stopgrad_op", "tf-eager", "tf-function", "tf-xla", "keras"])
def test_memory_on_tensorflow_is_what_a_call_takes_beside_what_was_there(
    monkeypatch, load_for_gpu, name
):
    import tensorflow as tf

    pytest.importorskip(peers.PEERS[name].package)
    peer, waits = load_for_gpu(name)
    asked = []
    readings = iter([{"current": 100, "peak": 100}, {"current": 120, "peak": 150}])
    for function, answer in (
        ("reset_memory_stats", lambda _: asked.append(("reset", *waits))),
        ("get_memory_info", lambda _: asked.append(("read", *waits)) or next(readings)),
    ):
        monkeypatch.setattr(tf.config.experimental, function, answer)
    case = Case("", "", "forward", (12, 10), LAYERS)
    (mode, *_) = modes(name)
    work = peer.build(case, mode, make_arrays(case))
    assert work.memory() == 50
    # All before was done, and so was the call.
    assert asked == [("reset", name), ("read", name), ("read", name, name)]


def test_memory_is_not_known_on_the_cpu():
    case = Case("", "", "forward", (12, 10), LAYERS)
    assert load("tf-eager").build(case, "eager", make_arrays(case)).memory is None


def test_result_on_another_device_is_an_error(monkeypatch):
    from peers import _on_tensorflow

    monkeypatch.setitem(_on_tensorflow.PLACES, "gpu", "GPU:0")
    case = Case("", "", "forward", (12, 10), LAYERS)
    if _library.load_gpu() is None:
        pytest.skip("there is a GPU")
    # Without one TensorFlow takes the CPU.
    work = peers.load("tf-eager", 1, "gpu").build(case, "eager", make_arrays(case))
    with pytest.raises(RuntimeError, match="CPU:0 in place of GPU:0"):
        work.results()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tf-function", "TensorFlow sees no GPU"),
        ("torch-compile", "PyTorch sees no GPU"),
        ("jax", "JAX sees no GPU: "),
        ("stopgrad_op", _library.load_gpu()),
    ],
)
def test_peer_without_a_gpu_says_so(name, why):
    pytest.importorskip(peers.PEERS[name].package)
    if _library.load_gpu() is None:
        pytest.skip("there is a GPU")
    # In a process of its own, as it chooses its devices once.
    worker = ProcessWorker(name, 1, "gpu")
    missing = worker.missing()
    worker.close()
    assert missing.startswith(why)
    assert load(name).missing() == ""
