"""Replay: the weights of a peer from its archive; what was changed is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from archived_games import play, toy_manifest
from scripted_game import remote
from toys import ToyData

from swarmgame import Contribution, GameState, Round
from swarmgame.archive.files import RoundFile, encode_round, round_files, write_round
from swarmgame.archive.reader import load
from swarmgame.archive.signatures import Proof
from swarmgame.errors import BadData, BadUsage
from swarmgame.game.protocol import Exchange
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.replay import _plan, replay


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("played")
    play(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A played game of its own, to be changed."""
    play(tmp_path)
    return tmp_path


def rewrite(root: Path, number: int, change: Callable[[dict[str, list[object]]], None]) -> None:
    """Change the rows of a round, and write a file that is complete in itself."""
    stored = load(round_files(root / "rollouts")[number])
    columns = stored.rows.to_pydict()
    change(columns)
    write_round(root / "rollouts", number, encode_round(stored.head, pa.table(columns, schema=stored.rows.schema)))


def test_all_weights_are_equal_from_the_initial_model(played: Path) -> None:
    lines: list[str] = []
    found = replay(toy_manifest(), PeerDirectory(played), notify=lines.append)
    assert (found.rounds, found.start, found.missing) == ((0, 1, 2, 3, 4, 5), None, ())
    assert found.weights == json.loads((played / "metrics.jsonl").read_text().splitlines()[-1])["weights"]
    assert found.proofs == {Proof.ABSENT: 6}
    assert len(lines) == 6


def test_a_range_begins_with_the_newest_checkpoint_before_it(played: Path) -> None:
    found = replay(toy_manifest(), PeerDirectory(played), first=5)
    assert (found.rounds, found.start) == ((4, 5), 4)
    found = replay(toy_manifest(), PeerDirectory(played), first=1, end=3)
    assert (found.rounds, found.start) == ((0, 1, 2), None)


def test_late_refused_and_multi_stage_contributions_are_replayed(tmp_path: Path) -> None:
    def others(own: Contribution) -> list[Contribution]:
        late = [remote("slow", own.round - 1)] if own.round % 2 and own.stage == 0 else []
        forged = remote("forger", own.round + 1)  # its questions are other ones than it names
        honest = remote("other", own.round)
        questions = {g.question_id: q for g, q in zip(honest.groups, forged.references.values(), strict=True)}
        liar = Contribution("liar", own.round, 0, honest.groups, questions, "digits")
        return [honest, liar, *late] if own.stage == 0 else []

    play(tmp_path, others=others, stages=2)
    manifest = toy_manifest()
    game = manifest.spec.game.model_copy(update={"stages": 2})
    manifest = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"game": game})})
    rows = load(round_files(tmp_path / "rollouts")[3]).rows.to_pylist()
    assert {row["outcome"] for row in rows if row["author"] == "liar"} == {"unresolvable"}
    assert {row["author_round"] for row in rows if row["author"] == "slow"} == {2}
    assert len(replay(manifest, PeerDirectory(tmp_path)).rounds) == 6


def test_moves_that_an_earlier_release_did_not_train_on_are_replayed_and_those_of_this_one_are_a_difference(
    tmp_path: Path,
) -> None:
    def others(own: Contribution) -> list[Contribution]:
        if own.stage == 0:
            return [remote("other", own.round)]
        data = ToyData()
        started = remote("other", own.round)
        questions = [each for each in map(data.resolve, started.references.values()) if each is not None]
        state = GameState.begin(Round(own.round, 0, 0, 2, "other"), questions)
        prompts = data.stage_inputs(state.with_contribution(started), 1)
        groups = tuple(replace(group, prompt=made) for group, made in zip(started.groups, prompts, strict=True))
        return [replace(started, stage=1, groups=groups)]

    play(tmp_path, others=others, stages=2, exchange=Exchange.GATHER)
    game = toy_manifest().spec.game.model_copy(update={"stages": 2})
    manifest = toy_manifest().model_copy(update={"spec": toy_manifest().spec.model_copy(update={"game": game})})
    stored = load(round_files(tmp_path / "rollouts")[1])
    columns = stored.rows.to_pydict()
    moves = [stage == 1 and peer == "other" for stage, peer in zip(columns["stage"], columns["author"], strict=True)]
    assert any(moves)
    pairs = zip(columns["outcome"], moves, strict=True)
    columns["outcome"] = ["words-only" if moved else outcome for outcome, moved in pairs]
    rows = pa.table(columns, schema=stored.rows.schema)
    write_round(tmp_path / "rollouts", 1, encode_round(stored.head, rows))
    with pytest.raises(
        BadData, match=r"author other, round 1, stage 1, group \w+: outcome is accepted, was words-only"
    ):
        replay(manifest, PeerDirectory(tmp_path))
    for head in stored.head["contributions"]:
        del head["role"]
    write_round(tmp_path / "rollouts", 1, encode_round(stored.head, rows))
    assert len(replay(manifest, PeerDirectory(tmp_path)).rounds) == 6


def test_a_changed_reward_is_traced_to_its_round(root: Path) -> None:
    def change(columns: dict[str, list[object]]) -> None:
        columns["reward"][0] = 0.5

    rewrite(root, 2, change)
    with pytest.raises(BadData, match=r"round 2: the weights are \w+, recorded are"):
        replay(toy_manifest(), PeerDirectory(root))


def test_a_changed_text_of_another_peer_is_traced_to_author_and_group(root: Path) -> None:
    def change(columns: dict[str, list[object]]) -> None:
        columns["text"][columns["author"].index("other")] = "9"

    rewrite(root, 1, change)
    with pytest.raises(BadData, match=r"author other, round 1, stage 0, group \w+: outcome is text-mismatch"):
        replay(toy_manifest(), PeerDirectory(root))


def test_changed_weights_of_the_archive_alone_are_noticed(root: Path) -> None:
    stored = load(round_files(root / "rollouts")[4])
    data = encode_round({**stored.head, "weights": "0" * 32}, stored.rows)
    write_round(root / "rollouts", 4, data)
    with pytest.raises(BadData, match="round 4"):
        replay(toy_manifest(), PeerDirectory(root))


def test_a_flipped_byte_is_named_before_any_round_is_replayed(root: Path) -> None:
    file = round_files(root / "rollouts")[5]
    data = bytearray(file.path.read_bytes())
    data[len(data) // 3] ^= 1
    file.path.write_bytes(data)
    lines: list[str] = []
    with pytest.raises(BadData, match=r"round 5: .*column \w+, rows .*author (me|other)"):
        replay(toy_manifest(), PeerDirectory(root), notify=lines.append)
    assert lines == []


def test_rounds_that_were_dropped_are_reported_and_the_oldest_checkpoint_after_them_is_used(root: Path) -> None:
    for file in round_files(root / "rollouts")[:4]:
        file.path.unlink()
    found = replay(toy_manifest(), PeerDirectory(root))
    assert (found.rounds, found.start, found.missing) == ((4, 5), 4, (0, 1, 2, 3))


def test_the_last_rounds_of_a_killed_peer_may_be_in_the_metrics_only(root: Path) -> None:
    round_files(root / "rollouts")[5].path.unlink()
    with (root / "metrics.jsonl").open("a") as file:
        file.write('{"round": 6, "wei')
    found = replay(toy_manifest(), PeerDirectory(root))
    assert (found.rounds, found.missing) == ((0, 1, 2, 3, 4), (5,))


def test_a_game_whose_data_makes_other_questions_is_named(root: Path) -> None:
    manifest = toy_manifest()
    game = manifest.spec.game.model_copy(update={"seed": 6})
    other = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"game": game})})
    with pytest.raises(BadData, match="round 0: the data makes other questions"):
        replay(other, PeerDirectory(root))


def test_a_peer_without_archive_or_hashes_is_told_what_is_missing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no such rounds"):
        replay(toy_manifest(), PeerDirectory(root), first=6)
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    (root / "metrics.jsonl").write_text("".join(json.dumps({"round": line["round"]}) + "\n" for line in lines))
    with pytest.raises(BadData, match="an earlier release"):
        replay(toy_manifest(), PeerDirectory(root))


def test_a_peer_of_several_processes_is_refused(root: Path) -> None:
    stored = load(round_files(root / "rollouts")[0])
    write_round(root / "rollouts", 0, encode_round({**stored.head, "processes": 2}, stored.rows))
    with pytest.raises(BadUsage, match="2 processes"):
        replay(toy_manifest(), PeerDirectory(root))


@pytest.mark.parametrize(
    ("present", "checkpoints", "first", "expected"),
    [
        (range(10), [4, 8], 0, (None, list(range(10)))),
        (range(10), [4, 8], 9, (8, [8, 9])),
        (range(10), [4, 8, 10], 9, (8, [8, 9])),
        (range(5, 10), [4, 6, 8], 0, (6, [6, 7, 8, 9])),
        (range(5, 10), [4, 6, 8], 7, (6, [6, 7, 8, 9])),
        ([*range(5), *range(6, 10)], [4, 6], 0, (6, [6, 7, 8, 9])),
    ],
)
def test_a_replay_starts_where_all_its_rounds_are_there(
    present: list[int], checkpoints: list[int], first: int, expected: tuple[int | None, list[int]]
) -> None:
    files = {number: RoundFile(number, "", Path()) for number in present}
    assert _plan(range(10), files, checkpoints, first) == expected


def test_without_any_start_the_missing_rounds_are_named() -> None:
    files = {number: RoundFile(number, "", Path()) for number in (3, 5)}
    with pytest.raises(BadData, match=r"lacks 4 rounds from 0 to 4"):
        _plan(range(6), files, [1], 0)
