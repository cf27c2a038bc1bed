"""`stopgrad_op` itself."""

from __future__ import annotations

from typing import Any

import stopgrad_op as sg
from peers import Work, _on_tensorflow
from workloads import Arrays, Case, Mode


class Peer:
    """`sg.matmul`, with everything blocked that does not learn."""

    def __init__(self, name: str, threads: int) -> None:
        del name
        _on_tensorflow.use_threads(threads)

    def supports(self, case: Case) -> bool:
        """Take every case."""
        del case
        return True

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        pairs, tensors, variables = _on_tensorflow.make_parameters(case, arrays)
        # A user writes these down once, not in each call.
        options = [
            {
                "activation": None if layer.activation == "linear" else layer.activation,
                "stop_gradient": case.blocked(index) or None,
                "transpose_b": layer.transposed,
            }
            for index, layer in enumerate(case.layers)
        ]

        def call(h: Any, *tensors: Any) -> Any:
            for (w, b), layer_options in zip(pairs(tensors), options, strict=True):
                h = sg.matmul(h, w, bias=b, **layer_options)
            return h

        learning = [name for name, variable in variables.items() if variable.trainable]
        network = _on_tensorflow.Network(call, tensors, variables, learning)
        return _on_tensorflow.build(case, mode, arrays, network)
