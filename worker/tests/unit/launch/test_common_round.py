"""Peers that were killed while they saved go on from one round."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.launch.common_round import set_back
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.checkpoint_manifest import folder_of


def saved(root: Path, rounds: dict[int, list[int]]) -> dict[int, PeerDirectory]:
    directories = {index: PeerDirectory(root / str(index)) for index in rounds}
    for index, numbers in rounds.items():
        for number in numbers:
            folder = directories[index].checkpoints / folder_of(number)
            folder.mkdir(parents=True)
            (folder / "state.json").write_text("{}")
    return directories


def left(directories: dict[int, PeerDirectory]) -> dict[int, list[int]]:
    return {
        index: sorted(int(path.name.removeprefix("round-")) for path in each.checkpoints.glob("round-*"))
        for index, each in directories.items()
    }


def test_all_go_back_to_the_newest_round_that_all_have_saved(tmp_path: Path) -> None:
    directories = saved(tmp_path, {0: [10, 20, 30], 1: [10, 20], 2: [20, 30]})
    assert set_back(directories, 10) == 20
    assert left(directories) == {0: [10, 20], 1: [10, 20], 2: [20]}
    assert set_back(directories, 10) is None


@pytest.mark.parametrize(
    "rounds",
    [
        {0: [10, 20], 1: [10, 20]},
        {0: [9, 10], 1: [8, 9]},
        {0: [10, 20, 147], 1: [10, 20, 146]},
        {0: [80, 90, 100], 1: [10, 20]},
        {0: [10, 20, 30], 1: [10]},
        {0: [10, 20], 1: []},
        {},
    ],
    ids=[
        "the same",
        "a round apart",
        "stopped in two rounds",
        "none is common",
        "not killed together",
        "a new peer",
        "no peers",
    ],
)
def test_checkpoints_that_need_no_common_round_stay(tmp_path: Path, rounds: dict[int, list[int]]) -> None:
    directories = saved(tmp_path, rounds)
    assert set_back(directories, 10) is None
    assert left(directories) == rounds


def test_a_peer_that_failed_long_ago_takes_nothing_from_the_others(tmp_path: Path) -> None:
    rounds = {0: [10, 20], 1: [10]}
    directories = saved(tmp_path, rounds)
    directories[1].exit.write_text("{}")
    assert set_back(directories, 10) is None
    assert left(directories) == rounds
