"""What this package uses of TensorFlow beyond its public interface, in one place.

Public functions cannot say whether a tape is watching, or record an operation that was run aside;
these can. And an eager call costs the way to the kernel more than the kernel itself: where
`tf.convert_to_tensor` reads a variable, the reading is a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.autograph.impl import api
from tensorflow.python.eager import context, core
from tensorflow.python.framework.ops import EagerTensor
from tensorflow.python.ops import control_flow_util
from tensorflow.python.ops.parallel_for import pfor as pfor
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

# Marks a function that AutoGraph need not rewrite: tracing it takes a fifth of the time. The public
# do_not_convert wraps it, which every eager call would pay for.
not_converted = api.autograph_artifact

# The types of most eager operands: tensors, and what tf.Variable makes. A class derived from that
# may be read in its own way.
EAGER_TYPES = frozenset((EagerTensor, ResourceVariable))


def run_op(
    name: str, inputs: Sequence[Any], attributes: Sequence[Any], otherwise: Callable[[], Any]
) -> Any:
    """Run an op eagerly, or where that is not possible call `otherwise`.

    `attributes` are names and values in turn. Those left out have their defaults, which takes less
    time than setting them.
    """
    runtime = context.context()
    if runtime.executing_eagerly():
        try:
            return pywrap_tfe.TFE_Py_FastPathExecute(runtime, name, None, *inputs, *attributes)
        except (core._FallbackException, core._NotOkStatusException):
            pass
    return otherwise()


def compiles() -> bool:
    """Return whether what is traced now is for XLA, which then must compile all of it."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def read_eagerly(value: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Return the value of a variable, in a fraction of the time of `read_value`, or the tensor."""
    if type(value) is ResourceVariable:
        return run_op("ReadVariableOp", (value.handle,), ("dtype", value.dtype), value.read_value)
    return tf.convert_to_tensor(value)


def may_record() -> bool:
    """Return whether there is a gradient tape or forward accumulator that is not stopped."""
    return not pywrap_tfe.TFE_Py_TapeSetIsEmpty()


def tape_source(operand: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Return what tapes know an eager operand by, and tell them that it is used.

    A tensor is known by itself, and a variable by its handle.
    """
    if type(operand) is EagerTensor:
        return operand
    if operand.trainable:
        pywrap_tfe.TFE_Py_TapeVariableAccessed(operand)
        pywrap_tfe.TFE_Py_VariableWatcherVariableAccessed(operand)
    return operand.handle


def has_tangent(tensors: Sequence[tf.Tensor]) -> bool:
    """Return whether a forward accumulator watches one of the eager tensors."""
    return bool(pywrap_tfe.TFE_Py_PackJVPs(list(tensors))[1])


def is_known_zeros(tensor: tf.Tensor | None) -> bool:
    """Return whether a tensor is nothing but zeros, as far as that is known without computing it.

    Tapes give such tensors as the gradient of an output that nobody used.
    """
    if tensor is None:
        return True
    if isinstance(tensor, EagerTensor):
        return not tensor.numpy().any()
    if tensor.op.type == "ZerosLike":
        return True
    value = tensor.op.inputs[1] if tensor.op.type == "Fill" else tensor
    constant = tf.get_static_value(value)
    return constant is not None and not constant.any()


def may_be_differentiated(tensor: tf.Tensor) -> bool:
    """Return whether there may be gradients of what is computed from a tensor now."""
    if not isinstance(tensor, EagerTensor):
        return True
    return may_record() and gradient_order((tensor,)) > 0


def computes_tangents() -> bool:
    """Return whether a forward accumulator traces a gradient now, to transpose it."""
    return str(getattr(tf.compat.v1.get_default_graph(), "name", "")).startswith("_jvp_")


def notes_of(graph: tf.Graph) -> dict[Any, Any]:
    """Return what this package has noted about a graph, which lives as long as that does."""
    notes: dict[Any, Any] = getattr(graph, "_stopgrad_op_notes", {})
    graph._stopgrad_op_notes = notes
    return notes


def gradient_order(tensors: Sequence[tf.Tensor]) -> int:
    """Return which derivatives can be asked for of what is computed from the eager tensors.

    0 where no gradient tape or forward accumulator watches them, 1 where one does, 2 where several
    or a persistent one do, so that a gradient may itself be differentiated.
    """
    return int(pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes(tensors))


class Unrecorded:
    """In its `with` block, tapes and forward accumulators see nothing."""

    __slots__ = ("_was_stopped",)

    def __enter__(self) -> None:
        self._was_stopped = pywrap_tfe.TFE_Py_TapeSetIsStopped()
        pywrap_tfe.TFE_Py_TapeSetStopOnThread()

    def __exit__(self, *_: object) -> None:
        if not self._was_stopped:
            pywrap_tfe.TFE_Py_TapeSetRestartOnThread()


def record_gradient(
    name: str,
    inputs: Sequence[tf.Tensor],
    note: object,
    output: tf.Tensor,
) -> None:
    """Tell the tapes that `output` came from `inputs`, and let them hold the note alone.

    The gradient is the function registered under `name`; it is called with an operation whose note
    `recorded_note` returns.
    """
    held_inputs, held_outputs = list(inputs), [output]
    pywrap_tfe.TFE_Py_RecordGradient(name, held_inputs, ("note", note), held_outputs, "")
    # A tape keeps these two lists to give the operation's inputs and outputs to the gradient
    # function, which asks for neither. Of the tensors it has noted number, shape and dtype.
    held_inputs.clear()
    held_outputs.clear()


def attribute(op: Any, name: str, default: Any) -> Any:
    """Return an attribute of a recorded operation.

    A tape notes those that an eager call gave, and no defaults.
    """
    try:
        return op.get_attr(name)
    except KeyError:
        return default


def recorded_note(op: Any) -> Any:
    """Return the note that `record_gradient` was given."""
    return op.attrs[1]


def skipped_inputs(op: Any) -> tuple[int, ...] | None:
    """Return the inputs of `op` whose gradient nobody asked for; None where nobody knows."""
    try:
        # What a tape hands to a gradient function has this, None if all gradients are asked for.
        return op.skip_input_indices or ()
    except AttributeError:
        return None
