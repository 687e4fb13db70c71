"""Held-out results of a run: which evaluations are compared, and their standard errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarmgame.observability.peer_progress import PeerProgress
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.report.data import Summary
from swarmgame.report.results import HeldOut, held_out_of, rewards_at_ends


def evaluation(scores: dict[str, float], **more: Any) -> dict[str, Any]:
    average = sum(scores.values()) / len(scores)
    return {"average": {"all": average}, "errors": {"all": 0.25}, "samples": 1, "scores": scores, **more}


def peer(root: Path, index: int, *lines: dict[str, Any]) -> PeerProgress:
    directory = PeerDirectory(root / str(index))
    directory.root.mkdir()
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    progress = PeerProgress(index, directory)
    progress.refresh()
    return progress


def test_the_first_evaluation_is_before_the_first_update_and_the_change_is_paired_over_questions(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    before = rng.random((2, 30))
    after = before + 0.1 + rng.normal(size=(2, 30)) * 0.02
    peers = [
        peer(
            tmp_path,
            index,
            {"round": 0, "first_evaluation": evaluation(dict(zip(map(str, range(30)), before[index], strict=True)))},
            {"round": 7, "evaluation": evaluation(dict(zip(map(str, range(30)), after[index], strict=True)))},
        )
        for index in range(2)
    ]
    found = held_out_of(peers)
    assert found is not None
    assert (found.first_round, found.last_round, found.questions) == (0, 8, 30)
    assert found.total.first == pytest.approx(before.mean())
    assert found.total.difference == pytest.approx((after - before).mean())
    differences = (after - before).mean(axis=0)
    assert found.total.error == pytest.approx(differences.std(ddof=1) / math.sqrt(30))
    assert found.total.last_error == pytest.approx(after.mean(axis=0).std(ddof=1) / math.sqrt(30))
    assert found.total.error < found.total.last_error / 3  # type: ignore[operator]


def test_a_change_of_nothing_has_an_error_of_zero(tmp_path: Path) -> None:
    scores = {"a": 1.0, "b": 0.0}
    lines = [{"round": 0, "first_evaluation": evaluation(scores)}, {"round": 3, "evaluation": evaluation(scores)}]
    found = held_out_of([peer(tmp_path, 0, *lines)])
    assert found is not None
    assert (found.total.difference, found.total.error) == (0.0, 0.0)


def test_without_the_scores_of_questions_the_peers_own_errors_count(tmp_path: Path) -> None:
    lines = [
        {"round": 0, "first_evaluation": evaluation({"a": 0.25}) | {"scores": {}}},
        {"round": 3, "evaluation": evaluation({"a": 0.75}) | {"scores": {}}},
    ]
    found = held_out_of([peer(tmp_path, 0, *lines)])
    assert found is not None
    assert (found.total.first_error, found.total.last_error) == (0.25, 0.25)
    assert found.total.error == pytest.approx(math.hypot(0.25, 0.25))


def test_a_peer_with_one_evaluation_counts_at_the_end_only(tmp_path: Path) -> None:
    peers = [
        peer(
            tmp_path,
            0,
            {"round": 0, "first_evaluation": evaluation({"a": 0.0, "b": 0.0})},
            {"round": 9, "evaluation": evaluation({"a": 0.5, "b": 0.5})},
        ),
        peer(tmp_path, 1, {"round": 9, "evaluation": evaluation({"a": 1.0, "b": 1.0})}),
    ]
    found = held_out_of(peers)
    assert found is not None
    assert (found.total.first, found.total.last) == (0.0, 0.75)
    assert held_out_of(peers[1:]).total.first is None  # type: ignore[union-attr]


def test_a_run_without_evaluations_has_no_held_out_results(tmp_path: Path) -> None:
    empty = {"average": {}, "samples": 0}
    assert held_out_of([peer(tmp_path, 0, {"round": 0, "first_evaluation": None, "evaluation": empty})]) is None


def test_stages_environments_and_pass_at_k_have_their_own_changes(tmp_path: Path) -> None:
    def one(value: float) -> dict[str, Any]:
        sampled = {
            "average": {"all": value / 2},
            "errors": {"all": 0.1},
            "samples": 4,
            "pass_at": {"1": value, "4": 1.0},
        }
        average = {"x": value, "y": value / 2, "all": value}
        errors = dict.fromkeys(average, 0.1)
        return {"average": average, "errors": errors, "samples": 1, "stages": [value, None], "sampled": sampled}

    found = held_out_of(
        [peer(tmp_path, 0, {"round": 0, "first_evaluation": one(0.5)}, {"round": 1, "evaluation": one(0.75)})]
    )
    assert found is not None
    assert found.environments["y"].difference == pytest.approx(0.125)
    assert found.environments["y"].error == pytest.approx(math.hypot(0.1, 0.1))
    assert [stage.difference for stage in found.stages] == [0.25, None]
    assert found.samples == 4
    assert found.sampled is not None
    assert found.sampled.difference == pytest.approx(0.125)
    assert {k: change.difference for k, change in found.pass_at.items()} == {"1": 0.25, "4": 0.0}


def test_rewards_at_the_ends_are_means_over_peers_first_and_over_rounds_then(tmp_path: Path) -> None:
    peers = [
        peer(tmp_path, 0, *({"round": number, "reward": float(number)} for number in range(4))),
        peer(tmp_path, 1, {"round": 0, "reward": None}, {"round": 3, "reward": 5.0}),
    ]
    change = rewards_at_ends(peers, lambda line: line["reward"], 2)
    assert (change.first, change.last) == (0.5, 3.0)


def test_the_headline_is_the_held_out_change_and_the_training_reward_stands_below(tmp_path: Path) -> None:
    scores = [{"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}]
    lines = [{"round": 0, "first_evaluation": evaluation(scores[0])}, {"round": 9, "evaluation": evaluation(scores[1])}]
    first, second = summary(held_out_of([peer(tmp_path, 0, *lines)])).sentences
    assert first == (
        "4 held-out questions: 0.500 ± 0.289 before training → 0.750 ± 0.250 after 10 rounds, "
        "change +0.250 ± 0.250 (± standard error)"
    )
    assert second == "training reward: first 5 rounds 0.100, last 5 rounds 0.400, rise +0.300"
    assert summary(None).sentences == [second]


def summary(held_out: HeldOut | None) -> Summary:
    return Summary("r", 1, 10, 5, 0.1, 0.4, 0.3, 1.0, None, 1, 0, None, held_out)


def test_held_out_results_by_role_are_those_of_the_peers_that_kept_it(tmp_path: Path) -> None:
    def played(index: int, role: str, last: float, later: str = "") -> PeerProgress:
        return peer(
            tmp_path,
            index,
            {"round": 0, "role": role, "first_evaluation": evaluation({"a": 0.0, "b": 0.5})},
            {"round": 7, "role": later or role, "evaluation": evaluation({"a": 0.0, "b": last})},
        )

    found = held_out_of([played(0, "asker", 0.5), played(1, "solver", 1.0), played(2, "solver", 0.0, "asker")])
    assert found is not None
    assert {role: (each.first, each.last) for role, each in found.roles.items()} == {
        "asker": (0.25, 0.25),
        "solver": (0.25, 0.5),
    }
    assert (
        summary(found)
        .sentences[1]
        .startswith("held-out, by the role of the peers: asker 0.250 → 0.250 (change +0.000 ± ")
    )
    assert held_out_of([played(3, "solver", 1.0), played(4, "", 1.0)]).roles == {}  # type: ignore[union-attr]


def test_an_evaluation_of_weights_that_were_lost_does_not_count(tmp_path: Path) -> None:
    lines = [
        {"round": 0, "first_evaluation": evaluation({"a": 0.125})},
        {"round": 3, "evaluation": evaluation({"a": 1.0}), "lost": True},
        {"round": 5, "evaluation": evaluation({"a": 0.5})},
    ]
    found = held_out_of([peer(tmp_path, 0, *lines)])
    assert found is not None
    assert (found.total.first, found.total.last, found.last_round) == (0.125, 0.5, 6)
