"""From samples to records: medians, spread, the best peer and the ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from peers import OURS
from workloads import Case, Kind, Mode

# In which rates are read, by device, and how many operations a second that is.
UNITS = {"cpu": ("GFLOP/s", 1e9), "gpu": ("TFLOP/s", 1e12)}


class Record(TypedDict):
    """What was measured of one case in one mode.

    Attributes
    ----------
    seconds
        Median over all rounds, by peer.
    spread
        The quartiles on both sides of it.
    best_peer, ratio
        The fastest other than this package, and its time divided by ours: above 1 we are faster.
        `None` where there is none.
    flops
        Floating-point operations of the products that must run.
    limit
        Seconds that they take at the machine's peak; `None` where it was not measured.
    memory
        Bytes of the device's memory that a call takes at most beside what it starts from, by peer,
        where that is known.
    """

    suite: str
    case: str
    mode: Mode
    device: str
    dtype: str
    seconds: dict[str, float]
    best_peer: str | None
    ratio: float | None
    kind: Kind
    threads: int
    spread: dict[str, tuple[float, float]]
    flops: int
    limit: float | None
    memory: dict[str, int]


def make_record(
    case: Case,
    mode: Mode,
    device: str,
    threads: int,
    samples: Mapping[str, Sequence[float]],
    peak: float | None,
    memory: Mapping[str, int] | None = None,
) -> Record:
    """Make a record of each peer's samples.

    Parameters
    ----------
    samples
        Seconds a call, of all rounds, by peer. This package must be among them.
    peak
        Floating-point operations a second that the machine can do in the case's dtype.
    memory
        What is known of it, by peer.
    """
    seconds = {peer: float(np.median(values)) for peer, values in samples.items()}
    others = {peer: value for peer, value in seconds.items() if peer != OURS}
    best = min(others, key=others.__getitem__, default=None)
    return Record(
        suite=case.suite,
        case=case.name,
        mode=mode,
        device=device,
        dtype=case.dtype,
        seconds=seconds,
        best_peer=best,
        ratio=None if best is None else others[best] / seconds[OURS],
        kind=case.kind,
        threads=threads,
        spread={
            peer: (float(np.quantile(values, 0.25)), float(np.quantile(values, 0.75)))
            for peer, values in samples.items()
        },
        flops=case.flops,
        limit=None if peak is None else case.flops / peak,
        memory=dict(memory or {}),
    )
