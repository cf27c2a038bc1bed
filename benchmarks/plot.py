"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peers import OURS, PEERS
from records import UNITS, Record
from workloads import CASES, Case, multiplied_in


class Picture(NamedTuple):
    """A PNG and what it shows."""

    file: Path
    about: str


def draw(records: Sequence[Record], machine: Mapping[str, Any], file: Path) -> list[Picture]:
    """Draw what there are records for: the suite `scaling`, and `control` beside it.

    The second picture has the file's name with `-control` at its end.

    Returns
    -------
    What was drawn; none where neither suite ran.
    """
    import matplotlib

    matplotlib.use("Agg")
    drawn = [
        Picture(file, "Speed of square products against their size"),
        Picture(
            file.with_stem(f"{file.stem}-control"),
            "Time of a step against the share of it that learns",
        ),
    ]
    return [
        picture
        for picture, draw_suite in zip(drawn, (_draw_scaling, _draw_control), strict=True)
        if draw_suite(records, machine, picture.file)
    ]


def _panels(count: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its panels side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, count, figsize=(6.2 * count, 5.2), squeeze=False, layout="constrained"
    )
    return figure, axes[0]


def _line(axis: Any, peer: str, points: Mapping[Any, float]) -> None:
    import matplotlib.pyplot as plt

    index = list(PEERS).index(peer)
    axis.plot(
        sorted(points),
        [points[x] for x in sorted(points)],
        label=peer,
        color=plt.colormaps["tab10"](index),
        marker="os^vDPX*<"[index],
        markersize=5,
        linewidth=3 if peer == OURS else 1.5,
    )


def _save(figure: Any, title: str, machine: Mapping[str, Any], file: Path) -> None:
    """Put one legend under all panels, in which each line stands once, and write the file."""
    import matplotlib.pyplot as plt

    lines = {
        label: line
        for axis in figure.axes
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    quick = " (a quick run: too short to mean anything)" if machine["quick"] else ""
    figure.suptitle(f"{title}{quick}")
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def _ours_on_top(peers: Sequence[str]) -> list[str]:
    return sorted(peers, key=lambda peer: peer == OURS)


def _speeds(records: Sequence[Record], operations: float) -> dict[str, dict[int, float]]:
    """Return speeds by peer and size, each peer in the faster of its modes."""
    speeds: dict[str, dict[int, float]] = {}
    for record in records:
        size = CASES[f"{record['suite']}/{record['case']}"].x[0]
        for peer, seconds in record["seconds"].items():
            sizes = speeds.setdefault(peer, {})
            sizes[size] = max(sizes.get(size, 0), record["flops"] / seconds / operations)
    return speeds


def _draw_scaling(records: Sequence[Record], machine: Mapping[str, Any], file: Path) -> bool:
    """Draw speed against size, a panel for each dtype and number of threads, if there are any.

    Returns
    -------
    Whether there were.
    """
    panels: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record["suite"] == "scaling":
            panels.setdefault((record["dtype"], record["threads"]), []).append(record)
    if not panels:
        return False
    unit, operations = UNITS[machine["device"]]
    figure, axes = _panels(len(panels))
    for axis, ((dtype, threads), scaling) in zip(axes, panels.items(), strict=True):
        speeds = _speeds(scaling, operations)
        for peer in _ours_on_top(list(speeds)):
            _line(axis, peer, speeds[peer])
        precision = multiplied_in(dtype, machine["device"])
        peak = machine["limits"].get(str(threads), {}).get(precision)
        if peak is not None:
            axis.axhline(
                peak / operations,
                color="black",
                linestyle="--",
                linewidth=1.2,
                label="machine's peak",
            )
        sizes = sorted({size for of_peer in speeds.values() for size in of_peer})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        on_host = f"{threads} {'thread' if threads == 1 else 'threads'}"
        axis.set_title(precision if machine["device"] == "gpu" else on_host)
        axis.set_xlabel("n, of a product of n × n matrices")
        axis.set_ylabel(f"{unit}, {dtype}")
    _save(figure, "Products, each peer in the faster of its modes", machine, file)
    return True


def _active_rows(case: Case) -> float | None:
    return case.layers[0].active_rows


def _trainable_columns(case: Case) -> float | None:
    part = case.layers[0].trainable
    return None if part is None else part.share


# The groups of the suite `control` that are drawn: a case's place on the axis, which the full step
# does not have.
_SWEPT: dict[str, Callable[[Case], float | None]] = {
    "output rows active": _active_rows,
    "columns trainable": _trainable_columns,
}
_FLOOR = "arithmetic"


def shares_of_the_full_step(records: Sequence[Record], group: str) -> dict[str, dict[float, float]]:
    """Return by peer, and by share that learns, the time as a share of the peer's own full step.

    What the arithmetic alone would take stands among the peers.
    """
    cases = {record["case"]: CASES[f"control/{record['case']}"] for record in records}
    swept = [record for record in records if cases[record["case"]].group == group]
    times = {
        _SWEPT[group](cases[record["case"]]): {**record["seconds"], _FLOOR: float(record["flops"])}
        for record in swept
    }
    full = times.pop(None, {})
    shares: dict[str, dict[float, float]] = {}
    for share, by_peer in times.items():
        assert share is not None
        for name, value in by_peer.items():
            if name in full:
                shares.setdefault(name, {})[share] = value / full[name]
    return shares


def _draw_control(records: Sequence[Record], machine: Mapping[str, Any], file: Path) -> bool:
    """Draw the swept groups, a panel for each; return whether there were any."""
    control = [record for record in records if record["suite"] == "control"]
    panels = {group: shares_of_the_full_step(control, group) for group in _SWEPT}
    panels = {group: shares for group, shares in panels.items() if shares}
    if not panels:
        return False
    figure, axes = _panels(len(panels))
    for axis, (group, shares) in zip(axes, panels.items(), strict=True):
        floor = shares.pop(_FLOOR)
        for peer in _ours_on_top(list(shares)):
            _line(axis, peer, shares[peer])
        at = sorted(floor)
        axis.plot(at, [floor[x] for x in at], "--", color="black", linewidth=1.2, label=_FLOOR)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.set_xlabel(f"share of {group}")
        axis.set_ylabel("time, as a share of the peer's own full step")
    _save(figure, "A step of which a part learns: forward, dX, dW", machine, file)
    return True
