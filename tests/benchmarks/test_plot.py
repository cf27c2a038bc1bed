"""That pictures are drawn of what ran, and that shares are those of a peer's own full step."""

from __future__ import annotations

import pytest

from peers import PEERS
from plot import draw, shares_of_the_full_step
from records import make_record
from workloads import SHARES, SUITES

MACHINE = {"quick": False, "limits": {"2": {"float32": 1e11}}}


def records(suite, seconds=None):
    """Records of a suite as if everybody took a second; `seconds` by peer and case has others."""
    return [
        make_record(
            case,
            "function",
            "cpu",
            case.threads or 2,
            {
                peer: [(seconds or {}).get((peer, case.name), 1.0)]
                for peer in PEERS
                if peer != "keras" or not case.layers[0].is_controlled
            },
            None,
        )
        for case in SUITES[suite].cases
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
    ("suites", "files"),
    [
        (["scaling"], ["run.png"]),
        (["control"], ["run-control.png"]),
        (["scaling", "control"], ["run.png", "run-control.png"]),
        (["blog"], []),
    ],
)
def test_pictures_are_drawn_of_the_suites_that_ran(tmp_path, suites, files):
    pytest.importorskip("matplotlib")
    found = draw(
        [record for suite in suites for record in records(suite)], MACHINE, tmp_path / "run.png"
    )
    assert [picture.file for picture in found] == [tmp_path / name for name in files]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)
    for picture in found:
        assert picture.file.read_bytes().startswith(b"\x89PNG")
        assert picture.about
