"""Measures this package beside others on the same work.

python benchmarks/run.py --quick
python benchmarks/run.py --json run.json --report run.md --plot run.png
python benchmarks/run.py --device gpu --suite dense mlp
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import machine as machine_description
from limit import Limit, higher, measure_limits
from peers import OURS, PEERS, is_installed
from records import Record, make_record
from report import duration, factor, make_report
from runner import FULL, QUICK, Plan, ProcessWorker, Result, Runner, in_groups
from workloads import MODES, SUITES, Case, multiplied_in


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    others = [name for name in PEERS if name != OURS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--suite", nargs="+", choices=SUITES, default=list(SUITES), metavar="NAME",
        help=f"which suites: {', '.join(SUITES)}; all unless given",
    )  # fmt: skip
    parser.add_argument(
        "--case", nargs="+", default=[""], metavar="TEXT", help="cases whose name has one of these"
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--peers", nargs="*", choices=others, default=others, metavar="NAME",
        help=f"whom to measure beside {OURS}: {', '.join(others)}; all that are measured on the"
        " device unless given",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=machine_description.available_threads(),
        help="threads of every peer; as many as there are processors unless given",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write Markdown there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="write a PNG of the suite `scaling` there, and one of `control` beside it",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="smaller cases and short turns: shows that everything runs, and no figures to keep",
    )  # fmt: skip
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.threads <= machine_description.available_threads():
        parser.error(f"--threads: there are {machine_description.available_threads()} processors")
    if parsed.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; type: pip install matplotlib")
    if not is_installed(OURS):
        parser.error(f"{OURS} is not installed; type: pip install .")
    return parsed


def choose_peers(wanted: Sequence[str], device: str) -> tuple[list[str], dict[str, str]]:
    """Return the wanted peers that a device has and that are installed; and why not the others."""
    wanted = [name for name in wanted if device in PEERS[name].devices]
    here = [name for name in wanted if is_installed(name)]
    return here, {name: "not installed" for name in wanted if name not in here}


def choose_cases(
    suites: Sequence[str], device: str, plan: Plan, texts: Sequence[str] = ("",)
) -> list[Case]:
    """Return the cases of the suites for a device whose name has one of the texts.

    Those that are too large for the plan are left out, and with them all that they are compared
    with.
    """
    cases = [
        case
        for name in suites
        for case in SUITES[name].cases
        if device in case.devices and any(text in case.name for text in texts)
    ]
    if plan.most_flops is None:
        return cases
    large = [case for case in cases if case.flops > plan.most_flops]
    groups = {case.group for case in large} - {None}
    return [case for case in cases if case not in large and case.group not in groups]


def _progress(counted: str, result: Result, record: Record | None) -> None:
    print(f"[{counted}] {result.case.key}, {result.mode}: ", end="")
    if record is not None:
        print(", ".join(f"{peer} {duration(s)}" for peer, s in record["seconds"].items()), end="")
        if record["ratio"] is not None:
            print(f"; {factor(record['ratio'])} of {record['best_peer']}", end="")
    print(flush=True)
    for peer, why in result.failures.items():
        print(f"FAILED: {peer}: {why}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code, which is 1 if a peer failed or computed something else."""
    options = _arguments(arguments)
    plan = (QUICK if options.quick else FULL)[options.device]
    cases = choose_cases(options.suite, options.device, plan, options.case)
    if not cases:
        print(f"there are no such cases for {options.device} in {', '.join(options.suite)}")
        return 2
    peers, missing = choose_peers(options.peers, options.device)
    machine: dict[str, Any] = machine_description.describe(
        plan, options.quick, options.threads, options.device
    )
    runner = Runner(peers, options.threads, plan, options.device, ProcessWorker)
    try:
        missing |= runner.leave_out()
        if OURS in missing:
            print(f"{OURS} has no {options.device} here: {missing[OURS]}", file=sys.stderr)
            return 1
        records = _measure(options, plan, cases, runner, missing, machine)
        # Before those processes end that an interrupt left in the middle of something.
        _write(options, records, machine)
    finally:
        runner.close()
    return 1 if machine["failures"] else 0


def _measure(
    options: argparse.Namespace,
    plan: Plan,
    cases: Sequence[Case],
    runner: Runner,
    missing: Mapping[str, str],
    machine: dict[str, Any],
) -> list[Record]:
    """Measure the cases; add limits, remarks and failures to what is known of the machine."""
    remarks: list[str] = []
    if missing:
        left_out = ", ".join(f"{peer} ({why})" for peer, why in missing.items())
        remarks.append(f"left out: {left_out}")
    if machine["environment"]:
        remarks.append("environment variables choose kernels or threads; are they meant to?")
    if machine["load_before"] > 0.5:
        remarks.append("the machine was busy with something else before the run")
    for remark in remarks:
        print(remark, flush=True)

    print("measuring the machine's limit", flush=True)
    counts = {case.threads or options.threads for case in cases}
    limits, problem = measure_limits(counts, plan.limit_seconds, options.device)
    if problem is not None:
        remarks.append(problem)
        print(problem, flush=True)

    groups = in_groups(cases, options.mode)
    total, results = sum(map(len, groups)), []
    begin = time.monotonic()
    try:
        for group in groups:
            for result in runner.measure(group):
                results.append(result)
                record = _record(result, options.device, limits)
                counted = f"{len(results)}/{total}, {time.monotonic() - begin:.0f} s"
                _progress(counted, result, record)
        runner.close()
        # Again, in case that something else was running the first time.
        limits = higher(limits, measure_limits(counts, plan.limit_seconds, options.device)[0])
    except KeyboardInterrupt:
        remarks.append(f"interrupted after {len(results)} of {total}")

    machine["limits"] = machine_description.limits_as_json(limits)
    machine["remarks"] = remarks
    machine["failures"] = [
        {
            "suite": result.case.suite,
            "case": result.case.name,
            "mode": result.mode,
            "peer": peer,
            "why": why,
        }
        for result in results
        for peer, why in result.failures.items()
    ]
    records = []
    for result in results:
        record = _record(result, options.device, limits)
        if record is not None:
            records.append(record)
    return records


def _record(result: Result, device: str, limits: Mapping[int, Limit]) -> Record | None:
    """Return the record of a result, unless our own time is missing."""
    if OURS not in result.samples:
        return None
    peak = limits.get(result.threads, {}).get(multiplied_in(result.case.dtype, device))
    return make_record(
        result.case, result.mode, device, result.threads, result.samples, peak, result.memory
    )


def _write(options: argparse.Namespace, records: list[Record], machine: dict[str, Any]) -> None:
    """Show the report, and write the files that were asked for."""
    for file in (options.json, options.report, options.plot):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if options.json is not None:
        text = json.dumps([*records, {"machine": machine}], indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n")
    pictures: dict[str, str] = {}
    if options.plot is not None:
        from plot import draw

        start = options.report.parent if options.report is not None else Path()
        pictures = {
            os.path.relpath(picture.file, start): picture.about
            for picture in draw(records, machine, options.plot)
        }
        if not pictures:
            print("nothing to plot: that takes the suite `scaling` or `control`")
    report = make_report(records, machine, pictures)
    if options.report is not None:
        options.report.write_text(report)
    print()
    print(report)


if __name__ == "__main__":
    sys.exit(main())
