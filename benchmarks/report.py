"""A run as tables in Markdown, which the terminal shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peers import OURS, PEERS
from records import UNITS, Record
from targets import TARGETS, judge
from workloads import SUITES

_PEAKS = {
    "cpu": "the machine's peak of fused multiply-adds",
    "gpu": "the fastest product by cublasLt; float32 is TF32",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table in aligned columns; all but the first two stand to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def duration(seconds: float) -> str:
    """Return three digits and a unit."""
    unit, value = "s", seconds
    for smaller in ("ms", "µs"):
        if value < 1:
            unit, value = smaller, value * 1000
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def factor(ratio: float) -> str:
    """Return two decimals, or two digits where that would say nothing."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _cell(record: Record, peer: str) -> str:
    """Return the median and half of the distance between the quartiles."""
    if peer not in record["seconds"]:
        return ""
    seconds = record["seconds"][peer]
    low, high = record["spread"][peer]
    return f"{duration(seconds)} ±{(high - low) / 2 / seconds:.0%}"


def _suite_table(records: Sequence[Record]) -> str:
    peers = [peer for peer in PEERS if any(peer in record["seconds"] for record in records)]
    unit, operations = UNITS[records[0]["device"]]
    rows = []
    for record in records:
        seconds = record["seconds"].get(OURS)
        limit = record["limit"]
        rate = "" if seconds is None else f"{record['flops'] / seconds / operations:.3g}"
        share = "" if seconds is None or limit is None else f"{limit / seconds:.0%}"
        rows.append(
            [
                record["case"],
                record["mode"],
                *(_cell(record, peer) for peer in peers),
                record["best_peer"] or "",
                "" if record["ratio"] is None else factor(record["ratio"]),
                rate,
                share,
            ]
        )
    return table(["case", "mode", *peers, "best peer", "ratio", unit, "of peak"], rows)


def _memory_table(records: Sequence[Record]) -> str:
    peers = [peer for peer in PEERS if any(peer in record["memory"] for record in records)]
    rows = []
    for record in records:
        taken = (record["memory"].get(peer) for peer in peers)
        cells = ["" if bytes_ is None else f"{bytes_ / 2**20:.1f} MiB" for bytes_ in taken]
        rows.append([record["case"], record["mode"], *cells])
    return table(["case", "mode", *peers], rows)


def _target_table(records: Sequence[Record], device: str) -> str:
    rows = []
    for target in (target for target in TARGETS if target.device == device):
        outcome = judge(target, records)

        def show(number: float | None, form: str = target.form) -> str:
            return "" if number is None else form.format(number)

        worst = outcome.worst
        rows.append(
            [
                target.work,
                outcome.verdict,
                ("≤ " if target.lower else "≥ ") + show(target.at_least)
                if target.at_least is not None
                else "",
                show(target.stretch),
                "" if worst is None else show(worst.number),
                "" if worst is None else worst.case,
            ]
        )
    return table(["work", "verdict", "due", "stretch", "measured", "in the worst case"], rows)


def _about_machine(machine: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"* {machine['processor']}; {machine['processors']} processors,"
        f" {machine['threads']} threads for every peer",
        f"* {machine['system']}",
        f"* {versions}",
        f"* {machine['time']}, load average before the run {machine['load_before']}",
    ]
    if machine["gpu"]:
        lines.insert(0, "* " + ", ".join(f"{name} {v}" for name, v in machine["gpu"].items()))
    if machine["environment"]:
        settings = " ".join(f"{name}={value}" for name, value in machine["environment"].items())
        lines.append(f"* in the environment: `{settings}`")
    unit, operations = UNITS[machine["device"]]
    for threads, limit in machine["limits"].items():
        rates = [
            f"{name} {rate / operations:.0f} {unit}"
            for name, rate in limit.items()
            if name != "copy"
        ]
        on_host = f", {threads} {'thread' if threads == '1' else 'threads'}"
        lines.append(
            f"* limit{on_host if machine['device'] == 'cpu' else ''}: {', '.join(rates)},"
            f" copying memory {limit['copy'] / 1e9:.1f} GB/s read and written"
        )
    return lines + [f"* {remark}" for remark in machine["remarks"]]


def make_report(
    records: Sequence[Record], machine: Mapping[str, Any], pictures: Mapping[str, str]
) -> str:
    """Return the whole report.

    Parameters
    ----------
    pictures
        What each one shows, by its path as the report refers to it.
    """
    plan, device = machine["plan"], machine["device"]
    parts = [
        "# Benchmark",
        "\n".join(_about_machine(machine)),
        f"Medians over {plan['rounds']} rounds of {plan['turn']} s, in which the peers took turns,"
        f" each in a process of its own, with pauses of {plan['pause']} s; ± is half the distance"
        " between the quartiles. The ratio is the time of the best peer divided by that of"
        f" {OURS}: above 1, {OURS} is faster. {UNITS[device][0]} are those of {OURS}, and their"
        f" share of {_PEAKS[device]}.",
        "\n".join(
            f"* `{name}`: {entry.about}" for name, entry in PEERS.items() if device in entry.devices
        ),
    ]
    if machine["quick"]:
        parts.insert(1, "**A quick run: too short for figures that mean anything.**")
    if machine["failures"]:
        failures = [
            f"* {failure['suite']}, {failure['case']}, {failure['mode']}: **{failure['peer']}**"
            f" {failure['why']}"
            for failure in machine["failures"]
        ]
        parts += ["## Failed", "\n".join(failures)]
    parts += ["## Targets", _target_table(records, device)]
    parts += [f"![{about}]({path})" for path, about in pictures.items()]
    for name, suite in SUITES.items():
        found = [record for record in records if record["suite"] == name]
        if found:
            parts += [f"## {name}", f"{suite.about}.", _suite_table(found)]
        measured = [record for record in found if record["memory"]]
        if measured:
            parts += [
                "The device's memory that a call takes at most, beside what it starts from:",
                _memory_table(measured),
            ]
    return "\n\n".join(parts) + "\n"
