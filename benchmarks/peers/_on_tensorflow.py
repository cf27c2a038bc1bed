"""What the peers on TensorFlow share: running a network, with a tape or without, in each mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from peers import LONG_STEP, Work
from workloads import Array, Arrays, Case, Mode

# What TensorFlow calls the devices.
PLACES = {"cpu": "CPU:0", "gpu": "GPU:0"}


def use_threads(threads: int) -> None:
    """Give TensorFlow so many threads; it must not have computed anything yet."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    Attributes
    ----------
    call
        `call(x, *tensors) -> y`.
    tensors
        Weights that are no variables. They are given with every call: what a `tf.function` closes
        over is a constant to it, and a product of constants can be computed in advance.
    variables
        The others by the name of their gradient.
    learning
        The names of those that learn.
    """

    call: Callable[..., Any]
    tensors: Sequence[Any]
    variables: Mapping[str, Any]
    learning: Sequence[str]


def make_parameters(
    case: Case, arrays: Arrays
) -> tuple[Callable[[tuple[Any, ...]], list[Any]], list[Any], dict[str, Any]]:
    """Make the weights as the case has them, variables or tensors.

    Returns
    -------
    pairs, tensors, variables
        `pairs(tensors)` are the weights and bias of each layer.
    """
    if not case.variables:
        weights = [tf.constant(w) for w in arrays.weights]
        return lambda tensors: [(w, None) for w in tensors], weights, {}
    variables = {}
    for index, (layer, w, b) in enumerate(
        zip(case.layers, arrays.weights, arrays.biases, strict=True)
    ):
        variables[f"dw{index}"] = tf.Variable(w, trainable=layer.learns)
        if b is not None:
            variables[f"db{index}"] = tf.Variable(b, trainable=layer.learns)
    pairs = [(variables[f"dw{i}"], variables.get(f"db{i}")) for i in range(len(case.layers))]
    return lambda _: pairs, [], variables


class Control(NamedTuple):
    """What is read at each step of a layer; `None` stands for nothing.

    Variables, because a `tf.function` or XLA must not know their values.
    """

    scale: Any
    active: Any


def make_controls(case: Case, arrays: Arrays, place: str) -> list[Control]:
    """Make the factor and the mask of each layer, in the memory of a device."""

    def variable(value: Any) -> Any:
        if value is None:
            return None
        with tf.device(place):
            return tf.Variable(value, trainable=False)

    return [
        Control(
            variable(
                None
                if layer.gradient_scale is None
                else np.asarray(layer.gradient_scale, arrays.x.dtype)
            ),
            variable(active),
        )
        for layer, active in zip(case.layers, arrays.active, strict=True)
    ]


def _loss(case: Case, y: Any, target: Any) -> Any:
    return y - target if case.loss == "difference" else tf.reduce_mean(tf.square(y - target))


class Base:
    """A peer on TensorFlow, but for its network.

    Attributes
    ----------
    xla
        Whether XLA compiles it where the mode leaves that to the peer, in a `tf.function`.
    """

    xla = False

    def __init__(self, name: str, threads: int, device: str) -> None:
        del name
        use_threads(threads)
        self.device = device
        self.place = PLACES[device]

    def missing(self) -> str:
        """Return whether TensorFlow has the device."""
        sees_it = self.device == "cpu" or tf.config.list_physical_devices("GPU")
        return "" if sees_it else "TensorFlow sees no GPU"

    def network(self, case: Case, arrays: Arrays) -> Network:
        """Make the network."""
        raise NotImplementedError

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        with tf.device(self.place):
            work = _build(case, mode, arrays, self.network(case, arrays), self.place, self.xla)
        if self.device == "cpu":  # where all is computed when the call returns
            return work

        def wait(_: Any) -> None:
            tf.test.experimental.sync_devices()

        def memory() -> int:
            wait(None)
            tf.config.experimental.reset_memory_stats(self.place)
            before = tf.config.experimental.get_memory_info(self.place)["current"]
            wait(work.run())
            return int(tf.config.experimental.get_memory_info(self.place)["peak"] - before)

        return replace(work, wait=wait, memory=memory)


def _on_host(y: Any, place: str) -> Array:
    """Return a result as an array, if it was computed where it should be.

    Where the operands lie TensorFlow computes, unless it has no kernel for that device.
    """
    if not y.device.endswith(place):
        raise RuntimeError(f"was computed on {y.device} in place of {place}")
    array: Array = y.numpy()
    return array


def _build(case: Case, mode: Mode, arrays: Arrays, network: Network, place: str, xla: bool) -> Work:
    """Build what runs the network as the case says."""
    x, upstream = map(tf.constant, (arrays.x, arrays.upstream))
    rate, long_step = (tf.cast(value, x.dtype) for value in (case.rate, LONG_STEP))
    learning = [network.variables[name] for name in network.learning]
    names = [*(["dx"] if case.x_learns else []), *network.learning]

    def forward(x: Any, *tensors: Any) -> Any:
        return network.call(x, *tensors)

    def gradients(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            if case.x_learns:
                tape.watch(x)
            y = network.call(x)
        sources = [x, *learning] if case.x_learns else learning
        return y, tape.gradient(y, sources, output_gradients=upstream)

    def train(x: Any, target: Any, rate: Any) -> None:
        with tf.GradientTape() as tape:
            loss = _loss(case, network.call(x), target)
        for variable, gradient in zip(learning, tape.gradient(loss, learning), strict=True):
            variable.assign_sub(rate * gradient)

    if case.kind == "backward":
        # A persistent tape can be asked again and again.
        with tf.GradientTape(persistent=True) as tape:
            if case.x_learns:
                tape.watch(x)
            y = network.call(x)
        sources = [x, *learning] if case.x_learns else learning

        def backward(upstream: Any) -> Any:
            return y, tape.gradient(y, sources, output_gradients=upstream)

        function: Any = backward
        arguments = [upstream]
    else:
        function, arguments = {
            "forward": (forward, [x, *network.tensors]),
            "gradients": (gradients, [x, upstream]),
            "train": (train, [x, upstream, rate]),
        }[case.kind]
    if mode != "eager":
        compiled = xla or mode == "xla"
        function = tf.function(function, jit_compile=compiled, autograph=False)

    def run() -> Any:
        return function(*arguments)

    def results() -> dict[str, Array]:
        if case.kind == "forward":
            return {"y": _on_host(run(), place)}
        if case.kind == "train":
            before = {name: variable.numpy() for name, variable in network.variables.items()}
            function(x, upstream, long_step)
            after = {name: variable.numpy() for name, variable in network.variables.items()}
            for name in network.learning:
                network.variables[name].assign(before[name])
            return {name: np.subtract(after[name], before[name]) for name in after}
        y, found = run()
        by_name = {"y": y, **dict(zip(names, found, strict=True))}
        return {name: _on_host(tensor, place) for name, tensor in by_name.items()}

    return Work(run, results)
