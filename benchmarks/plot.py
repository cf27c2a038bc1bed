"""A picture of a run: speed of square products against their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers import OURS, PEERS
from records import Record
from workloads import CASES


def _speeds(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """Return GFLOP/s by peer and size, each peer in the faster of its modes."""
    speeds: dict[str, dict[int, float]] = {}
    for record in records:
        size = CASES[f"{record['suite']}/{record['case']}"].x[0]
        for peer, seconds in record["seconds"].items():
            sizes = speeds.setdefault(peer, {})
            sizes[size] = max(sizes.get(size, 0), record["flops"] / seconds / 1e9)
    return speeds


def draw(records: Sequence[Record], machine: Mapping[str, Any], file: Path) -> bool:
    """Draw the suite `scaling` as a PNG, a panel for each number of threads.

    Returns
    -------
    Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scaling = [record for record in records if record["suite"] == "scaling"]
    panels = sorted({record["threads"] for record in scaling})
    if not panels:
        return False
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.2 * len(panels), 5.2), squeeze=False, layout="constrained"
    )
    colours = dict(zip(PEERS, plt.colormaps["tab10"].colors, strict=False))
    markers = dict(zip(PEERS, "os^vDPX*", strict=True))
    for axis, threads in zip(axes[0], panels, strict=True):
        speeds = _speeds([record for record in scaling if record["threads"] == threads])
        for peer in sorted(speeds, key=lambda peer: peer == OURS):  # ours on top
            sizes = sorted(speeds[peer])
            axis.plot(
                sizes,
                [speeds[peer][size] for size in sizes],
                label=peer,
                color=colours[peer],
                marker=markers[peer],
                markersize=5,
                linewidth=3 if peer == OURS else 1.5,
            )
        limit = machine["limits"].get(str(threads))
        if limit is not None:
            peak = limit["float32"] / 1e9
            axis.axhline(peak, color="black", linestyle="--", linewidth=1.2, label="machine's peak")
        sizes = sorted({size for of_peer in speeds.values() for size in of_peer})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.set_title(f"{threads} {'thread' if threads == 1 else 'threads'}")
        axis.set_xlabel("n, of a product of n × n matrices")
        axis.set_ylabel("GFLOP/s, float32")
    # One legend for all panels, in which each line stands once.
    lines = {
        label: line
        for axis in axes[0]
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    quick = " (a quick run: too short to mean anything)" if machine["quick"] else ""
    figure.suptitle(f"Products, each peer in the faster of its modes{quick}")
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    return True
