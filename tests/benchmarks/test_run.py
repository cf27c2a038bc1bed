"""The command line: who takes part, and one quick run of a small suite from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import run
import stopgrad_op as sg
from peers import PEERS
from runner import FULL, QUICK, Plan, Prepared
from workloads import SUITES


def test_peer_that_is_not_installed_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(run, "is_installed", lambda name: name != "torch")
    here, missing = run.choose_peers(["tf-eager", "torch", "jax"], "cpu")
    assert (here, missing) == (["tf-eager", "jax"], {"torch": "not installed"})


@pytest.mark.parametrize(("device", "only"), [("cpu", "numpy"), ("gpu", "torch-compile")])
def test_peers_are_those_of_the_device(monkeypatch, device, only):
    monkeypatch.setattr(run, "is_installed", lambda _: True)
    here, missing = run.choose_peers(["numpy", "torch", "torch-compile"], device)
    assert set(here) == {only, "torch"}
    assert missing == {}


def test_peers_are_found_by_the_package_that_they_need():
    assert run.is_installed("numpy")
    assert all(PEERS[name].package == name for name in ("keras", "torch", "jax", "numpy"))


def test_suites_without_large_cases_keep_groups_whole():
    # Below the full backward pass of 256×1024×1024, and above one with an operand blocked.
    plan = replace(QUICK["cpu"], most_flops=6e8)
    cases = run.choose_cases(list(SUITES), "cpu", plan)
    assert all(case.flops <= 6e8 for case in cases)
    for suite in SUITES.values():
        for name in {case.group for case in suite.cases} - {None}:
            whole = [case for case in suite.cases if case.group == name]
            assert sum(case.group == name for case in cases) in (0, len(whole))


def test_cases_are_chosen_by_a_part_of_their_name():
    cases = run.choose_cases(["mlp", "dense"], "cpu", FULL["cpu"], ["half frozen", "16×64×64"])
    assert {case.suite for case in cases} == {"mlp", "dense"}
    assert all("half frozen" in case.name or "16×64×64" in case.name for case in cases)
    assert len(cases) < len(run.choose_cases(["mlp", "dense"], "cpu", FULL["cpu"]))


def test_device_without_cases_is_an_error(capsys):
    assert run.main(["--device", "gpu", "--suite", "blog"]) == 2
    assert "no such cases for gpu" in capsys.readouterr().out


class DisagreeingWorker:
    """Each peer has a result of its own, and each call takes a second."""

    def __init__(self, peer, _threads, device):
        self.peer = peer
        self.device = device

    def missing(self):
        return ""

    def prepare(self, _number, _task):
        return Prepared({"y": np.full(3, len(self.peer))})

    def measure(self, _number, _seconds):
        return [1.0]

    def release(self, _number):
        pass

    def close(self):
        pass


def test_run_with_a_peer_that_computes_something_else_fails_loudly(monkeypatch, capsys):
    monkeypatch.setattr(run, "ProcessWorker", DisagreeingWorker)
    monkeypatch.setattr(run, "measure_limits", lambda *_: ({}, None))
    assert run.main(["--quick", "--suite", "blog", "--peers", "numpy"]) == 1
    output = capsys.readouterr()
    assert "FAILED: numpy: does not agree with stopgrad_op: y is off by" in output.err
    assert "**numpy** does not agree" in output.out


class WorkerWithoutGpu(DisagreeingWorker):
    """Nobody has a GPU."""

    def missing(self):
        return "it was built with STOPGRAD_CUDA=OFF"


@pytest.mark.parametrize("alone", [False, True])
def test_package_without_a_gpu_is_an_error_that_says_why(monkeypatch, capsys, alone):
    monkeypatch.setattr(run, "ProcessWorker", WorkerWithoutGpu)
    monkeypatch.setattr(
        run, "measure_limits", lambda *_: pytest.fail("there is nothing to measure")
    )
    peers = [] if alone else ["tf-eager"]
    assert run.main(["--device", "gpu", "--quick", "--suite", "overhead", "--peers", *peers]) == 1
    assert "stopgrad_op has no gpu here: it was built with STOPGRAD_CUDA=OFF" in (
        capsys.readouterr().err
    )


class AgreeingWorker(DisagreeingWorker):
    """All peers have the same result."""

    def prepare(self, _number, _task):
        return Prepared({"y": np.ones(3)})


def test_pictures_of_all_suites_stand_in_the_report(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(run.QUICK, "cpu", replace(QUICK["cpu"], pause=0))
    monkeypatch.setattr(run, "ProcessWorker", AgreeingWorker)
    monkeypatch.setattr(run, "measure_limits", lambda *_: ({}, None))
    arguments = ["--quick", "--suite", "control", "scaling", "--peers", "tf-xla"]
    files = ["--plot", str(tmp_path / "run.png"), "--report", str(tmp_path / "run.md")]
    assert run.main([*arguments, *files]) == 0
    report = (tmp_path / "run.md").read_text()
    assert "](run.png)" in report
    assert "](run-control.png)" in report
    assert (tmp_path / "run-control.png").exists()
    assert capsys.readouterr().err == ""


class InterruptedWorker(AgreeingWorker):
    """The user stops waiting in the third case, and then does not wait for the processes to end."""

    def prepare(self, number, task):
        if task[0].name == "tape step, layers: 4":
            raise KeyboardInterrupt
        return super().prepare(number, task)

    def close(self):
        raise KeyboardInterrupt


def test_what_was_measured_before_an_interrupt_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(run.QUICK, "cpu", replace(QUICK["cpu"], pause=0))
    monkeypatch.setattr(run, "ProcessWorker", InterruptedWorker)
    monkeypatch.setattr(run, "measure_limits", lambda *_: ({}, None))
    file = tmp_path / "run.json"
    arguments = ["--quick", "--suite", "overhead", "--case", "layers", "--mode", "eager"]
    with pytest.raises(KeyboardInterrupt):
        run.main([*arguments, "--peers", "tf-eager", "--json", str(file)])
    *records, last = json.loads(file.read_text())
    assert [record["case"] for record in records] == [
        "tape step, layers: 1",
        "tape step, layers: 2",
    ]
    assert "interrupted after 2 of 5" in last["machine"]["remarks"]


class WorkerOfAGpu(AgreeingWorker):
    """TensorFlow alone has one, and knows what memory is taken."""

    def missing(self):
        assert self.device == "gpu"
        return "JAX sees no GPU" if self.peer == "jax" else ""

    def prepare(self, _number, _task):
        return Prepared({"y": np.ones(3)}, 2**20)


def test_run_on_a_gpu_names_who_sees_none_and_records_memory(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "is_installed", lambda name: name != "torch")
    monkeypatch.setattr(run, "ProcessWorker", WorkerOfAGpu)
    monkeypatch.setattr(run, "measure_limits", lambda *_: ({2: {"tf32": 1e14, "copy": 1e12}}, None))
    monkeypatch.setattr(run.machine_description, "available_threads", lambda: 2)
    files = ["--json", str(tmp_path / "gpu.json")]
    peers = ["--peers", "tf-eager", "torch", "jax"]
    suites = ["--suite", "overhead", "dtypes"]
    assert run.main(["--device", "gpu", "--quick", "--threads", "2", *suites, *peers, *files]) == 0
    *records, last = json.loads((tmp_path / "gpu.json").read_text())
    assert last["machine"]["remarks"][0] == "left out: torch (not installed), jax (JAX sees no GPU)"
    assert {record["device"] for record in records} == {"gpu"}
    eager = next(record for record in records if record["mode"] == "eager")
    assert eager["memory"] == {"stopgrad_op": 2**20, "tf-eager": 2**20}
    assert "1.0 MiB" in capsys.readouterr().out
    limits = {record["case"]: record["limit"] for record in records}
    assert limits["float32, 4096³"] == 2 * 4096**3 / 1e14
    assert limits["float64, 4096³"] is None


@pytest.mark.skipif(sg.build_info()["tensorflow"] is None, reason="a build without TensorFlow")
def test_quick_run_from_end_to_end(monkeypatch, tmp_path, capsys):
    shortest = Plan(rounds=1, turn=0.001, pause=0, most_flops=None, limit_seconds=0.001)
    monkeypatch.setitem(run.QUICK, "cpu", shortest)
    files = {name: tmp_path / "results" / f"run.{name}" for name in ("json", "report")}
    code = run.main(
        ["--quick", "--suite", "blog", "--peers", "tf-eager", "--threads", "1"]
        + [argument for name, file in files.items() for argument in (f"--{name}", str(file))]
    )
    assert code == 0
    *records, last = json.loads(files["json"].read_text())
    machine = last["machine"]
    assert [record["mode"] for record in records] == ["eager", "function"]
    assert list(records[0]["seconds"]) == ["stopgrad_op", "tf-eager"]
    assert records[0]["best_peer"] == "tf-eager"
    assert all(math.isfinite(s) and s > 0 for s in records[0]["seconds"].values())
    assert files["report"].read_text() in capsys.readouterr().out
    assert (machine["quick"], machine["failures"]) == (True, [])
    assert machine["versions"]["numpy"]
