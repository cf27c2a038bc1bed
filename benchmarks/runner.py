"""Measures cases: peers in processes of their own, in turn, with pauses."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from agreement import disagreement
from peers import OURS, PEERS
from workloads import Array, Case, Mode, multiplied_in

_WORKER = Path(__file__).with_name("worker.py")

Task = tuple[Case, Mode]


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes
    ----------
    rounds
        How many turns each peer gets in each case.
    turn
        Seconds of a turn; at least one call.
    pause
        Seconds before a turn, in which the last peer's threads fall asleep. OpenBLAS's spin for
        some tens of milliseconds, those of an OpenMP by LLVM or Intel for 200.
    most_flops
        Larger cases are left out; `None` means none are.
    limit_seconds
        For each of the machine's limits.
    """

    rounds: int
    turn: float
    pause: float
    most_flops: float | None
    limit_seconds: float


# By device. Work for a GPU leaves the pools asleep.
FULL = {
    "cpu": Plan(rounds=5, turn=0.15, pause=0.25, most_flops=None, limit_seconds=0.2),
    "gpu": Plan(rounds=5, turn=0.15, pause=0.05, most_flops=None, limit_seconds=0.2),
}
QUICK = {
    "cpu": Plan(rounds=2, turn=0.02, pause=0.05, most_flops=3.3e9, limit_seconds=0.02),
    "gpu": Plan(rounds=2, turn=0.02, pause=0.0, most_flops=2.5e11, limit_seconds=0.02),
}


class PeerError(Exception):
    """A peer could not do what it was asked for."""


class Prepared(NamedTuple):
    """A case that is built: its results, and the device's memory that a call takes, if known."""

    results: dict[str, Array]
    memory: int | None = None


class Worker(Protocol):
    """Where a peer lives, as the runner sees it."""

    def missing(self) -> str:
        """Return why the peer cannot work on the device; nothing where it can."""
        ...

    def prepare(self, number: int, task: Task) -> Prepared | None:
        """Build a case; return `None` where the peer does not do such work."""
        ...

    def measure(self, number: int, seconds: float) -> list[float]:
        """Return seconds a call, a sample each."""
        ...

    def release(self, number: int) -> None:
        """Forget the case."""
        ...

    def close(self) -> None:
        """End."""
        ...


def worker_environment(threads: int, device: str) -> dict[str, str]:
    """Return the environment of a worker: that of this process, threads and device."""
    count = str(threads)
    counts = ("OMP", "OPENBLAS", "MKL", "VECLIB", "BLIS", "NUMEXPR")
    environment = {
        **os.environ,
        **{f"{name}_NUM_THREADS": count for name in counts},
        "KERAS_BACKEND": "tensorflow",
    }
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # One GPU, which nvidia-smi counts in the same way.
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
        # There are other workers, to which a framework that takes all memory leaves none.
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return environment


class ProcessWorker:
    """A process that runs `worker.py`."""

    def __init__(self, peer: str, threads: int, device: str) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._log = Path(self._files.name, "log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER), peer, str(threads), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=worker_environment(threads, device),
            )

    def _ask(self, **command: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            print(json.dumps(command), file=stdin, flush=True)
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise PeerError(f"died with exit code {self._process.wait()}: {tail}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def missing(self) -> str:
        """Return why the peer cannot work on the device; nothing where it can."""
        why: str = self._ask(do="missing")["missing"]
        return why

    def prepare(self, number: int, task: Task) -> Prepared | None:
        """Build a case; return `None` where the peer does not do such work."""
        case, mode = task
        file = Path(self._files.name, "results.npz")
        answer = self._ask(do="prepare", id=number, key=case.key, mode=mode, results=str(file))
        if not answer["supported"]:
            return None
        with np.load(file) as results:
            return Prepared(dict(results), answer["memory"])

    def measure(self, number: int, seconds: float) -> list[float]:
        """Return seconds a call, a sample each."""
        samples: list[float] = self._ask(do="measure", id=number, seconds=seconds)["samples"]
        return samples

    def release(self, number: int) -> None:
        """Forget the case."""
        self._ask(do="release", id=number)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A process that died has closed its end.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._files.cleanup()


@dataclass
class Result:
    """What was measured of one case in one mode.

    Attributes
    ----------
    samples
        Seconds a call, of all rounds, by peer.
    memory
        Bytes of the device's memory that a call takes at most, by peer, where that is known.
    failures
        What went wrong, by peer. A peer that failed has no samples.
    """

    case: Case
    mode: Mode
    threads: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Runner:
    """Measures groups of cases.

    Parameters
    ----------
    peers
        Their names, without this package, which always takes part.
    threads
        For cases that do not say otherwise.
    start
        Starts a worker for a peer, a number of threads and a device.
    """

    def __init__(
        self,
        peers: Sequence[str],
        threads: int,
        plan: Plan,
        device: str,
        start: Callable[[str, int, str], Worker],
    ) -> None:
        self._peers = [OURS, *peers]
        self._threads = threads
        self._plan = plan
        self._device = device
        self._start = start
        self._workers: dict[tuple[str, int], Worker] = {}

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _worker(self, peer: str, threads: int) -> Worker:
        if (peer, threads) not in self._workers:
            self._workers[peer, threads] = self._start(peer, threads, self._device)
        return self._workers[peer, threads]

    def _drop(self, peer: str, threads: int) -> None:
        """Leave the process of a peer that failed; nobody knows what state it is in."""
        worker = self._workers.pop((peer, threads), None)
        if worker is not None:
            worker.close()

    def leave_out(self) -> dict[str, str]:
        """Leave out the peers that cannot work on the device, and return why, by peer."""
        for peer in self._peers:  # so that they import their frameworks at the same time
            self._worker(peer, self._threads)
        missing = {}
        for peer in self._peers:
            try:
                why = self._worker(peer, self._threads).missing()
            except PeerError as error:
                why = str(error)
            if why:
                missing[peer] = why
                self._drop(peer, self._threads)
        self._peers = [peer for peer in self._peers if peer not in missing]
        return missing

    def measure(self, tasks: Sequence[Task]) -> list[Result]:
        """Measure cases that are compared with each other, in turn."""
        results = [Result(case, mode, case.threads or self._threads) for case, mode in tasks]
        turns: list[tuple[int, str]] = []
        for number, (result, task) in enumerate(zip(results, tasks, strict=True)):
            turns += [(number, peer) for peer in self._prepare(number, task, result)]
        for round_number in range(self._plan.rounds):
            # There and back, so that nobody always comes after the same one.
            for number, peer in turns if round_number % 2 == 0 else reversed(turns):
                self._take_turn(number, peer, results[number])
        for number, peer in turns:
            result = results[number]
            if peer in result.failures:
                result.samples.pop(peer, None)
            else:
                self._worker(peer, result.threads).release(number)
        return results

    def _prepare(self, number: int, task: Task, result: Result) -> list[str]:
        """Build a case at all peers that do such work, and compare their results with ours."""
        ready: list[str] = []
        ours: dict[str, Array] = {}
        case, mode = task
        peers = [peer for peer in self._peers if mode in PEERS[peer].modes]
        for peer in peers:  # so that they import their frameworks at the same time
            self._worker(peer, result.threads)
        for peer in peers:
            try:
                found = self._worker(peer, result.threads).prepare(number, task)
            except PeerError as error:
                self._fail(peer, result, str(error))
                if peer == OURS:
                    return []
                continue
            if found is None:
                continue
            if peer == OURS:
                ours = found.results
            wrong = disagreement(
                ours,
                found.results,
                multiplied_in(case.dtype, self._device),
                layers=len(case.layers),
                rows=case.x[-2],
            )
            if wrong is not None:
                self._worker(peer, result.threads).release(number)
                result.failures[peer] = f"does not agree with {OURS}: {wrong}"
                continue
            ready.append(peer)
            if found.memory is not None:
                result.memory[peer] = found.memory
        return ready

    def _take_turn(self, number: int, peer: str, result: Result) -> None:
        if peer in result.failures:
            return
        time.sleep(self._plan.pause)
        try:
            samples = self._worker(peer, result.threads).measure(number, self._plan.turn)
        except PeerError as error:
            self._fail(peer, result, str(error))
        else:
            result.samples.setdefault(peer, []).extend(samples)

    def _fail(self, peer: str, result: Result, why: str) -> None:
        result.failures[peer] = why
        self._drop(peer, result.threads)


def in_groups(cases: Iterable[Case], modes: Sequence[Mode]) -> list[list[Task]]:
    """Return what is measured together: each case in each mode alone, or a whole group in one."""
    groups: list[list[Task]] = []
    for name, members in groupby(cases, key=lambda case: case.group):
        found = list(members)
        for together in [found] if name else [[case] for case in found]:
            tasks = ([(case, mode) for case in together if mode in case.modes] for mode in modes)
            groups += filter(None, tasks)
    return groups
