"""`sg.matmul` on Keras's symbolic tensors, as a node of a functional model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stopgrad_op._options import OPERANDS, GradientPolicy, MatMulOptions, Steering
from stopgrad_op._regions import Indices
from stopgrad_op._stock import is_asked_for, stock_ops


@keras.saving.register_keras_serializable("stopgrad_op")
class MatMul(keras.Operation):
    """The operation that a functional model keeps in place of a call of `sg.matmul`."""

    def __init__(
        self,
        options: MatMulOptions | dict[str, Any],
        indices: Sequence[Any] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if not isinstance(options, MatMulOptions):  # from a saved model
            policy = {key: tuple(value) for key, value in options["policy"].items()}
            options = MatMulOptions(**{**options, "policy": GradientPolicy(**policy)})
        self.options = options
        # Those of the regions that learn: not tensors of the model, but a part of what it is.
        self.indices: tuple[Indices, ...] = tuple(np.asarray(each, np.int64) for each in indices)
        for each in self.indices:
            each.flags.writeable = False  # index_tensor makes a tensor of each once

    def call(self, a: Any, b: Any, bias: Any = None, scales: Any = (), rows: Any = None) -> Any:
        """Run it on tensors."""
        from stopgrad_op._matmul import run_matmul

        policy = self.options.policy
        steering = None
        if scales or rows is not None or policy.sliced or policy.indexed:
            steering = Steering(tuple(scales), rows, self.indices)
        return run_matmul(a, b, bias, self.options, steering, self.name)

    def get_config(self) -> dict[str, Any]:
        """Return what a saved model keeps."""
        return {
            "options": dataclasses.asdict(self.options),
            "indices": [each.tolist() for each in self.indices],
            "name": self.name,
        }


@keras.saving.register_keras_serializable("stopgrad_op")
class StockMatMul(MatMul):
    """The same, made of stock TensorFlow ops wherever the model is called."""

    def call(self, a: Any, b: Any, bias: Any = None, scales: Any = (), rows: Any = None) -> Any:
        """Run it on tensors."""
        with stock_ops():
            return super().call(a, b, bias, scales, rows)


def symbolic_matmul(
    a: Any,
    b: Any,
    bias: Any,
    options: MatMulOptions,
    steering: Steering | None,
    name: str | None,
) -> Any:
    """Add the product to the functional model that the KerasTensors belong to.

    Raises
    ------
    ValueError
        If an operand, scale or the rows are a variable: the model would neither train it nor save
        it as one.
    """
    steering = steering or Steering()
    inputs = dict(zip((f"`{operand}`" for operand in OPERANDS), (a, b, bias), strict=True))
    inputs["`gradient_rows`"] = steering.rows
    at_run_time = [
        name
        for name, scale in zip(options.policy.scaled, options.policy.scales, strict=True)
        if scale is None
    ]
    for operand, scale in zip(at_run_time, steering.scales, strict=True):
        inputs[f"`gradient_scale` of `{operand}`"] = scale
    for what, value in inputs.items():
        if isinstance(value, (tf.Variable, keras.Variable)):
            raise ValueError(
                f"{what} is a variable and another input a KerasTensor. A functional model keeps"
                " variables of layers only, so call sg.matmul in a layer's `call`."
            )
    kind = StockMatMul if is_asked_for() else MatMul
    operation = kind(options, steering.indices, name=name)
    return operation(a, b, bias, scales=list(steering.scales), rows=steering.rows)
