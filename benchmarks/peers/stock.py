"""Stock TensorFlow: eager, in a `tf.function`, and compiled by XLA."""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from peers import _on_tensorflow
from workloads import Arrays, Case

_ACTIVATIONS = {
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "leaky_relu": partial(tf.nn.leaky_relu, alpha=0.2),
    "elu": tf.nn.elu,
    "selu": tf.nn.selu,
    "gelu": partial(tf.nn.gelu, approximate=False),
    "gelu_tanh": partial(tf.nn.gelu, approximate=True),
    "sigmoid": tf.nn.sigmoid,
    "tanh": tf.nn.tanh,
    "silu": tf.nn.silu,
    "softplus": tf.nn.softplus,
}


def _scaled(s: Any, tensor: Any) -> Any:
    """Multiply the gradient."""
    return s * tensor + tf.stop_gradient((1 - s) * tensor)


def _selected(mask: Any, tensor: Any) -> Any:
    """Let the gradient through where the mask is true."""
    return tf.where(mask, tensor, tf.stop_gradient(tensor))


class Peer(_on_tensorflow.Base):
    """`tf.matmul`, `tf.nn.bias_add` and an activation; variables that do not learn are frozen.

    What learns in part only goes through `tf.where` and `tf.stop_gradient`.
    """

    def __init__(self, name: str, threads: int, device: str) -> None:
        super().__init__(name, threads, device)
        self.xla = name == "tf-xla"

    def supports(self, case: Case) -> bool:
        """Take every case."""
        del case
        return True

    def network(self, case: Case, arrays: Arrays) -> _on_tensorflow.Network:
        """Make the network."""
        pairs, tensors, variables = _on_tensorflow.make_parameters(case, arrays)
        controls = _on_tensorflow.make_controls(case, arrays, self.place)
        masks = [None if mask is None else tf.constant(mask) for mask in arrays.learning]

        def call(h: Any, *tensors: Any) -> Any:
            for (w, b), layer, mask, control in zip(
                pairs(tensors), case.layers, masks, controls, strict=True
            ):
                if mask is not None:
                    w = _selected(mask, w)
                if control.scale is not None and layer.scaled == "weights":
                    w = _scaled(control.scale, w)
                h = tf.matmul(h, w, transpose_b=layer.transposed)
                if b is not None:
                    h = tf.nn.bias_add(h, b)
                if layer.activation != "linear":
                    h = _ACTIVATIONS[layer.activation](h)
                if control.active is not None:
                    h = _selected(control.active[:, tf.newaxis], h)
                if control.scale is not None and layer.scaled == "all":
                    h = _scaled(control.scale, h)
            return h

        learning = [name for name, variable in variables.items() if variable.trainable]
        return _on_tensorflow.Network(call, tensors, variables, learning)
