"""`stopgrad_op` itself."""

from __future__ import annotations

from typing import Any

import numpy as np

import stopgrad_op as sg
from peers import _on_tensorflow
from stopgrad_op import _library
from workloads import Array, Arrays, Case, Layer


def _region(layer: Layer, mask: Array) -> Any:
    """Return what `trainable` takes for the weights that learn."""
    assert layer.trainable is not None
    by_columns = layer.trainable.axis == "columns"
    which = np.flatnonzero(mask.any(axis=0 if by_columns else 1))
    if layer.trainable.by_index:
        return sg.columns(which) if by_columns else sg.rows(which)
    # The last ones. Not -len(which), because there may be none.
    part = slice(mask.shape[1 if by_columns else 0] - len(which), None)
    return (slice(None), part) if by_columns else part


def _control(layer: Layer, mask: Array | None, control: _on_tensorflow.Control) -> dict[str, Any]:
    """Return the options that switch a part of the gradients off."""
    options: dict[str, Any] = {}
    if mask is not None:
        options["trainable"] = {"b": _region(layer, mask)}
    if control.active is not None:
        options["gradient_rows"] = control.active
    if control.scale is not None:
        scale = control.scale
        options["gradient_scale"] = {"b": scale} if layer.scaled == "weights" else scale
    return options


class Peer(_on_tensorflow.Base):
    """`sg.matmul`, with everything blocked that does not learn."""

    def missing(self) -> str:
        """Return why the ops have no kernels on the device."""
        return "" if self.device == "cpu" else _library.load_gpu() or ""

    def supports(self, case: Case) -> bool:
        """Take every case."""
        del case
        return True

    def network(self, case: Case, arrays: Arrays) -> _on_tensorflow.Network:
        """Make the network."""
        pairs, tensors, variables = _on_tensorflow.make_parameters(case, arrays)
        # The kernels read factors and masks in the host's memory, as docs/gpu.md tells users.
        controls = _on_tensorflow.make_controls(case, arrays, _on_tensorflow.PLACES["cpu"])
        # A user writes these down once, not in each call.
        options = [
            {
                "activation": None if layer.activation == "linear" else layer.activation,
                "stop_gradient": case.blocked(index) or None,
                "transpose_b": layer.transposed,
                **_control(layer, mask, control),
            }
            for index, (layer, mask, control) in enumerate(
                zip(case.layers, arrays.learning, controls, strict=True)
            )
        ]

        def call(h: Any, *tensors: Any) -> Any:
            for (w, b), layer_options in zip(pairs(tensors), options, strict=True):
                h = sg.matmul(h, w, bias=b, **layer_options)
            return h

        learning = [name for name, variable in variables.items() if variable.trainable]
        return _on_tensorflow.Network(call, tensors, variables, learning)
