"""Who is measured: a row each, and what a peer's file has to have.

A file here has a class `Peer` with the methods of the protocol below. Nothing else knows its
framework, and only the worker that measures it imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from workloads import ANY, BOTH, CPU, EAGER, FUNCTION, GPU, MODES, XLA, Array, Arrays, Case, Mode

OURS = "stopgrad_op"


@dataclass(frozen=True)
class Entry:
    """One peer.

    Attributes
    ----------
    file
        The module in this folder.
    package
        What must be installed.
    modes
        In which of our modes it stands beside us.
    devices
        On which it is measured.
    """

    file: str
    package: str
    modes: tuple[Mode, ...]
    about: str
    devices: tuple[str, ...] = ANY


PEERS = {
    OURS: Entry("ours", "stopgrad_op", MODES, "sg.matmul; eager, in a tf.function, or by XLA"),
    "tf-eager": Entry("stock", "tensorflow", EAGER, "stock TensorFlow, eager"),
    "tf-function": Entry("stock", "tensorflow", FUNCTION, "stock TensorFlow in a tf.function"),
    "tf-xla": Entry("stock", "tensorflow", (*FUNCTION, *XLA), "the same with jit_compile=True"),
    "keras": Entry("keras_layers", "keras", BOTH, "keras.layers.Dense; eager or in a tf.function"),
    "torch": Entry("pytorch", "torch", BOTH, "PyTorch, eager"),
    "torch-compile": Entry("pytorch", "torch", FUNCTION, "PyTorch under torch.compile", GPU),
    "jax": Entry("jax_jit", "jax", (*FUNCTION, *XLA), "JAX under jax.jit"),
    "numpy": Entry("numpy_products", "numpy", BOTH, "NumPy, for bare products", CPU),
}


def is_installed(name: str) -> bool:
    """Return whether a peer can be measured, without importing it."""
    return importlib.util.find_spec(PEERS[name].package) is not None


# A step of training so long that its end is the gradient alone, whatever the weights were: theirs
# are too large for a short step to show in 16 bits. A power of two, which every dtype holds.
LONG_STEP = 2.0**30


@dataclass(frozen=True)
class Work:
    """A case, built and ready.

    Attributes
    ----------
    run
        Does it once, or, on a GPU, starts that.
    results
        Does it once and returns arrays for comparison: "y", and for each gradient "dx", "dw0",
        "db0"; in training, by how much `LONG_STEP` changes the weights, which are then put back,
        under the gradients' names.
    wait
        Takes what `run` returned, and returns when that and all before it is computed.
    memory
        Does it once and returns the most bytes of the device's memory that it took beside what
        was there already; `None` where the framework does not tell.
    """

    run: Callable[[], Any]
    results: Callable[[], dict[str, Array]]
    wait: Callable[[Any], Any] = lambda _: None
    memory: Callable[[], int] | None = None


class Peer(Protocol):
    """What a peer's file defines."""

    def __init__(self, name: str, threads: int, device: str) -> None: ...

    def missing(self) -> str:
        """Return why the peer cannot work on the device; nothing where it can."""
        ...

    def supports(self, case: Case) -> bool:
        """Return whether the peer can do this work as its users would."""
        ...

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        ...


def load(name: str, threads: int, device: str) -> Peer:
    """Import a peer's framework and return the peer."""
    module = importlib.import_module(f"peers.{PEERS[name].file}")
    peer: Peer = module.Peer(name, threads, device)
    return peer
