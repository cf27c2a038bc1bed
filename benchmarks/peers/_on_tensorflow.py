"""What the peers on TensorFlow share: running a network, with a tape or without, in each mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from peers import Work
from workloads import Arrays, Case, Mode


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


def make_controls(case: Case, arrays: Arrays) -> list[Control]:
    """Make the factor and the mask of each layer."""

    def variable(value: Any) -> Any:
        return None if value is None else tf.Variable(value, trainable=False)

    return [
        Control(
            variable(None if layer.gradient_scale is None else np.float32(layer.gradient_scale)),
            variable(active),
        )
        for layer, active in zip(case.layers, arrays.active, strict=True)
    ]


def _loss(case: Case, y: Any, target: Any) -> Any:
    return y - target if case.loss == "difference" else tf.reduce_mean(tf.square(y - target))


def build(case: Case, mode: Mode, arrays: Arrays, network: Network, *, xla: bool = False) -> Work:
    """Build what runs the network as the case says.

    Parameters
    ----------
    xla
        Whether XLA compiles it where the mode leaves that to the peer, in a `tf.function`.
    """
    x, upstream, target = map(tf.constant, (arrays.x, arrays.upstream, arrays.target))
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

    def train(x: Any, target: Any) -> None:
        with tf.GradientTape() as tape:
            loss = _loss(case, network.call(x), target)
        for variable, gradient in zip(learning, tape.gradient(loss, learning), strict=True):
            variable.assign_sub(tf.cast(case.rate, gradient.dtype) * gradient)

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
            "train": (train, [x, target]),
        }[case.kind]
    if mode != "eager":
        compiled = xla or mode == "xla"
        function = tf.function(function, jit_compile=compiled, autograph=False)

    def run() -> Any:
        return function(*arguments)

    def results() -> dict[str, Any]:
        if case.kind == "forward":
            return {"y": run().numpy()}
        if case.kind == "train":
            before = {name: variable.numpy() for name, variable in network.variables.items()}
            run()
            return {
                name: np.subtract(variable.numpy(), before[name])
                for name, variable in network.variables.items()
            }
        y, found = run()
        return {"y": y.numpy(), **{n: g.numpy() for n, g in zip(names, found, strict=True)}}

    return Work(run, results)
