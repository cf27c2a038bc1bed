"""That medians, the best peer and the ratio are right on given numbers."""

from __future__ import annotations

import json

import pytest

from records import make_record
from workloads import Case, Layer

CASE = Case("suite", "name", "forward", (10, 10), (Layer((10, 10)),))
SAMPLES = {
    "stopgrad_op": [2.0, 1.0, 100.0],
    "torch": [6.0, 5.0, 4.0],
    "jax": [3.0, 3.0, 3.0, 1.0],
}
# The keys and types that the benchmark's contract lists.
CONTRACT = {
    "suite": str,
    "case": str,
    "mode": str,
    "device": str,
    "dtype": str,
    "seconds": dict,
    "best_peer": str,
    "ratio": float,
}


def test_seconds_are_medians():
    record = make_record(CASE, "eager", "cpu", 2, SAMPLES, None)
    assert record["seconds"] == {"stopgrad_op": 2.0, "torch": 5.0, "jax": 3.0}


def test_ratio_is_the_best_peers_time_over_ours():
    record = make_record(CASE, "eager", "cpu", 2, SAMPLES, None)
    assert (record["best_peer"], record["ratio"]) == ("jax", 1.5)


def test_loss_has_a_ratio_below_one():
    record = make_record(CASE, "eager", "cpu", 2, {**SAMPLES, "torch": [0.5]}, None)
    assert (record["best_peer"], record["ratio"]) == ("torch", 0.25)


def test_no_peer_makes_no_ratio():
    record = make_record(CASE, "eager", "cpu", 2, {"stopgrad_op": [1.0]}, None)
    assert (record["best_peer"], record["ratio"]) == (None, None)


def test_spread_is_the_quartiles():
    record = make_record(CASE, "eager", "cpu", 2, {"stopgrad_op": [1, 2, 3, 4, 9]}, None)
    assert record["spread"] == {"stopgrad_op": (2.0, 4.0)}


def test_limit_is_the_time_at_the_machines_peak():
    assert CASE.flops == 2000
    assert make_record(CASE, "eager", "cpu", 2, SAMPLES, 1e3)["limit"] == pytest.approx(2)
    assert make_record(CASE, "eager", "cpu", 2, SAMPLES, None)["limit"] is None


def test_memory_is_what_was_known_of_it():
    assert make_record(CASE, "eager", "gpu", 2, SAMPLES, None, {"jax": 7})["memory"] == {"jax": 7}
    assert make_record(CASE, "eager", "cpu", 2, SAMPLES, None)["memory"] == {}


def test_json_has_what_the_contract_lists():
    record = json.loads(json.dumps(make_record(CASE, "eager", "cpu", 2, SAMPLES, 1.0)))
    assert {key: type(record[key]) for key in CONTRACT} == CONTRACT
