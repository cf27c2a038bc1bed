"""Keras 3 on TensorFlow: `keras.layers.Dense`."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras

from peers import _on_tensorflow
from workloads import Arrays, Case


def _activation(name: str) -> Any:
    if name == "gelu_tanh":
        return partial(keras.activations.gelu, approximate=True)
    return None if name == "linear" else name


class Peer(_on_tensorflow.Base):
    """Dense layers, called under a tape."""

    def supports(self, case: Case) -> bool:
        """Leave out what layers do not have.

        That is batches of weights, weights that are no variables, and gradients of a part: a
        layer's weights learn or do not.
        """
        return case.variables and all(
            len(layer.weights) == 2 and not layer.transposed and not layer.is_controlled
            for layer in case.layers
        )

    def network(self, case: Case, arrays: Arrays) -> _on_tensorflow.Network:
        """Make the network."""
        layers: list[Any] = []
        variables: dict[str, Any] = {}
        learning: list[str] = []
        for index, (layer, w, b) in enumerate(
            zip(case.layers, arrays.weights, arrays.biases, strict=True)
        ):
            dense = keras.layers.Dense(
                layer.weights[-1],
                activation=_activation(layer.activation),
                use_bias=layer.bias,
                trainable=layer.learns,
                dtype=case.dtype,
            )
            dense.build(w.shape[:-1])
            dense.set_weights([w] if b is None else [w, b])
            layers.append(dense)
            names = [f"dw{index}"] + ([f"db{index}"] if layer.bias else [])
            variables.update(zip(names, (v.value for v in dense.weights), strict=True))
            learning += names if layer.learns else []

        def call(h: Any) -> Any:
            for dense in layers:
                h = dense(h)
            return h

        return _on_tensorflow.Network(call, (), variables, learning)
