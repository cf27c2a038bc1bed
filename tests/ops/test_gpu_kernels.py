"""The kernels that TensorFlow places on a GPU, as far as a machine without one shows them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

import stopgrad_op as sg
from stopgrad_op import _library, _steering

GRADIENT_DTYPES = {
    dtype.as_datatype_enum
    for dtype in (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.complex64, tf.complex128)
}
STEERING = {
    "StopgradOp>FusedMatMul": {"scales", "rows", "indices"},
    "StopgradOp>FusedMatMulGrad": {"scales", "rows", "indices", "shape_a", "shape_b"},
    "StopgradOp>Zeros": set(),
}


@pytest.fixture(autouse=True)
def loaded() -> None:
    """Load what is otherwise loaded only where there is something to run it on."""
    if missing := _library.build_info()["cuda_missing"]:
        pytest.skip(f"built without CUDA: {missing}")
    assert _library._load(_library.GPU_LIBRARY) is None


@pytest.mark.parametrize("op", STEERING)
def test_every_dtype_with_gradients_has_a_kernel_steered_from_the_host(op: str) -> None:
    found = [k for k in kernels.get_registered_kernels_for_op(op).kernel if k.device_type == "GPU"]
    dtypes = [c.allowed_values.list.type[0] for k in found for c in k.constraint if c.name == "T"]
    assert sorted(dtypes) == sorted(GRADIENT_DTYPES)
    for kernel in found:
        assert set(kernel.host_memory_arg) == STEERING[op]


def test_eager_op_has_a_kernel_for_variables_but_not_for_integers() -> None:
    (kernel,) = (
        k
        for k in kernels.get_registered_kernels_for_op("StopgradOp>FusedMatMulEager").kernel
        if k.device_type == "GPU"
    )
    allowed = {c.name: set(c.allowed_values.list.type) for c in kernel.constraint}
    due = GRADIENT_DTYPES | {tf.resource.as_datatype_enum}
    assert allowed == {"operand_types": due, "result_types": due}


def test_what_steers_a_call_is_made_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU; else it would be made there, and copied at each step."""
    monkeypatch.setattr(_steering, "load_gpu", lambda: None)

    @tf.function
    def step(a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return sg.matmul(
            a, b, gradient_scale={"b": scale}, gradient_rows=np.array([1.0, 0.0, 2.0]),
            trainable={"b": sg.rows([0, 2])},
        )  # fmt: skip

    arguments = (tf.ones((3, 4)), tf.ones((4, 5)), tf.constant(0.5))
    graph = step.get_concrete_function(*arguments).graph
    (op,) = (op for op in graph.get_operations() if op.type == "StopgradOp>FusedMatMul")
    devices = [source.op.device for source in op.inputs[2:]]
    assert len(devices) == 3
    assert all("CPU:0" in device for device in devices), devices


def test_without_a_gpu_the_reason_is_known() -> None:
    if tf.config.list_physical_devices("GPU"):
        assert _library.load_gpu() is None
        return
    reason = _library.load_gpu()
    info = _library.cuda_info()
    assert info is not None
    assert reason
    assert reason == info["devices_missing"]
