"""What the build hooks ask for, what the wheel requires, and how they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import find_cuda
import find_tensorflow
import pytest
import stopgrad_backend
import stopgrad_metadata

INSTALLED = find_tensorflow.Installed(
    "tensorflow-cpu", "2.20.0", find_tensorflow.Place("python", {})
)


def locate_nothing() -> find_tensorflow.Installed:
    raise find_tensorflow.NoTensorFlowError("there is none")


def locate_unsupported() -> find_tensorflow.Installed:
    raise find_tensorflow.TensorFlowError("it is too old")


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set, so that what the hooks write into it is undone; whoever runs the tests may have wishes.
    monkeypatch.setenv("STOPGRAD_TENSORFLOW", "ON")
    monkeypatch.delenv("STOPGRAD_TENSORFLOW_REQUIREMENT", raising=False)


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Put a function in the place of find_tensorflow.locate."""
    return lambda function: monkeypatch.setattr(find_tensorflow, "locate", function)


Located = Callable[[Callable[[], object]], None]


def asked_for(config_settings: dict[str, str | list[str]] | None = None) -> list[str]:
    """The TensorFlow requirements among what the hook asks for."""
    requirements = stopgrad_backend.get_requires_for_build_wheel(config_settings)
    return [requirement for requirement in requirements if requirement.startswith("t")]


@pytest.mark.parametrize(
    ("distribution", "version", "requirement"),
    [
        ("tensorflow", "2.21.0", "tensorflow==2.21.*"),
        ("tensorflow-cpu", "2.20.3", "tensorflow-cpu==2.20.*"),
        ("tensorflow", "2.19.0.post1", "tensorflow==2.19.*"),
        ("tensorflow-rocm", "2.20.0+rocm7.0", "tensorflow-rocm==2.20.*"),
        ("tensorflow", "2.21.0rc1", "tensorflow==2.21.0rc1"),
        ("tf-nightly-cpu", "2.22.0.dev20260905", "tf-nightly-cpu==2.22.0.dev20260905"),
    ],
)
def test_wheel_requires_what_it_was_built_against(
    distribution: str, version: str, requirement: str
) -> None:
    assert stopgrad_metadata.tensorflow_requirement(distribution, version) == requirement


def test_dependencies_name_the_installed_distribution(located: Located) -> None:
    located(lambda: INSTALLED)
    fields = stopgrad_metadata.Dependencies().dynamic_metadata({}, {})
    assert fields == {"dependencies": [stopgrad_metadata.NUMPY, "tensorflow-cpu==2.20.*"]}


def test_source_distribution_does_not_look_for_tensorflow(located: Located) -> None:
    located(locate_nothing)
    provider = stopgrad_metadata.Dependencies()
    provider.build_state("sdist")
    assert provider.dynamic_metadata({}, {}) == {"dependencies": [stopgrad_metadata.NUMPY]}
    assert provider.dynamic_wheel({}) == {"dependencies": True}


@pytest.mark.parametrize("value", ["OFF", "off", "0", "FALSE", "No"])
def test_build_without_tensorflow_neither_asks_for_nor_requires_it(
    located: Located, value: str
) -> None:
    located(locate_unsupported)
    assert asked_for({"cmake.define.STOPGRAD_TENSORFLOW": value}) == []
    fields = stopgrad_metadata.Dependencies().dynamic_metadata({}, {})
    assert fields == {"dependencies": [stopgrad_metadata.NUMPY]}


def test_installed_tensorflow_is_used_and_no_other_asked_for(located: Located) -> None:
    located(lambda: INSTALLED)
    assert asked_for() == []


def test_missing_tensorflow_is_asked_for(located: Located) -> None:
    located(locate_nothing)
    assert asked_for() == [f"tensorflow{find_tensorflow.version_range()}"]


def test_wish_decides_which_tensorflow_is_asked_for(
    located: Located, monkeypatch: pytest.MonkeyPatch
) -> None:
    located(lambda: INSTALLED)
    monkeypatch.setenv("STOPGRAD_TENSORFLOW_REQUIREMENT", "tensorflow-rocm==2.21.*")
    assert asked_for() == ["tensorflow-rocm==2.21.*"]


@pytest.mark.parametrize(
    ("wish", "brings_nvcc"),
    [("tensorflow[and-cuda]==2.21.*", True), ("tensorflow", True), ("tensorflow-cpu~=2.21", False)],
)
def test_wish_for_gpus_brings_their_compiler(
    monkeypatch: pytest.MonkeyPatch, wish: str, brings_nvcc: bool
) -> None:
    monkeypatch.setenv("STOPGRAD_TENSORFLOW_REQUIREMENT", wish)
    monkeypatch.setenv("STOPGRAD_CUDA", "AUTO")
    monkeypatch.setattr(find_cuda, "find_compiler", lambda: None)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    requirements = stopgrad_backend.get_requires_for_build_wheel()
    assert requirements[0] == wish
    assert any(r.startswith("nvidia-cuda-nvcc") for r in requirements) == brings_nvcc


def test_no_second_tensorflow_is_asked_for_where_the_first_cannot_be_seen(
    located: Located, monkeypatch: pytest.MonkeyPatch
) -> None:
    located(locate_nothing)
    monkeypatch.setattr("sys.prefix", "/tmp/pip-build-env-x1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(stopgrad_backend, "check_compiler", lambda: None)
    with pytest.raises(SystemExit, match="Activate that environment"):
        asked_for()


def test_unsupported_tensorflow_stops_the_build(located: Located) -> None:
    located(locate_unsupported)
    with pytest.raises(SystemExit, match=r"^stopgrad_op: it is too old$"):
        asked_for()


def test_missing_compiler_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"no C\+\+17 compiler. Type: sudo apt-get install g\+\+"):
        stopgrad_backend.check_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(SystemExit, match="CXX=no-such-compiler -O2 names a compiler"):
        stopgrad_backend.check_compiler()
