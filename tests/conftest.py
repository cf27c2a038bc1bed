"""What all tests share: fixed seeds, and which tests this build can run."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import devices
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, settings

import stopgrad_op as sg

settings.register_profile(
    "stopgrad_op",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("stopgrad_op")

_HAS_TENSORFLOW = sg.build_info()["tensorflow"] is not None

collect_ignore = [] if _HAS_TENSORFLOW else ["gpu", "ops", "xla"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=devices.DEVICES,
        default="cpu",
        help="where tests that run on any device do so",
    )


def pytest_report_header() -> str:
    info = sg.build_info()
    built_for = f"TensorFlow {info['tensorflow']}" if _HAS_TENSORFLOW else "no TensorFlow, no ops"
    missing = sg.build_info()["xla_missing"]
    without = f", without XLA: {missing}" if missing else ""
    return f"stopgrad_op {info['version']} for {built_for}, {info['instructions']}{without}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the emulated GPU can show where a real one is tested."""
    if config.getoption("--device") != "gpu":
        return
    emulated = [item for item in items if "emulated" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=emulated)
    items[:] = [item for item in items if item not in emulated]


@pytest.fixture(autouse=True)
def device_of_tensorflow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the ops where --device says; where TensorFlow has a GPU, that is what it takes itself."""
    if not {"ops", "xla"} & set(request.path.parts):
        yield
        return
    import tensorflow as tf

    device = request.config.getoption("--device")
    devices.ops_run_on_gpu = device == "gpu"
    if device == "emulated":
        pytest.skip("TensorFlow has no emulated GPU")
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if device == "gpu":
        if not has_gpu:
            pytest.skip("TensorFlow sees no GPU")
        for marker in request.node.iter_markers("cpu_only"):
            pytest.skip(marker.args[0])
        # What TF32 rounds is a test of tests/gpu.
        tf.config.experimental.enable_tensor_float_32_execution(False)
    with tf.device("/CPU:0") if has_gpu and device == "cpu" else contextlib.nullcontext():
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on nothing but the test's name."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> str:
    """The dtype that a test is parametrized with, indirectly."""
    name: str = request.param
    if name == "bfloat16" and reference.bfloat16 is None:
        pytest.skip("bfloat16 arrays need the package ml_dtypes")
    return name
