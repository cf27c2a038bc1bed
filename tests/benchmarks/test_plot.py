"""That pictures are drawn of what ran, and that shares are those of a peer's own full step."""

from __future__ import annotations

import pytest

from peers import OURS, PEERS
from plot import draw, shares_of_the_full_step
from records import make_record
from workloads import SHARES, SUITES

MACHINES = {
    "cpu": {"device": "cpu", "quick": False, "limits": {"2": {"float32": 1e11}}},
    "gpu": {"device": "gpu", "quick": False, "limits": {"2": {"bfloat16": 9e14, "tf32": 5e14}}},
}


def records(suite, seconds=None, device="cpu"):
    """Records of a suite as if everybody took a second; `seconds` by peer and case has others."""
    return [
        make_record(
            case,
            "function",
            device,
            case.threads or 2,
            {
                peer: [(seconds or {}).get((peer, case.name), 1.0)]
                for peer in PEERS
                if peer != "keras" or not case.layers[0].is_controlled
            },
            None,
        )
        for case in SUITES[suite].cases
        if device in case.devices
    ]


def test_shares_are_those_of_the_peers_own_full_step():
    full, half = "output rows active: unrestricted", "output rows active: 1/2"
    times = {("torch", full): 2.0, ("torch", half): 1.5, ("stopgrad_op", half): 0.7}
    shares = shares_of_the_full_step(records("control", times), "output rows active")
    assert tuple(shares["jax"]) == SHARES
    assert (shares["torch"][0.5], shares["stopgrad_op"][0.5]) == (0.75, 0.7)


@pytest.mark.parametrize(
    ("group", "floors"), [("output rows active", (1, 2, 3)), ("columns trainable", (2, 2.5, 3))]
)
def test_floor_is_the_arithmetic_that_is_left(group, floors):
    floor = shares_of_the_full_step(records("control"), group)["arithmetic"]
    assert [floor[0], floor[0.5], floor[1]] == pytest.approx([third / 3 for third in floors])


def test_peer_without_cases_or_without_its_full_step_has_no_line():
    shares = shares_of_the_full_step(records("control"), "columns trainable")
    assert "keras" not in shares
    # Its full step failed.
    left = records("control")
    for record in left:
        if record["case"] == "columns trainable: unrestricted":
            del record["seconds"]["jax"]
    assert "jax" not in shares_of_the_full_step(left, "columns trainable")


@pytest.mark.parametrize(
    ("device", "suites", "files"),
    [
        ("cpu", ["scaling"], ["run.png"]),
        ("cpu", ["control"], ["run-control.png"]),
        ("cpu", ["scaling", "control"], ["run.png", "run-control.png"]),
        ("cpu", ["blog"], []),
        ("gpu", ["scaling"], ["run.png"]),
        # Shares are swept on the CPU alone.
        ("gpu", ["scaling", "control"], ["run.png"]),
        ("gpu", ["dense"], []),
    ],
)
def test_pictures_are_drawn_of_the_suites_that_ran(tmp_path, device, suites, files):
    pytest.importorskip("matplotlib")
    ran = [record for suite in suites for record in records(suite, device=device)]
    found = draw(ran, MACHINES[device], tmp_path / "run.png")
    assert [picture.file for picture in found] == [tmp_path / name for name in files]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)
    for picture in found:
        assert picture.file.read_bytes().startswith(b"\x89PNG")
        assert picture.about


@pytest.mark.parametrize(
    ("device", "titles", "peaks"),
    [
        ("cpu", ["1 thread", "2 threads"], [None, 100]),  # of one thread it was not measured
        ("gpu", ["bfloat16", "tf32"], [900, 500]),
    ],
)
def test_each_panel_has_its_own_peak(monkeypatch, tmp_path, device, titles, peaks):
    pytest.importorskip("matplotlib")
    import plot

    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, *_: figures.append(figure))
    draw(records("scaling", device=device), MACHINES[device], tmp_path / "run.png")
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == titles
    lines = [{line.get_label(): line.get_ydata()[0] for line in axis.lines} for axis in axes]
    assert [of_panel.get("machine's peak") for of_panel in lines] == peaks
    assert all(OURS in of_panel for of_panel in lines)
