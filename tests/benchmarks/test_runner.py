"""That peers take turns with pauses, and that failures are seen. The peers here are not real."""

from __future__ import annotations

import numpy as np
import pytest

import runner
from runner import PeerError, Plan, Prepared, Runner, in_groups
from workloads import Case, Layer

CASE = Case("suite", "name", "forward", (2, 2), (Layer((2, 2)),))
PLAN = Plan(rounds=2, turn=0.5, pause=0.25, most_flops=None, limit_seconds=0.1)


class FakeWorker:
    """Answers at once, and writes down what it was asked."""

    def __init__(
        self, log, peer, y=1.0, seconds=1.0, supported=True, dies=False, memory=None, lacks=""
    ):
        self.log, self.peer, self.y, self.seconds = log, peer, y, seconds
        self.supported, self.dies, self.memory, self.lacks = supported, dies, memory, lacks

    def missing(self):
        if self.lacks is None:
            raise PeerError("died")
        return self.lacks

    def prepare(self, _number, _task):
        return Prepared({"y": np.full(3, self.y)}, self.memory) if self.supported else None

    def measure(self, number, _seconds):
        self.log.append(("turn", self.peer, number))
        if self.dies:
            raise PeerError("died")
        return [self.seconds, self.seconds]

    def release(self, number):
        self.log.append(("release", self.peer, number))

    def close(self):
        self.log.append(("close", self.peer))


@pytest.fixture
def make_runner(monkeypatch):
    """Make a runner with fake peers, and a list of what happens in which order."""

    def make_runner(peers=("tf-eager", "torch"), threads=2, device="cpu", **unlike):
        log = []
        monkeypatch.setattr(runner.time, "sleep", lambda seconds: log.append(("pause", seconds)))

        def start(peer, threads, device):
            log.append(("start", peer, threads, device))
            return FakeWorker(log, peer, **unlike.get(peer.replace("-", "_"), {}))

        return Runner(peers, threads, PLAN, device, start), log

    return make_runner


@pytest.fixture
def measure(make_runner):
    """Measure with fake peers; returns the results and what happened in which order."""

    def measure(tasks, *options, **unlike):
        measuring, log = make_runner(*options, **unlike)
        results = measuring.measure(tasks)
        measuring.close()
        return results, log

    return measure


def turns(log):
    return [entry[1:] for entry in log if entry[0] == "turn"]


def test_peers_take_turns_there_and_back(measure):
    _, log = measure([(CASE, "eager")])
    peers = ["stopgrad_op", "tf-eager", "torch"]
    assert [peer for peer, _ in turns(log)] == [*peers, *reversed(peers)]


def test_there_is_a_pause_before_each_turn(measure):
    _, log = measure([(CASE, "eager")])
    before = [log[i - 1] for i, entry in enumerate(log) if entry[0] == "turn"]
    assert before == [("pause", PLAN.pause)] * 6


def test_cases_of_a_group_take_turns_with_each_other(measure):
    _, log = measure([(CASE, "eager"), (CASE, "eager")], peers=["torch"])
    there = [("stopgrad_op", 0), ("torch", 0), ("stopgrad_op", 1), ("torch", 1)]
    assert turns(log) == [*there, *reversed(there)]


def test_samples_of_all_rounds_count(measure):
    ((result,), _) = measure([(CASE, "eager")], torch={"seconds": 3.0})
    assert result.samples == {
        "stopgrad_op": [1.0] * 4,
        "tf-eager": [1.0] * 4,
        "torch": [3.0] * 4,
    }
    assert not result.failures


def test_all_peers_get_the_threads_that_the_case_names(measure):
    one = Case("suite", "one", "forward", (2, 2), (Layer((2, 2)),), threads=1)
    for case, threads in ((CASE, 2), (one, 1)):
        ((result,), log) = measure([(case, "eager")])
        assert {entry[2] for entry in log if entry[0] == "start"} == {threads}
        assert result.threads == threads


def test_peers_of_another_mode_take_no_part(measure):
    ((result,), _) = measure([(CASE, "function")])
    assert list(result.samples) == ["stopgrad_op", "torch"]


def test_peer_that_disagrees_fails_and_is_not_measured(measure):
    ((result,), log) = measure([(CASE, "eager")], torch={"y": 2.0})
    assert "torch" not in result.samples
    assert ("torch", 0) not in turns(log)
    assert result.failures["torch"].startswith("does not agree with stopgrad_op: y is off by")


def test_peer_that_dies_fails_and_the_others_go_on(measure):
    ((result,), log) = measure([(CASE, "eager")], tf_eager={"dies": True})
    assert result.failures == {"tf-eager": "died"}
    assert list(result.samples) == ["stopgrad_op", "torch"]
    # Its process is left at once, since nobody knows what state it is in.
    assert log.index(("close", "tf-eager")) < log.index(("turn", "torch", 0))


@pytest.mark.parametrize(("lacks", "why"), [("sees no GPU", "sees no GPU"), (None, "died")])
def test_peer_that_cannot_work_on_the_device_is_left_out_and_ended(make_runner, lacks, why):
    measuring, log = make_runner(device="gpu", torch={"lacks": lacks})
    assert measuring.leave_out() == {"torch": why}
    assert log[-1] == ("close", "torch")
    (result,) = measuring.measure([(CASE, "eager")])
    assert list(result.samples) == ["stopgrad_op", "tf-eager"]
    assert not result.failures
    assert {entry[3] for entry in log if entry[0] == "start"} == {"gpu"}


def test_memory_is_that_of_the_peers_that_know_theirs(measure):
    ((result,), _) = measure([(CASE, "eager")], stopgrad_op={"memory": 0}, tf_eager={"memory": 7})
    assert result.memory == {"stopgrad_op": 0, "tf-eager": 7}


def test_products_in_tf32_may_differ_on_a_gpu_alone(measure):
    for device, failed in (("cpu", ["torch"]), ("gpu", [])):
        ((result,), _) = measure([(CASE, "eager")], device=device, torch={"y": 1.001})
        assert list(result.failures) == failed


def test_work_that_a_peer_does_not_do_is_no_failure(measure):
    ((result,), _) = measure([(CASE, "eager")], torch={"supported": False})
    assert list(result.samples) == ["stopgrad_op", "tf-eager"]
    assert not result.failures


def test_everything_is_released_and_ended(measure):
    _, log = measure([(CASE, "eager")])
    for peer in ("stopgrad_op", "tf-eager", "torch"):
        assert log.count(("release", peer, 0)) == 1
        assert log.count(("close", peer)) == 1


def test_groups_are_measured_together_and_other_cases_alone():
    alone = Case("suite", "alone", "forward", (2, 2), (Layer((2, 2)),))
    first, second = (
        Case("suite", name, "forward", (2, 2), (Layer((2, 2)),), modes=("eager",), group="g")
        for name in ("first", "second")
    )
    assert in_groups([alone, first, second], ["eager", "function"]) == [
        [(alone, "eager")],
        [(alone, "function")],
        [(first, "eager"), (second, "eager")],
    ]


def test_group_is_measured_in_each_mode_apart():
    first, second = (
        Case("suite", name, "forward", (2, 2), (Layer((2, 2)),), group="g")
        for name in ("first", "second")
    )
    assert in_groups([first, second], ["eager", "function"]) == [
        [(first, "eager"), (second, "eager")],
        [(first, "function"), (second, "function")],
    ]


def test_workers_know_how_many_threads_there_are():
    environment = runner.worker_environment(3, "cpu")
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_workers_share_one_gpu_and_its_memory(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = runner.worker_environment(3, "gpu")
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert runner.worker_environment(3, "gpu")["CUDA_VISIBLE_DEVICES"] == "2"
