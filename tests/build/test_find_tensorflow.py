"""What backend/find_tensorflow.py finds, in environments made for the occasion."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

import find_tensorflow
import pytest

SCRIPT = Path(find_tensorflow.__file__)

# A module with as much of TensorFlow's interface as the script asks for.
FAKE_TENSORFLOW = """
import os
class version:
    VERSION = {version!r}
class sysconfig:
    CXX11_ABI_FLAG = 1
    @staticmethod
    def get_lib(): return os.path.dirname(__file__)
    @staticmethod
    def get_include(): return os.path.join(os.path.dirname(__file__), "include")
    @staticmethod
    def get_compile_flags(): return ["-I/include", "-D_GLIBCXX_USE_CXX11_ABI=1", "--std=c++17"]
    @staticmethod
    def get_build_info(): return {{"is_cuda_build": False}}
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing in it, not even pip."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        venv.create(folder, with_pip=False, symlinks=True)
        return cls(folder)

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def add(self, distribution: str, version: str, code: str = FAKE_TENSORFLOW) -> Path:
        """Add a distribution of TensorFlow whose module consists of this code."""
        (site_packages,) = self.folder.glob("lib/python*/site-packages")
        metadata = site_packages / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (metadata / "METADATA").write_text(text)
        module = site_packages / "tensorflow"
        module.mkdir()
        (module / "__init__.py").write_text(code.format(version=version))
        for name in ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2"):
            (module / name).touch()
        return module

    def find(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script in this environment, with these environment variables besides."""
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [self.bin / "python", SCRIPT],
            env={**environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment.create(tmp_path / "env")


@pytest.fixture
def hiding(tmp_path: Path) -> str:
    """A PYTHONPATH that hides site-packages the way pip's build isolation does."""
    folder = tmp_path / "hiding"
    folder.mkdir()
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


def one_line_of_failure(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("stopgrad_op: ")
    return line


@pytest.mark.parametrize("distribution", find_tensorflow.DISTRIBUTIONS)
def test_every_distribution_is_found(environment: Environment, distribution: str) -> None:
    module = environment.add(distribution, "2.20.1")
    result = environment.find()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "distribution": distribution,
        "version": "2.20.1",
        "include_dir": str(module / "include"),
        "compile_flags": ["-D_GLIBCXX_USE_CXX11_ABI=1"],
        "cxx_standard": 17,
        "framework_library": str(module / "libtensorflow_framework.so.2"),
        "cc_library": str(module / "libtensorflow_cc.so.2"),
    }


def test_site_packages_that_isolation_hides_are_searched(
    environment: Environment, hiding: str
) -> None:
    environment.add("tensorflow-cpu", "2.21.0")
    result = environment.find(PYTHONPATH=hiding, PYTHONNOUSERSITE="1")
    assert json.loads(result.stdout)["distribution"] == "tensorflow-cpu", result.stderr


def test_what_the_build_asked_for_comes_before_what_is_hidden(
    environment: Environment, hiding: str, tmp_path: Path
) -> None:
    environment.add("tensorflow-cpu", "2.20.0")
    asked_for = Environment.create(tmp_path / "asked_for")
    module = asked_for.add("tensorflow", "2.21.0")
    # The finder lets through what does not lie in a site-packages.
    overlay = module.parent.rename(tmp_path / "overlay")
    result = environment.find(PYTHONPATH=os.pathsep.join([hiding, str(overlay)]))
    assert json.loads(result.stdout)["version"] == "2.21.0", result.stderr


@pytest.mark.parametrize("throwaway", ["pip-build-env-x1", "build-env-x1", "builds-v0"])
def test_throwaway_environment_leads_to_the_active_one(
    environment: Environment, tmp_path: Path, throwaway: str
) -> None:
    environment.add("tensorflow-cpu", "2.21.0")
    path = os.pathsep.join([str(environment.bin), os.environ["PATH"]])
    found = Environment.create(tmp_path / throwaway).find(PATH=path)
    assert json.loads(found.stdout)["distribution"] == "tensorflow-cpu", found.stderr
    one_line_of_failure(Environment.create(tmp_path / "of_the_user").find(PATH=path))


def test_no_tensorflow_says_what_to_type(environment: Environment) -> None:
    line = one_line_of_failure(environment.find())
    assert "pip install 'tensorflow>=" in line
    assert "STOPGRAD_TENSORFLOW=OFF" in line


def test_another_pythons_tensorflow_is_no_tensorflow(environment: Environment) -> None:
    environment.add("tensorflow", "2.21.0")
    (site_packages,) = environment.folder.glob("lib/python*/site-packages")
    site_packages.parent.rename(site_packages.parent.with_name("python3.1"))
    assert "there is no TensorFlow" in one_line_of_failure(environment.find())


@pytest.mark.parametrize(
    ("distribution", "version", "complaint"),
    [
        ("tensorflow-cpu", "2.18.1", "too old"),
        ("tensorflow", "1.15.0", "too old"),
        ("tensorflow", "2.22.0", "too new"),
        ("tensorflow", "3.0.0", "too new"),
        ("tensorflow", "2.22.0rc0", "too new"),
        ("tf-nightly", "2.18.0.dev20240601", "too old"),
    ],
)
def test_unsupported_version_says_what_to_type(
    environment: Environment, distribution: str, version: str, complaint: str
) -> None:
    environment.add(distribution, version)
    line = one_line_of_failure(environment.find())
    assert f"{distribution} {version} is {complaint}" in line
    what = "--upgrade tf-nightly" if "dev" in version else f"'{distribution}>=2.19,<2.22'"
    assert line.endswith(f"Type: pip install {what}")


@pytest.mark.parametrize(
    "version", ["2.19.0", "2.19.1", "2.20.0", "2.21.0rc1", "2.21.0", "2.22.0.dev20260905"]
)
def test_supported_versions_and_newer_nightlies_pass(version: str) -> None:
    find_tensorflow.check_supported("tensorflow", version)


def test_broken_tensorflow_shows_the_last_line_of_its_error(environment: Environment) -> None:
    environment.add("tensorflow", "2.21.0", "raise ImportError('libfoo.so.1: cannot open')")
    line = one_line_of_failure(environment.find())
    assert "cannot be imported: ImportError: libfoo.so.1: cannot open." in line
    assert "pip install --force-reinstall tensorflow==2.21.0" in line


def test_tensorflow_that_kills_the_process_names_the_signal(environment: Environment) -> None:
    environment.add("tensorflow", "2.21.0", "import os, signal; os.kill(os.getpid(), 4)")
    assert "the process died of SIGILL" in one_line_of_failure(environment.find())


@pytest.mark.parametrize("library", ["libtensorflow_framework", "libtensorflow_cc"])
def test_tensorflow_without_its_library_is_named(environment: Environment, library: str) -> None:
    module = environment.add("tensorflow", "2.21.0")
    (module / f"{library}.so.2").unlink()
    assert library in one_line_of_failure(environment.find())


def test_working_directory_is_not_mistaken_for_tensorflow(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.add("tensorflow", "2.21.0")
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('imported by mistake')")
    monkeypatch.chdir(tmp_path)
    assert environment.find().returncode == 0


def test_installed_tensorflow_is_described_as_it_describes_itself() -> None:
    tf = pytest.importorskip("tensorflow")
    facts = find_tensorflow.describe()
    assert facts["version"] == tf.version.VERSION
    assert facts["include_dir"] == tf.sysconfig.get_include()
    assert Path(str(facts["framework_library"])).is_file()
    assert Path(str(facts["cc_library"])).is_file()
