"""What this package uses of TensorFlow beyond its public interface, in one place.

Public functions cannot say whether a tape is watching, or record an operation that was run aside;
these can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.autograph.impl import api
from tensorflow.python.eager import record

stop_recording = record.stop_recording

# Marks a function that AutoGraph need not rewrite: tracing it takes a fifth of the time. The public
# do_not_convert wraps it, which every eager call would pay for.
not_converted = api.autograph_artifact


def gradient_order(tensors: Sequence[tf.Tensor]) -> int:
    """Return which derivatives can be asked for of what is computed from the eager tensors.

    0 where no gradient tape or forward accumulator watches them, 1 where one does, 2 where several
    or a persistent one do, so that a gradient may itself be differentiated.
    """
    return int(pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes(list(tensors)))


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
