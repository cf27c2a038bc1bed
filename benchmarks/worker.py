"""The process that one peer lives in: reads commands as lines of JSON, and answers each.

{"do": "missing"}
{"do": "prepare", "id": 1, "key": "dense/...", "mode": "eager", "results": "file.npz"}
{"do": "measure", "id": 1, "seconds": 0.15}
{"do": "release", "id": 1}

The runner starts it with the peer's name, the number of threads and the device.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import peers

# A sample is the mean over calls that take at least this long together: long beside the clock's
# resolution, short beside a turn. On a GPU also long beside the wait at its end.
SAMPLE_SECONDS = {"cpu": 0.001, "gpu": 0.01}
# How much of an array is compared.
COMPARED = 2**22


def time_calls(work: peers.Work, seconds: float, sample_seconds: float) -> list[float]:
    """Call for so long, and return seconds a call, a sample each.

    The pools have been asleep and the caches filled by others, so the first fifth does not count,
    nor does a first call that compiles; they tell how many calls make a sample.
    """
    run, wait = work.run, work.wait
    gc.collect()
    clock = time.perf_counter
    calls, begin = 0, clock()
    while calls < 2 or clock() - begin < seconds / 5:
        start = clock()
        wait(run())
        last = clock() - start
        calls += 1
    count = max(1, math.ceil(sample_seconds / last))
    samples: list[float] = []
    begin = clock()
    while not samples or clock() - begin < seconds:
        start = clock()
        # What it returns is not kept: the next call may have its memory.
        for _ in range(count - 1):
            run()
        wait(run())
        samples.append((clock() - start) / count)
    return samples


def _storable(array: Any) -> Any:
    """Return what is compared: all of it, or evenly spaced rows. NumPy's files hold no bfloat16."""
    import numpy as np

    if array.size > COMPARED:
        array = array[..., :: math.ceil(array.size / COMPARED), :]
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def serve(peer_name: str, threads: int, device: str) -> None:
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
    peer = peers.load(peer_name, threads, device)

    def handle(command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "missing":
            return {"missing": peer.missing()}
        if command["do"] == "measure":
            work = works[command["id"]]
            return {"samples": time_calls(work, command["seconds"], SAMPLE_SECONDS[device])}
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
            gc.collect()  # what is freed later would be missing in the memory that a call takes
            memory = None if work.memory is None else work.memory()
            return {"supported": True, "memory": memory}
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
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
