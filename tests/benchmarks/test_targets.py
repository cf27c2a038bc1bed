"""That the targets look at the right cases, and are judged rightly."""

from __future__ import annotations

import pytest

from peers import OURS, PEERS
from records import make_record
from report import make_report
from targets import TARGETS, Target, Value, judge
from workloads import CASES


def records(unlike=None, device="cpu"):
    """Records of all cases, as if everybody took a second; `unlike` by key has other times."""
    return [
        make_record(
            case,
            mode,
            device,
            2,
            {
                peer: [(unlike or {}).get((case.key, peer), 1.0)]
                for peer, entry in PEERS.items()
                if mode in entry.modes and device in entry.devices
            },
            case.flops / 0.9 if case.dtype == "float32" else None,
            {OURS: 100} if device == "gpu" else {},
        )
        for case in CASES.values()
        if device in case.devices
        for mode in case.modes
    ]


def target(word):
    (found,) = (target for target in TARGETS if word in target.work)
    return found


@pytest.mark.parametrize("index", range(len(TARGETS)))
def test_every_target_finds_its_cases(index):
    device = TARGETS[index].device
    assert judge(TARGETS[index], records(device=device)).worst is not None
    assert judge(TARGETS[index], []).verdict == "not measured"


@pytest.mark.parametrize("index", range(len(TARGETS)))
def test_target_of_one_device_takes_nothing_from_another(index):
    (other,) = {"cpu", "gpu"} - {TARGETS[index].device}
    assert judge(TARGETS[index], records(device=other)).verdict == "not measured"


@pytest.mark.parametrize(
    ("number", "lower", "verdict"),
    [
        (1.9, False, "missed"),
        (2.0, False, "reached"),
        (3.0, False, "reached, stretch too"),
        (3.1, True, "missed"),
        (3.0, True, "reached"),
        (2.0, True, "reached, stretch too"),
    ],
)
def test_verdict_follows_the_bounds(number, lower, verdict):
    bounds = (3, 2) if lower else (2, 3)
    row = Target("work", *bounds, lambda _: iter([Value(number, "case")]), lower=lower)
    assert judge(row, []) == (row, Value(number, "case"), verdict)


@pytest.mark.parametrize(("lower", "worst"), [(False, 1.0), (True, 2.0)])
def test_worst_case_decides(lower, worst):
    values = [Value(1.0, "one"), Value(2.0, "two")]
    row = Target("work", 1.5, None, lambda _: iter(values), lower=lower)
    outcome = judge(row, [])
    assert (outcome.worst.number, outcome.verdict) == (worst, "missed")


def test_large_products_are_compared_with_the_fastest_peer():
    slow = records({("scaling/1024³, all threads", "numpy"): 0.5})
    worst = judge(target("against the fastest peer"), slow).worst
    assert worst.number == 0.5
    assert worst.case.startswith("1024³, all threads")


def test_small_products_do_not_count_as_large():
    fast = records({("scaling/128³, all threads", "numpy"): 0.5})
    assert judge(target("against the fastest peer"), fast).worst.number == 1


def test_share_of_the_peak_is_that_of_the_limit():
    outcome = judge(target("share of the measured peak"), records())
    assert outcome.worst.number == pytest.approx(0.9)
    assert outcome.verdict == "reached, stretch too"


def test_steps_are_compared_with_tensorflow_alone():
    key = "mlp/784-512-512-10 at 128, half frozen"
    assert judge(target("every size"), records({(key, "torch"): 0.1})).worst.number == 1
    assert judge(target("every size"), records({(key, "tf-xla"): 0.1})).worst.number == 0.1


STEP = "dense/8192×4096×16384 bfloat16 gelu, gradients"


def test_step_on_a_gpu_is_compared_with_the_best_mode_of_tensorflow():
    row = target("full step, 8192×4096×16384 in bfloat16")
    for peer in ("tf-eager", "tf-function", "tf-xla"):
        outcome = judge(row, records({(STEP, "stopgrad_op"): 0.5, (STEP, peer): 0.525}, "gpu"))
        assert outcome.worst.number == pytest.approx(1.05)
        assert outcome.verdict == "missed"
    assert judge(row, records({(STEP, "jax"): 0.1}, "gpu")).worst.number == 1


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        (STEP, True),
        ("mlp/479-1024-1024-512-256-1 at 32768 float32, half frozen", True),
        ("dense/8192×4096×16384 bfloat16 gelu, forward", False),
        ("dense/128×512×512 relu, gradients", False),
    ],
)
@pytest.mark.parametrize(
    ("word", "peer"),
    [("from 8192 rows: the same", "tf-eager"), ("PyTorch", "torch-compile"), ("JAX", "jax")],
)
def test_large_steps_on_a_gpu_are_compared_with_each_framework(word, peer, key, counts):
    worst = judge(target(word), records({(key, peer): 0.25}, "gpu")).worst
    assert worst.number == (0.25 if counts else 1)


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("overhead/tape step, layers: 8", True),
        ("dense/128×512×512 relu, gradients", True),
        ("dense/8192×1024×4096 bfloat16 gelu, forward", False),
    ],
)
def test_sizes_bound_by_launches_are_the_small_ones(key, counts):
    worst = judge(target("bound by launches"), records({(key, "tf-eager"): 0.25}, "gpu")).worst
    assert worst.number == (0.25 if counts else 1)


def test_memory_of_a_frozen_stack_is_a_share_of_inferences():
    taken = records(device="gpu")
    for record in taken:
        if (record["case"], record["mode"]) == ("all but the head frozen", "eager"):
            record["memory"] = {OURS: 150}
        if record["case"] == "nothing frozen":
            record["memory"] = {OURS: 900}
    outcome = judge(target("peak memory"), taken)
    assert outcome.worst == Value(1.5, "all but the head frozen, eager")
    assert outcome.verdict == "missed"


def test_compiled_steps_are_compared_with_stock_ops_that_are_compiled():
    row, key = target("every step of `xla`"), "xla/784-512-512-10 at 128, half frozen"
    outcome = judge(row, records({(key, "stopgrad_op"): 1.1, (key, "jax"): 0.1}))
    assert outcome.worst.case == "784-512-512-10 at 128, half frozen, xla"
    assert outcome.worst.number == pytest.approx(1 / 1.1)
    assert outcome.verdict == "missed"
    assert judge(row, records({(key, "stopgrad_op"): 1.01})).verdict == "reached"
    # Not compiled, it is another case.
    key = key.replace("xla/", "mlp/")
    assert judge(row, records({(key, "stopgrad_op"): 1.1})).worst.number == 1


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("a tenth of the columns", True),
        ("a tenth of the rows, by index", True),
        ("a quarter of the output rows", False),
        ("scale 0 on the weights", True),
        ("scale 0 on all", True),
        ("full step", False),
        ("128×512×512 relu, gradients", False),
    ],
)
def test_products_that_xla_leaves_out_have_to_show(case, counts):
    times = records({(f"xla/{case}", "stopgrad_op"): 1.25})
    worst = judge(target("removes products"), times).worst.number
    assert worst == (0.8 if counts else 1.0)


def test_blocked_backward_is_a_share_of_the_full_one():
    key = "dense/backward 256×1024×1024, weights blocked"
    outcome = judge(target("one operand blocked"), records({(key, "stopgrad_op"): 1.25}))
    assert outcome.worst == Value(1.25, "backward 256×1024×1024, weights blocked, eager")


def test_epilogue_is_what_it_adds_to_the_bare_product():
    key = "dense/epilogue 512×768×3072, gelu"
    times = records({(key, "stopgrad_op"): 1.02})
    assert judge(target("bias and gelu"), times).worst.number == pytest.approx(0.02)
    assert judge(target("bias and gelu"), times).verdict == "reached"
    assert judge(target("bias and relu"), times).worst.number == 0


@pytest.mark.parametrize(
    ("case", "share", "verdict"),
    [
        ("a tenth of the columns", 0.73, "reached"),
        ("a tenth of the rows, by index", 0.79, "missed"),
        ("a quarter of the output rows", 0.55, "reached"),
        ("98 % of the output rows", 1.04, "missed"),
        ("scale 0 on the weights", 0.66, "reached, stretch too"),
    ],
)
def test_part_that_learns_is_a_share_of_our_own_full_step(case, share, verdict):
    times = records({(f"control/{case}", "stopgrad_op"): share})
    row = target(f"{case}, 512×1024×1024: the step as a share")
    assert judge(row, times) == (row, Value(share, f"{case}, function"), verdict)


def test_modes_are_not_mixed_in_a_share():
    case = "a tenth of the columns"
    times = records({(f"control/{case}", "stopgrad_op"): 0.5})
    for record in times:
        if (record["case"], record["mode"]) == ("full step", "eager"):
            record["seconds"]["stopgrad_op"] = 0.5
    worst = judge(target(f"{case}, 512×1024×1024: the step as a share"), times).worst
    assert worst == Value(1.0, f"{case}, eager")


def test_any_share_of_the_output_rows_counts_and_no_share_of_the_columns():
    slow = {("control/output rows active: 15/16", "stopgrad_op"): 1.25}
    worst = judge(target("any share of the output rows"), records(slow)).worst
    assert worst == Value(1.25, "output rows active: 15/16, function")
    slow = {("control/columns trainable: 15/16", "stopgrad_op"): 1.25}
    assert judge(target("any share of the output rows"), records(slow)).worst.number == 1


def test_scale_0_on_all_is_compared_with_the_forward():
    times = records({("control/scale 0 on all", "stopgrad_op"): 1.01})
    outcome = judge(target("more than the forward alone"), times)
    assert outcome.worst.number == pytest.approx(0.01)
    assert outcome.verdict == "reached"


def test_stock_ways_are_tensorflows_in_either_mode():
    key = "control/a quarter of the output rows"
    row = target("a quarter of the output rows: against the best")
    for peer, worst in (("jax", 2.0), ("tf-xla", 0.1), ("tf-eager", 0.1)):
        times = records({(key, "stopgrad_op"): 0.5, (key, peer): 0.05})
        assert judge(row, times).worst.number == worst


MACHINE = {
    "device": "cpu",
    "gpu": {},
    "processor": "a processor",
    "processors": 2,
    "threads": 2,
    "system": "a system",
    "versions": {"tensorflow": "2.21.0"},
    "time": "now",
    "load_before": 0.0,
    "environment": {},
    "limits": {"2": {"float32": 2e11, "float64": 1e11, "copy": 3e10}},
    "remarks": ["left out: jax (not installed)"],
    "failures": [
        {"suite": "blog", "case": "c", "mode": "eager", "peer": "torch", "why": "does not agree"}
    ],
    "plan": {"rounds": 2, "turn": 0.1, "pause": 0.1},
    "quick": False,
}


def test_report_shows_losses_failures_and_who_is_missing():
    key = "dtypes/float64"
    report = make_report(records({(key, "torch"): 0.25}), MACHINE, {"plot.png": "a picture"})
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    (row,) = (row for row in rows if row[1:3] == ["float64", "eager"])
    assert row[-5:-2] == ["torch", "0.25", "0.268"]
    assert "| missed" in report
    assert "**torch** does not agree" in report
    assert "left out: jax (not installed)" in report
    assert "![a picture](plot.png)" in report
    assert "limit, 2 threads: float32 200 GFLOP/s" in report
    assert "GFLOP/s" in report
    assert "against PyTorch" not in report
    assert "MiB" not in report


def test_report_of_a_gpu_has_its_name_targets_units_and_memory():
    limits = {"2": {"bfloat16": 7e14, "tf32": 4e14, "copy": 2.8e12}}
    gpu = {"name": "a GPU", "driver_version": "580.1"}
    machine = {**MACHINE, "device": "gpu", "gpu": gpu, "limits": limits}
    report = make_report(records({(STEP, "stopgrad_op"): 0.004}, "gpu"), machine, {})
    assert "* name a GPU, driver_version 580.1" in report
    assert "limit: bfloat16 700 TFLOP/s, tf32 400 TFLOP/s, copying memory 2800.0 GB/s" in report
    assert "GFLOP/s" not in report
    # 3.3 TFLOP in 4 ms.
    assert [
        line for line in report.splitlines() if "bfloat16 gelu, gradients" in line and "825" in line
    ]
    assert "against PyTorch" in report
    assert "512³: against TensorFlow" not in report
    assert "numpy" not in report
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    assert ["", "inference", "eager", "0.0 MiB", ""] in rows
