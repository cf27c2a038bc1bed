"""Two runs agree in every bit, on any number of threads, as `enable_op_determinism` promises."""

from __future__ import annotations

import os
import subprocess
import sys

RUN = """
import hashlib
import sys

import numpy as np
import tensorflow as tf

tf.config.experimental.enable_op_determinism()
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
import stopgrad_op as sg

rng = np.random.default_rng(0)


def check(name, a, b, dtype, **options):
    n = b[-1]
    a, b, bias = (
        tf.cast(rng.standard_normal(shape, np.float32), dtype) for shape in (a, b, (n,))
    )

    def step(a, b, bias):
        with tf.GradientTape() as tape:
            tape.watch([a, b, bias])
            y = sg.matmul(a, b, bias=bias, **options)
            loss = tf.reduce_sum(y * y)
        return y, *tape.gradient(loss, [a, b, bias])

    def digest(results):
        values = [np.ascontiguousarray(x.numpy()).tobytes() for x in results]
        return hashlib.sha256(b"".join(values)).hexdigest()

    first, second = (digest(step(a, b, bias)) for _ in range(2))
    assert first == second, f"{name}: two runs differ"
    if options:
        assert first == digest(tf.function(step)(a, b, bias)), f"{name}: a function differs"
    print(name, first)


for dtype in ("float32", "bfloat16", "float16", "float64"):
    for shape, a, b in (
        ("thin", (3000, 5), (5, 7)),
        ("long", (7, 4000), (4000, 3)),
        ("large", (389, 521), (521, 307)),
        ("batch", (6, 65, 33), (33, 130)),
        ("batches", (3, 1, 65, 33), (4, 33, 65)),
    ):
        check(f"{dtype} {shape}", a, b, dtype)
        check(f"{dtype} {shape} with gelu", a, b, dtype, activation="gelu")
    a, b = (389, 521), (521, 150)
    weights = rng.choice([0, 0, 0, 1, 0.5], 389).astype(np.float32)
    for control, options in (
        ("some rows", {"gradient_rows": weights > 0}),
        ("weighted rows", {"gradient_rows": weights}),
        ("scale", {"gradient_scale": {"b": tf.constant(-0.3)}}),
        ("slices", {"trainable": {"b": np.s_[3:400:2, 100:]}}),
        ("indices", {"trainable": {"b": sg.rows(range(0, 521, 7)), "a": sg.columns(range(99))}}),
    ):
        check(f"{dtype} {control}", a, b, dtype, activation="gelu", **options)
"""


def start(threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(threads)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_runs_agree_in_every_bit_on_any_number_of_threads() -> None:
    processes = [start(threads) for threads in (1, 2, 3)]
    results = []
    for process in processes:
        out, error = process.communicate()
        assert process.returncode == 0, error
        results.append(out.splitlines())
    one, two, three = results
    assert len({line.rpartition(" ")[2] for line in one}) == 4 * (10 + 5)  # digests tell apart
    assert two == one
    assert three == one
