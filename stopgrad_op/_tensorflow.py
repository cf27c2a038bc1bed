"""What this package uses of TensorFlow beyond its public interface, in one place.

Public functions cannot say whether a tape is watching, or record an operation that was run aside;
these can, and have been the same in TensorFlow 2.19 to 2.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import record

stop_recording = record.stop_recording


def any_recorded(tensors: Sequence[tf.Tensor]) -> bool:
    """Return whether a gradient tape watches, or may watch, one of the eager tensors."""
    return record.could_possibly_record() and bool(record.should_record_backprop(list(tensors)))


def record_gradient(
    name: str,
    inputs: Sequence[tf.Tensor],
    note: object,
    outputs: Sequence[tf.Tensor],
) -> None:
    """Tell the tapes that `outputs` came from `inputs`.

    The gradient is the function registered under `name`; it is called with an operation that has
    these inputs and outputs, and whose note `recorded_note` returns.
    """
    pywrap_tfe.TFE_Py_RecordGradient(name, list(inputs), ("note", note), list(outputs), "")


def recorded_note(op: Any) -> Any:
    """Return the note that `record_gradient` was given."""
    return op.attrs[1]


def skipped_inputs(op: Any) -> tuple[int, ...] | None:
    """Return the inputs of `op` whose gradient nobody asked for; None where nobody knows."""
    skipped = getattr(op, "skip_input_indices", None)
    return None if skipped is None else tuple(skipped)
