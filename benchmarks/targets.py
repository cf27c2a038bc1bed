"""What this package must reach, one table, and whether a run reached it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from peers import OURS
from records import Record
from workloads import BARE_AT, BLOCKED_AT, CASES, CONTROL_AT, SUITES, Case, size_name

Verdict = Literal["reached", "reached, stretch too", "missed", "not measured"]


class Value(NamedTuple):
    """A measured number and the case that it comes from."""

    number: float
    case: str


@dataclass(frozen=True)
class Target:
    """One row: what must hold in every case that `values` yields.

    Attributes
    ----------
    at_least, stretch
        Bounds; `None` where a row has one of them only. Where `lower` is true, numbers must not be
        above them, otherwise not below.
    values
        Takes the records of a run and yields numbers.
    form
        How a number is printed.
    device
        Where it must hold.
    """

    work: str
    at_least: float | None
    stretch: float | None
    values: Callable[[Sequence[Record]], Iterator[Value]]
    lower: bool = False
    form: str = "{:.2f}×"
    device: str = "cpu"


class Outcome(NamedTuple):
    """A row, its worst case and what follows."""

    target: Target
    worst: Value | None
    verdict: Verdict


def judge(target: Target, records: Sequence[Record]) -> Outcome:
    """Compare the worst case with the bounds."""
    values = list(target.values([r for r in records if r["device"] == target.device]))
    if not values:
        return Outcome(target, None, "not measured")
    worst = (max if target.lower else min)(values)

    def meets(bound: float | None) -> bool:
        return bound is None or (worst.number <= bound if target.lower else worst.number >= bound)

    if target.stretch is not None and meets(target.stretch) and meets(target.at_least):
        return Outcome(target, worst, "reached, stretch too")
    if target.at_least is not None and meets(target.at_least):
        return Outcome(target, worst, "reached")
    return Outcome(target, worst, "missed")


# --- What is looked at ------------------------------------------------------------------------

_Chooser = Callable[[Record, Case], bool]
_TENSORFLOW = ("tf-eager", "tf-function", "tf-xla")


def _chosen(records: Sequence[Record], choose: _Chooser) -> Iterator[Record]:
    for record in records:
        if OURS in record["seconds"] and choose(
            record, CASES[f"{record['suite']}/{record['case']}"]
        ):
            yield record


def _label(record: Record) -> str:
    return f"{record['case']}, {record['mode']}"


def _against(peers: Sequence[str], choose: _Chooser) -> Callable[..., Iterator[Value]]:
    """Their best time divided by ours; of all peers if there are none named."""

    def values(records: Sequence[Record]) -> Iterator[Value]:
        for record in _chosen(records, choose):
            theirs = [
                seconds
                for peer, seconds in record["seconds"].items()
                if peer != OURS and (not peers or peer in peers)
            ]
            if theirs:
                yield Value(min(theirs) / record["seconds"][OURS], _label(record))

    return values


def _against_every_mode(peers: Sequence[str], choose: _Chooser) -> Callable[..., Iterator[Value]]:
    """Their best time for a case, in whichever mode, divided by ours."""

    def values(records: Sequence[Record]) -> Iterator[Value]:
        best: dict[tuple[str, str], float] = {}
        for record in records:
            case = (record["suite"], record["case"])
            theirs = [record["seconds"][peer] for peer in peers if peer in record["seconds"]]
            best[case] = min([*theirs, best.get(case, math.inf)])
        for record in _chosen(records, choose):
            fastest = best[record["suite"], record["case"]]
            if fastest < math.inf:
                yield Value(fastest / record["seconds"][OURS], _label(record))

    return values


def _named(suite: str, name: str, mode: str) -> _Chooser:
    return lambda record, case: (case.suite, case.name, record["mode"]) == (suite, name, mode)


def _is_step(record: Record, case: Case) -> bool:
    return record["mode"] == "function" and (
        (case.suite == "dense" and case.kind == "gradients" and case.layers[0].activation == "relu")
        or case.suite == "mlp"
    )


def _is_large_step(record: Record, case: Case) -> bool:
    return (
        record["mode"] == "function"
        and case.suite in ("dense", "mlp")
        and case.kind != "forward"
        and case.x[0] >= 8192
    )


def _is_bound_by_launches(record: Record, case: Case) -> bool:
    return record["mode"] == "eager" and (
        case.suite == "overhead" or (case.suite == "dense" and case.flops < 1e9)
    )


def _runs_in_xla(record: Record, _: Case) -> bool:
    return record["mode"] == "xla"


def _loses_products_in_xla(record: Record, case: Case) -> bool:
    # Not by rows of the output: XLA's shapes are known before the rows are.
    return _runs_in_xla(record, case) and any(
        layer.trainable is not None or layer.gradient_scale == 0 for layer in case.layers
    )


def _is_large_product(record: Record, case: Case) -> bool:
    return (
        case.is_product
        and case.suite in ("scaling", "dtypes")
        and case.dtype == "float32"
        and record["flops"] >= 2 * 256**3
    )


def _peak_share(records: Sequence[Record]) -> Iterator[Value]:
    for record in _chosen(records, _is_large_product):
        if record["limit"] is not None:
            yield Value(record["limit"] / record["seconds"][OURS], _label(record))


def _beside(
    whole: str, parts: Sequence[str], less: float, of: Literal["seconds", "memory"] = "seconds"
) -> Callable[..., Iterator[Value]]:
    """Our figure for each part divided by that for the whole in the same mode, less a number."""

    def values(records: Sequence[Record]) -> Iterator[Value]:
        ours = {
            (record["case"], record["mode"]): record[of][OURS]
            for record in _chosen(records, lambda _, case: case.group is not None)
            if OURS in record[of]
        }
        for (case, mode), figure in ours.items():
            if case in parts and (whole, mode) in ours:
                yield Value(figure / ours[whole, mode] - less, f"{case}, {mode}")

    return values


def _blocked(records: Sequence[Record]) -> Iterator[Value]:
    for size in BLOCKED_AT:
        name = f"backward {size_name(size)}"
        parts = (f"{name}, input blocked", f"{name}, weights blocked")
        yield from _beside(f"{name}, full", parts, 0)(records)


def _swept_rows(records: Sequence[Record]) -> Iterator[Value]:
    swept = [case.name for case in SUITES["control"].cases if case.group == "output rows active"]
    return _beside(swept[0], swept[1:], 0)(records)


def _controlled(name: str) -> _Chooser:
    return lambda _, case: case.suite == "control" and case.name == name


def _dtype(name: str) -> _Chooser:
    return lambda _, case: case.suite == "dtypes" and case.dtype == name


_EPILOGUE = f"epilogue {size_name(BARE_AT)}"

# By case of the suite `control`: the share of our own full step, with the arithmetic's own as the
# stretch; and how much faster than TensorFlow's way, which takes 1.05 of the full step and more.
_CONTROL = (
    ("a tenth of the columns", 0.74, 0.70, 1.4),
    ("a tenth of the rows, by index", 0.78, 0.70, 1.35),
    ("a quarter of the output rows", 0.56, 0.50, 1.85),
    ("98 % of the output rows", 1.03, 1.0, 1.0),
    ("scale 0 on the weights", 0.70, 0.67, 1.5),
)

TARGETS = (
    Target(
        "eager forward, matmul + bias + relu, 16×32×32, variables: against stock eager",
        3.5,
        5,
        _against(["tf-eager"], _named("overhead", "16×32×32 relu, forward", "eager")),
    ),
    Target(
        "eager plain product, 16×32×32: `sg.matmul` against `tf.matmul`",
        1.3,
        2,
        _against(["tf-eager"], _named("overhead", "16×32×32 product", "eager")),
    ),
    Target(
        "eager tape step, 8 layers of 32: against stock eager",
        2.3,
        3,
        _against(["tf-eager"], _named("overhead", "tape step, layers: 8", "eager")),
    ),
    Target(
        "`tf.function` step, every size of `dense` and `mlp`: against the better of `tf.function`"
        " and XLA",
        1.0,
        None,
        _against(["tf-function", "tf-xla"], _is_step),
    ),
    Target(
        "the same at a batch of 128 and less",
        1.0,
        1.2,
        _against(
            ["tf-function", "tf-xla"],
            lambda record, case: _is_step(record, case) and case.x[0] <= 128,
        ),
    ),
    Target(
        "compiled by XLA, every step of `xla`: against stock ops compiled by XLA",
        0.98,
        None,
        _against(["tf-xla"], _runs_in_xla),
    ),
    Target(
        "the same where a part or a factor of 0 removes products",
        1.0,
        None,
        _against(["tf-xla"], _loses_products_in_xla),
    ),
    Target(
        "float32 products, 256³ and larger: against the fastest peer",
        0.97,
        1.0,
        _against([], _is_large_product),
    ),
    Target("the same as a share of the measured peak", None, 0.8, _peak_share, form="{:.0%}"),
    *(
        Target(
            f"{dtype} product, 512³: against TensorFlow",
            at_least,
            stretch,
            _against(_TENSORFLOW, _dtype(dtype)),
        )
        for dtype, at_least, stretch in (
            ("float64", 2.5, 3.5),
            ("complex64", 3, 4.5),
            ("complex128", 3, 4.5),
            ("bfloat16", 2.5, 4),
            ("float16", 1.3, 1.8),
        )
    ),
    Target(
        "one operand blocked: backward as a share of the full backward",
        0.55,
        0.5,
        _blocked,
        lower=True,
        form="{:.2f}",
    ),
    *(
        Target(
            f"bias and {activation} in the forward, {size_name(BARE_AT)}: more than the bare"
            " product",
            0.03,
            0.01,
            _beside(f"{_EPILOGUE}, bare", [f"{_EPILOGUE}, {activation}"], 1),
            lower=True,
            form="{:+.1%}",
        )
        for activation in ("relu", "gelu")
    ),
    *(
        Target(
            f"{case}, {size_name(CONTROL_AT)}: the step as a share of the full step",
            at_least,
            stretch,
            _beside("full step", [case], 0),
            lower=True,
            form="{:.2f}",
        )
        for case, at_least, stretch, _ in _CONTROL
    ),
    Target(
        "any share of the output rows: the step as a share of the full step",
        1.03,
        1.0,
        _swept_rows,
        lower=True,
        form="{:.2f}",
    ),
    Target(
        f"scale 0 on all, {size_name(CONTROL_AT)}: more than the forward alone",
        0.02,
        None,
        _beside("forward alone", ["scale 0 on all"], 1),
        lower=True,
        form="{:+.1%}",
    ),
    *(
        Target(
            f"{case}: against the best of TensorFlow's ways",
            at_least,
            None,
            _against(_TENSORFLOW, _controlled(case)),
        )
        for case, *_, at_least in (*_CONTROL, ("scale 0 on all", None, None, 3))
    ),
    Target(
        "full step, 8192×4096×16384 in bfloat16 with bias and GELU: against TensorFlow's best mode",
        1.10,
        None,
        _against_every_mode(
            _TENSORFLOW, _named("dense", "8192×4096×16384 bfloat16 gelu, gradients", "function")
        ),
        device="gpu",
    ),
    Target(
        "`tf.function` steps of `dense` and `mlp` from 8192 rows: the same",
        1.0,
        None,
        _against_every_mode(_TENSORFLOW, _is_large_step),
        device="gpu",
    ),
    Target(
        "eager, sizes bound by launches: against stock eager",
        2.0,
        None,
        _against(["tf-eager"], _is_bound_by_launches),
        device="gpu",
    ),
    Target(
        "the steps from 8192 rows: against PyTorch, eager and compiled",
        1.0,
        None,
        _against(["torch", "torch-compile"], _is_large_step),
        device="gpu",
    ),
    Target(
        "the same: against JAX",
        1.0,
        None,
        _against(["jax"], _is_large_step),
        device="gpu",
    ),
    Target(
        "peak memory of a step of a frozen stack: as a share of inference's",
        1.0,
        None,
        _beside("inference", ["all but the head frozen"], 0, of="memory"),
        lower=True,
        form="{:.2f}",
        device="gpu",
    ),
)
