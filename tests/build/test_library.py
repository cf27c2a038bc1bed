"""What is checked before the compiled parts are loaded, and what is said when it fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stopgrad_op import _library
from stopgrad_op._library import BuildInfo, TensorFlowAbi, check_compatible, load_ops


@pytest.mark.parametrize(
    ("built", "running"),
    [
        ("2.21.0", "2.21.0"),
        ("2.21.0", "2.21.1"),
        ("2.20.0+nv25.1", "2.20.0"),
        ("2.22.0-dev20260905", "2.22.0-dev20260905"),
        ("2.21.0-rc1", "2.21.0-rc1"),
    ],
)
def test_same_interface_is_accepted(built: str, running: str) -> None:
    check_compatible(TensorFlowAbi(built, 1), TensorFlowAbi(running, 1))


@pytest.mark.parametrize(
    ("built", "running"),
    [
        ("2.20.0", "2.21.0"),
        ("2.21.0", "3.21.0"),
        ("2.2.0", "2.21.0"),
        ("2.22.0-dev20260905", "2.22.0-dev20260906"),
        ("2.22.0-dev20260905", "2.22.0"),
        ("2.21.0-rc1", "2.21.0"),
        ("2.21.0", "2.21.0-rc1"),
    ],
)
def test_other_version_says_both_and_what_to_type(built: str, running: str) -> None:
    with pytest.raises(ImportError) as error:
        check_compatible(TensorFlowAbi(built, 1), TensorFlowAbi(running, 1))
    message = str(error.value)
    assert f"built for TensorFlow {built} and TensorFlow {running} is running" in message
    assert "pip install --force-reinstall" in message


def test_other_cxx_abi_says_both_and_what_to_type() -> None:
    with pytest.raises(ImportError) as error:
        check_compatible(TensorFlowAbi("2.21.0", 0), TensorFlowAbi("2.21.0", 1))
    message = str(error.value)
    assert "_GLIBCXX_USE_CXX11_ABI=0 and the TensorFlow 2.21.0 that is running with 1" in message
    assert "pip install --force-reinstall" in message


def pretend(monkeypatch: pytest.MonkeyPatch, tensorflow: str | None) -> None:
    """Let build_info say that this was built for another TensorFlow."""
    info: BuildInfo = {
        **_library.build_info(),
        "tensorflow": tensorflow,
        "tensorflow_distribution": "tensorflow-cpu",
    }
    monkeypatch.setattr(_library, "build_info", lambda: info)


def test_mismatch_is_found_before_the_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(tf, "load_op_library", lambda path: pytest.fail(f"loaded {path}"))
    pretend(monkeypatch, "2.1.0")
    with pytest.raises(ImportError, match=r"built for TensorFlow 2\.1\.0 and TensorFlow"):
        load_ops.__wrapped__()


def test_build_without_tensorflow_says_that_it_has_no_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    with pytest.raises(ImportError, match="STOPGRAD_TENSORFLOW=OFF"):
        load_ops.__wrapped__()


@pytest.mark.parametrize(
    ("built", "requirement"), [("2.21.0", "2.21.*"), ("2.22.0-dev1", "2.22.0-dev1")]
)
def test_absent_tensorflow_says_which_to_install(
    monkeypatch: pytest.MonkeyPatch, built: str, requirement: str
) -> None:
    pretend(monkeypatch, built)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError) as error:
        load_ops.__wrapped__()
    assert f"pip install 'tensorflow-cpu=={requirement}'" in str(error.value)


def test_lost_ops_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tf = pytest.importorskip("tensorflow")
    pretend(monkeypatch, tf.version.VERSION)
    monkeypatch.setattr(_library, "OPS_LIBRARY", "libstopgrad_ops.lost")
    with pytest.raises(ImportError, match=r"libstopgrad_ops\.lost"):
        load_ops.__wrapped__()


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    """The package as it lies in a checkout: nothing in it is compiled."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(_library.__file__).parent, tmp_path / "stopgrad_op", ignore=ignore)
    return tmp_path


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_source_folder_on_the_path_uses_the_installed_kernels(source_folder: Path) -> None:
    if Path(str(_library.load_kernels().__file__)).parent != Path(_library.__file__).parent:
        pytest.skip("an editable install finds its own sources before any folder")
    code = "import stopgrad_op; print(stopgrad_op.__file__, stopgrad_op.build_info()['version'])"
    result = run("-c", code, folder=source_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == str(source_folder / "stopgrad_op" / "__init__.py")


def test_source_folder_alone_says_what_to_type(source_folder: Path) -> None:
    result = run("-S", "-c", "import stopgrad_op", folder=source_folder)
    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("ImportError: stopgrad_op in ")
    assert "type: pip install ." in last_line
