"""`sg.matmul` on Keras's symbolic tensors, as a node of a functional model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from stopgrad_op._options import OPERANDS, GradientPolicy, MatMulOptions


@keras.saving.register_keras_serializable("stopgrad_op")
class MatMul(keras.Operation):
    """The operation that a functional model keeps in place of a call of `sg.matmul`."""

    def __init__(self, options: MatMulOptions | dict[str, Any], name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(options, MatMulOptions):  # from a saved model
            policy = {key: tuple(value) for key, value in options["policy"].items()}
            options = MatMulOptions(**{**options, "policy": GradientPolicy(**policy)})
        self.options = options

    def call(self, a: Any, b: Any, bias: Any = None) -> Any:
        """Run it on tensors."""
        from stopgrad_op._matmul import run_matmul

        return run_matmul(a, b, bias, self.options, self.name)

    def get_config(self) -> dict[str, Any]:
        """Return what a saved model keeps."""
        return {"options": dataclasses.asdict(self.options), "name": self.name}


def symbolic_matmul(a: Any, b: Any, bias: Any, options: MatMulOptions, name: str | None) -> Any:
    """Add the product to the functional model that the KerasTensors belong to.

    Raises
    ------
    ValueError
        If an operand is a variable: the model would neither train it nor save it as one.
    """
    for operand_name, operand in zip(OPERANDS, (a, b, bias), strict=True):
        if isinstance(operand, (tf.Variable, keras.Variable)):
            raise ValueError(
                f"`{operand_name}` is a variable and another operand a KerasTensor. A functional"
                " model keeps variables of layers only, so call sg.matmul in a layer's `call`."
            )
    return MatMul(options, name=name)(a, b, bias)
