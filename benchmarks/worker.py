"""The process that one peer lives in: reads commands as lines of JSON, and answers each.

{"do": "prepare", "id": 1, "key": "dense/...", "mode": "eager", "results": "file.npz"}
{"do": "measure", "id": 1, "seconds": 0.15}
{"do": "release", "id": 1}

The runner starts it with the peer's name and the number of threads.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

# A sample is the mean over calls that take at least this long together: long beside the clock's
# resolution, short beside a turn.
SAMPLE_SECONDS = 0.001


def time_calls(run: Callable[[], Any], seconds: float) -> list[float]:
    """Call for so long, and return seconds a call, a sample each.

    The pools have been asleep and the caches filled by others, so the first fifth does not count;
    it tells how many calls make a sample.
    """
    gc.collect()
    clock = time.perf_counter
    calls, begin = 0, clock()
    while calls == 0 or clock() - begin < seconds / 5:
        start = clock()
        run()
        last = clock() - start
        calls += 1
    repeats = range(max(1, math.ceil(SAMPLE_SECONDS / last)))
    samples: list[float] = []
    begin = clock()
    while not samples or clock() - begin < seconds:
        start = clock()
        for _ in repeats:
            run()
        samples.append((clock() - start) / len(repeats))
    return samples


def _storable(array: Any) -> Any:
    """NumPy's files hold no bfloat16."""
    import numpy as np

    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def serve(peer_name: str, threads: int) -> None:
    """Answer commands until there are no more."""
    # Frameworks may print; answers must not be mixed with that.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Where a framework asks the system how many processors there are, this is the answer too.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    import numpy as np

    import peers
    import workloads

    works: dict[int, peers.Work] = {}
    peer = peers.load(peer_name, threads)

    def handle(command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "measure":
            return {"samples": time_calls(works[command["id"]].run, command["seconds"])}
        if command["do"] == "prepare":
            case = workloads.CASES[command["key"]]
            if not peer.supports(case):
                return {"supported": False}
            work = peer.build(case, command["mode"], workloads.make_arrays(case))
            np.savez(
                command["results"],
                **{name: _storable(array) for name, array in work.results().items()},
            )
            works[command["id"]] = work
            return {"supported": True}
        if command["do"] == "release":
            works.pop(command["id"], None)
            gc.collect()
            return {}
        raise ValueError(f"unknown command {command['do']!r}")

    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
