"""That a worker times what was asked for, waits for what it started, and hands over what fits."""

from __future__ import annotations

import numpy as np
import pytest

import worker
from peers import Work


class Device:
    """Computes later: a call takes a millisecond, and whoever waits is there at its end."""

    CALL = 0.001

    def __init__(self, compiles=0.0):
        self.now, self.ready, self.log, self.compiles = 0.0, 0.0, [], compiles

    def perf_counter(self):
        return self.now

    def run(self):
        self.log.append("run")
        assert len(self.log) < 10_000, "time does not pass without waiting"
        self.now += self.compiles
        self.compiles = 0.0
        self.ready = max(self.now, self.ready) + self.CALL
        return len(self.log)

    def wait(self, result):
        self.log.append(("wait", result))
        self.now = max(self.now, self.ready)

    def work(self):
        return Work(self.run, dict, self.wait)


def time_calls(monkeypatch, device, seconds, sample_seconds):
    monkeypatch.setattr(worker.time, "perf_counter", device.perf_counter)
    return worker.time_calls(device.work(), seconds, sample_seconds)


def test_time_ends_when_what_was_started_is_done(monkeypatch):
    samples = time_calls(monkeypatch, Device(), 0.1, 0.01)
    assert samples == pytest.approx([Device.CALL] * len(samples))


def test_many_short_calls_are_waited_for_together(monkeypatch):
    device = Device()
    time_calls(monkeypatch, device, 0.1, 0.01)
    sample = ["run"] * 10
    assert device.log[-11:-1] == sample
    assert device.log[-1] == ("wait", len(device.log) - 1)
    assert device.log[-12] != "run"


def test_long_call_is_a_sample_of_its_own(monkeypatch):
    device = Device()
    samples = time_calls(monkeypatch, device, 0.0, 0.0001)
    assert len(samples) == 1
    assert device.log[-4:] == ["run", ("wait", 3), "run", ("wait", 5)]


def test_call_that_compiles_does_not_say_how_many_make_a_sample(monkeypatch):
    device = Device(compiles=5.0)
    time_calls(monkeypatch, device, 0.1, 0.01)
    assert device.log[-11:-1] == ["run"] * 10


def test_large_array_is_handed_over_in_some_of_its_rows(monkeypatch):
    monkeypatch.setattr(worker, "COMPARED", 100)
    y = np.arange(300.0).reshape(30, 10)
    np.testing.assert_array_equal(worker._storable(y), y[::3])
    np.testing.assert_array_equal(worker._storable(y[:10]), y[:10])
    assert worker._storable(y.reshape(3, 10, 10)).shape == (3, 4, 10)
