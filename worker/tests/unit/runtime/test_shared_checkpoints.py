"""A policy that all ranks hold: they take part in each checkpoint that the first one saves, and in no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from swarmgame.runtime.checkpoint import CheckpointParticipant, CheckpointStore, CheckpointWriter


def report(number: int, reward: float | None) -> Any:
    evaluation = None if reward is None else SimpleNamespace(average={"all": reward})
    return SimpleNamespace(round=number, evaluation=evaluation)


def test_other_ranks_give_their_state_for_each_save_and_no_other(tmp_path: Path) -> None:
    announced: list[bool] = []
    saved: list[int] = []
    given: list[int] = []
    writer = CheckpointWriter(
        CheckpointStore(tmp_path),
        every_rounds=3,
        state=lambda: {"x": 1},
        saved=lambda number, _: saved.append(number),
        announce=announced.append,
    )
    participant = CheckpointParticipant(lambda: announced[-1], lambda: given.append(len(announced)))
    for observer in (writer, participant):
        observer.game_started(0, 5)
    for number, reward in enumerate((0.2, None, None, 0.1, 0.4)):
        for observer in (writer, participant):
            observer.round_finished(report(number, reward), None, {})  # type: ignore[arg-type]
    for rounds in (5, 6):  # a game that ends where it was saved, and one that goes on a round more
        for observer in (writer, participant):
            observer.game_finished(rounds)
    assert saved == [1, 3, 5, 6]
    assert announced == [True, False, True, False, True, False, True]
    assert given == [1, 3, 5, 7]
