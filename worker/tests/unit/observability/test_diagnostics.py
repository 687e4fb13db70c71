"""Diagnostics: what the rules find and leave alone, each once, for the log, the status, the file and the report."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_game import Scripted, manager
from toys import ToyRewards, ToyTrainer

from swarmgame import GameState, Rewards
from swarmgame.game.components import Notice
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import ClockError, ClosedBy
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.observability.diagnostics.files import NewWarnings, append, read_all
from swarmgame.observability.diagnostics.log import DiagnosticsLog
from swarmgame.observability.diagnostics.observer import DiagnosticsObserver
from swarmgame.observability.diagnostics.outcomes import OUTCOMES
from swarmgame.observability.diagnostics.records import GameFacts, RoundRecord
from swarmgame.observability.diagnostics.reference import page
from swarmgame.observability.diagnostics.rules import NOTHING_LEARNED, RULES, Diagnostic, find_all
from swarmgame.observability.diagnostics.trainer_rules import OF_TRAINER
from swarmgame.observability.metrics import PeerMetrics
from swarmgame.observability.status import PeerStatus
from swarmgame.user_code import CodeError

ROOT = Path(__file__).resolve().parents[4]
FACTS = GameFacts(external_groups=8)
GOOD = RoundRecord(
    round=0, members=2, external=4, outcomes={"accepted": 2}, rollouts=8, spread=2, low=0.0, high=1.0, policy_version=1
)


def game(count: int, *, facts: GameFacts = FACTS, trains: bool = True, **changes: Any) -> dict[str, str]:
    """Return what is found after `count` good rounds with these changes: code, or outcome, → text."""
    records = [
        replace(GOOD, round=number, policy_version=number + 1 if trains else 1, **changes) for number in range(count)
    ]
    return {found.subject or found.code: found.text for found in find_all(records, facts)}


def test_nothing_is_found_in_a_game_that_learns_and_shares() -> None:
    for count in range(1, 30):
        assert game(count) == {}


@pytest.mark.parametrize(
    ("seconds", "peers", "text"),
    [
        (20.4, 3, "this machine's clock is 20 s ahead of those of the members that count (3 are known)"),
        (-3600.0, 2, "this machine's clock is 3600 s behind those of the members that count (2 are known)"),
        (
            7.0,
            1,
            "this machine's clock is 7 s ahead of that of the only member whose clock is known: one of both is wrong",
        ),
    ],
)
def test_a_wrong_clock_is_found_at_once_with_the_amount(seconds: float, peers: int, text: str) -> None:
    assert game(1, clock_error=ClockError(seconds, peers)) == {"wrong-clock": text}


@pytest.mark.parametrize("error", [None, ClockError(0.0, 3), ClockError(4.9, 3), ClockError(-4.9, 3)])
def test_a_clock_that_is_near_the_others_is_left_alone(error: ClockError | None) -> None:
    assert game(5, clock_error=error) == {}


def test_what_a_writer_has_given_up_is_a_warning_with_a_cure() -> None:
    shown: list[Diagnostic] = []
    log = DiagnosticsLog(FACTS, lambda diagnostic, first: shown.append(diagnostic))
    log.begin(0)
    log.add_round(GOOD, notices=[Notice("archive-off", "the archive of rollouts was switched off: full")])
    log.add_round(GOOD, notices=[Notice("archive-off", "the archive of rollouts was switched off: full")])
    log.finish([Notice("tracker-off", "TensorBoard is off until this peer starts again: full")])
    assert [each.code for each in shown] == ["archive-off", "tracker-off"]
    assert all("space" in f"{each.cause}{each.cure}" or "disk" in each.cause for each in shown)


def test_three_first_rounds_in_which_everything_scores_zero_are_found() -> None:
    assert game(2, high=0.0, spread=0) == {}
    found = game(3, high=0.0, spread=0)
    assert found == {
        "no-spread": "nothing can be learned: in rounds 0 to 2 every rollout of every group scored 0",
    }


def test_equal_rewards_within_groups_are_found_only_where_the_policy_does_not_change() -> None:
    assert game(3, spread=0, trains=False) == {
        "no-spread": "nothing can be learned: in rounds 0 to 2 all rollouts of each group had equal rewards"
    }
    assert game(3, spread=0) == {}


def test_a_game_in_which_everything_is_right_is_solved() -> None:
    assert game(3, low=1.0, spread=0) == {
        "no-spread": "nothing is left to learn: in rounds 0 to 2 every rollout had full reward (1)"
    }
    assert "no-spread" not in game(3, low=1.0, spread=0, rollouts=0)


def test_a_policy_that_is_not_updated_although_rewards_differ_is_found() -> None:
    assert game(3, trains=False) == {
        "no-steps": "the policy was not updated in rounds 0 to 2, although rewards differed within groups"
    }
    assert game(3, trains=False, facts=replace(FACTS, trains=False)) == {}


def test_gradients_that_are_not_finite_again_and_again_are_found() -> None:
    assert game(2, skipped_steps=1) == {}
    assert game(5, skipped_steps=1) == {
        "steps-not-finite": "gradients were not finite in 5 of the last 5 rounds, so their steps were left out"
    }


def test_completions_that_are_all_cut_are_found() -> None:
    assert game(3, truncated=7) == {}
    assert game(3, truncated=8) == {"all-truncated": "every completion was cut at the limit of tokens in rounds 0 to 2"}


def test_rollouts_without_a_reward_are_found() -> None:
    assert game(3, unscored=2) == {
        "unscored": "6 of 24 rollouts had no reward in rounds 0 to 2; they are not trained on"
    }


@pytest.mark.parametrize(
    ("evaluated", "text"),
    [
        (None, "the evaluation of round 1 had no questions"),
        (math.nan, "the evaluation of round 1 scored no rollout"),
    ],
)
def test_an_evaluation_without_items_is_found(evaluated: float | None, text: str) -> None:
    facts = replace(FACTS, evaluate_every=2)
    assert game(2, facts=facts, evaluated=evaluated) == {"empty-evaluation": text}
    assert game(2, facts=facts, evaluated=0.5) == {}


def test_a_peer_without_a_swarm_is_found_unless_it_is_meant_to_be_alone() -> None:
    alone: dict[str, Any] = {"closed_by": ClosedBy.ISOLATED, "members": 1, "external": 0}
    assert game(3, **alone) == {"isolated": "this peer is alone: no other member was live in rounds 0 to 2"}
    assert game(3, facts=replace(FACTS, single_peer=True), **alone) == {}


def test_a_swarm_that_shares_nothing_is_found_with_the_reasons() -> None:
    assert game(9, external=0) == {}
    assert game(10, external=0, outcomes={"accepted": 1, "not-there": 3})["shares-nothing"] == (
        "no group of another peer was trained on in rounds 0 to 9 (not-there 30)"
    )
    assert game(10, external=0, facts=replace(FACTS, external_groups=0)) == {}
    # A trainer whose groups have one rollout each learns without a spread.
    assert "shares-nothing" in game(10, external=0, spread=0)
    assert "shares-nothing" not in game(10, external=0, spread=0, trains=False)


def test_a_peer_that_skips_rounds_is_found() -> None:
    def skipping(*rounds: int) -> list[str]:
        records = [replace(GOOD, round=number, policy_version=index) for index, number in enumerate(rounds)]
        return [found.text for found in find_all(records, FACTS) if found.code == "skipped-rounds"]

    assert skipping(0, 1, 4, 5) == []
    assert skipping(0, 1, 4, 5, 7) == ["this peer skipped 3 of the last 8 rounds"]


def test_members_that_come_too_late_in_half_of_the_rounds_are_found() -> None:
    records = [
        replace(GOOD, round=number, policy_version=number, missing=("peer-slow01",) if number % 2 else ())
        for number in range(10)
    ]
    texts = [found.text for found in find_all(records, FACTS)]
    assert texts == ["in 5 of the last 10 rounds a stage closed without some members (…slow01 5 times)"]
    assert find_all([replace(record, missing=()) for record in records], FACTS) == []


@pytest.mark.parametrize("outcome", [name for name, known in OUTCOMES.items() if known.warned_after])
def test_what_is_refused_for_one_reason_round_after_round_is_found(outcome: str) -> None:
    known = OUTCOMES[outcome]
    found = game(known.warned_after, outcomes={outcome: 2}, external=0 if known.may_be_normal else 4)
    rounds = "round 0" if known.warned_after == 1 else f"rounds 0 to {known.warned_after - 1}"
    assert found == {
        outcome: f"{2 * known.warned_after} messages or groups of other peers were not used in {rounds}: {outcome}"
    }
    if known.warned_after > 1:
        assert outcome not in game(known.warned_after - 1, outcomes={outcome: 2}, external=0)
    assert outcome not in game(30, outcomes={}, external=4)
    assert known.cause
    assert known.cure


def test_groups_of_later_stages_that_only_give_text_are_normal_while_others_are_trained_on() -> None:
    assert game(30, outcomes={"words-only": 5}) == {}


@pytest.mark.parametrize("outcome", ["accepted", "late", "duplicate"])
def test_ordinary_outcomes_are_no_reason_to_warn(outcome: str) -> None:
    assert game(30, outcomes={outcome: 9}) == {}


def test_the_table_has_every_outcome_that_the_code_counts() -> None:
    """Collect the names from the sources: an outcome without an explanation would only be a word."""
    import re

    counted = set()
    for folder in ("game", "swarm"):
        for file in (ROOT / "worker/swarmgame" / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            counted |= set(re.findall(r'outcomes\["([a-z-]+)"\]', text))
            counted |= set(re.findall(r'\.refuse\([^"\n]*, "([a-z-]+)"\)', text))
            counted |= set(re.findall(r'\breasons\[[^\]\n]*\] = (?:.*, )?"([a-z-]+)"', text))
            counted |= set(re.findall(r'(?:Rejected|Malformed|_refuse)\(\s*"([a-z]+(?:-[a-z]+)*)"[,)]', text))
    assert {"prompt-mismatch", "unresolvable", "duplicate", "bad-signature", "unreachable"} <= counted
    assert counted <= set(OUTCOMES)


# ── the log


def test_a_warning_is_emitted_once_and_its_count_at_powers_of_ten_and_at_the_end() -> None:
    emitted: list[tuple[str, int, bool]] = []
    log = DiagnosticsLog(FACTS, lambda found, first: emitted.append((found.code, found.count, first)))
    log.begin(0)
    for number in range(30):
        log.add_round(replace(GOOD, round=number, policy_version=number, truncated=8))
    log.finish()
    assert emitted == [("all-truncated", 1, True), ("all-truncated", 10, False), ("all-truncated", 28, False)]


def test_each_kind_of_failed_call_is_a_warning_with_the_functions_own_count() -> None:
    emitted: list[Diagnostic] = []
    log = DiagnosticsLog(FACTS, lambda found, first: emitted.append(found))
    first = ScoringFailure(CodeError("KeyError", "'x'", "/game/m.py:3", "frames"), 4, "Correct it")
    second = ScoringFailure(CodeError("ValueError", "bad", "/game/m.py:9"), 1, "Correct it")
    log.add_round(GOOD, [first])
    log.add_round(replace(GOOD, round=1, policy_version=2), [replace(first, count=5), second])
    log.finish()
    assert [(found.subject, found.round, found.count) for found in emitted] == [
        ("KeyError /game/m.py:3", 0, 4),
        ("ValueError /game/m.py:9", 1, 1),
        ("KeyError /game/m.py:3", 0, 5),
    ]
    assert str(emitted[0]) == (
        "a call of the reward function failed and scored 0: KeyError: 'x' at /game/m.py:3. Correct it"
    )
    assert emitted[0].detail == "frames"


@pytest.mark.parametrize(("version", "trains", "warns"), [(3, True, True), (4, True, False), (3, False, False)])
def test_a_game_without_a_single_update_ends_with_a_word(version: int, trains: bool, warns: bool) -> None:
    emitted: list[str] = []
    log = DiagnosticsLog(replace(FACTS, trains=trains), lambda found, first: emitted.append(found.code))
    log.begin(3)
    log.add_round(replace(GOOD, policy_version=version))
    log.finish()
    assert emitted == ([NOTHING_LEARNED.code] if warns else [])


def test_a_game_that_was_stopped_before_its_first_round_says_nothing() -> None:
    log = DiagnosticsLog(FACTS, lambda found, first: pytest.fail(str(found)))
    log.begin(0)
    log.finish()


# ── in a game


class Flat(ToyRewards):
    def rewards(self, state: GameState) -> Rewards:
        return {key: [0.0] * len(group.rollouts) for key, group in state.groups()}


class Idle(ToyTrainer):
    """Is never updated."""

    def train(self, state: GameState, rewards: Rewards) -> dict[str, float]:
        return {}


@pytest.fixture
def observed(tmp_path: Path) -> Callable[..., tuple[DiagnosticsObserver, PeerStatus, PeerMetrics]]:
    def make(rewards: ToyRewards, trainer: ToyTrainer) -> tuple[DiagnosticsObserver, PeerStatus, PeerMetrics]:
        status, metrics = PeerStatus(), PeerMetrics()
        observer = DiagnosticsObserver(
            GameFacts(single_peer=True),
            rewards,
            trainer,
            path=tmp_path / "warnings.jsonl",
            index=0,
            status=status,
            metrics=metrics,
        )
        return observer, status, metrics

    return make


def test_a_game_that_cannot_learn_is_named_in_log_status_file_and_metrics(
    observed: Callable[..., tuple[DiagnosticsObserver, PeerStatus, PeerMetrics]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewards, trainer = Flat(), Idle()
    observer, status, metrics = observed(rewards, trainer)
    with caplog.at_level(logging.WARNING):
        manager(
            Scripted(),
            Progression(max_rounds=5, single_peer=True),
            rewards=rewards,
            trainer=trainer,
            observers=[observer],
        )[0].run()
    logged = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[1].strip() for line in logged] == ["nothing can be learned", "nothing was learned"]
    assert [found["code"] for found in status.current.warnings] == ["no-spread", "nothing-learned"]
    assert json.loads(json.dumps(status.snapshot()))["warnings"][0]["round"] == 2
    written = [json.loads(line) for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert [(line["code"], line["count"]) for line in written] == [
        ("no-spread", 1),
        ("nothing-learned", 1),
        ("no-spread", 3),
    ]
    assert b'warnings_total{code="no-spread"} 1.0' in metrics.render()


# ── files


def diagnostic(code: str = "no-spread", subject: str = "", round: int = 2, count: int = 1) -> Diagnostic:
    return Diagnostic(code, subject, round, f"text of {code}", "cause", "Cure", "", count)


def paths(folder: Path, count: int) -> dict[int, Path]:
    return {index: folder / f"warnings-{index}.jsonl" for index in range(count)}


def test_a_runner_gets_each_warning_once_whichever_peer_has_it_first(tmp_path: Path) -> None:
    files = paths(tmp_path, 3)
    append(files[0], 0, diagnostic("isolated"))
    new = NewWarnings(files)
    assert new.read() == []
    for index in (1, 2):
        append(files[index], index, diagnostic())
    append(files[2], 2, diagnostic("dropped", "stale"))
    assert [str(warning) for warning in new.read()] == [
        "warning: peers 1, 2, round 2: text of no-spread. Likely cause: cause. Cure",
        "warning: peer 2, round 2: text of dropped. Likely cause: cause. Cure",
    ]
    append(files[0], 0, diagnostic(round=7))
    append(files[1], 1, diagnostic(count=10))
    assert new.read() == []


def test_a_runner_ends_with_the_totals_of_failed_calls_of_all_peers(tmp_path: Path) -> None:
    files = paths(tmp_path, 2)
    new = NewWarnings(files)
    append(files[0], 0, diagnostic("scoring-failed", "KeyError m.py:3", count=4))
    append(files[0], 0, diagnostic("scoring-failed", "ValueError m.py:9"))
    append(files[0], 0, diagnostic(count=1))
    assert len(new.read()) == 3
    append(files[0], 0, diagnostic("scoring-failed", "KeyError m.py:3", count=40))
    append(files[1], 1, diagnostic("scoring-failed", "KeyError m.py:3", count=2))
    append(files[1], 1, diagnostic(count=10))
    assert new.read() == []
    assert new.totals() == ["42 times in all: text of scoring-failed"]


def test_the_report_has_one_warning_for_all_peers_with_their_counts(tmp_path: Path) -> None:
    files = paths(tmp_path, 2)
    append(files[0], 0, diagnostic(round=9))
    append(files[0], 0, diagnostic(round=9, count=10))
    append(files[1], 1, diagnostic(round=4, count=2))
    append(files[1], 1, diagnostic("isolated", round=1))
    with files[1].open("a") as file:
        file.write('{"code": "of another version"}\nno json\n{"half')
    found = read_all({**files, 7: tmp_path / "missing.jsonl"})
    assert [(warning.peers, warning.diagnostic.code) for warning in found] == [
        ((1,), "isolated"),
        ((0, 1), "no-spread"),
    ]
    assert (found[1].diagnostic.round, found[1].diagnostic.count) == (4, 12)


def test_the_reference_page_is_current_and_explains_every_warning() -> None:
    text = page()
    assert (ROOT / "docs/reference/warnings.md").read_text(encoding="utf-8") == text
    for rule in (*RULES, NOTHING_LEARNED, *OF_TRAINER.values()):
        assert f"| `{rule.code}` |" in text
    codes: Sequence[str] = [rule.code for rule in RULES]
    assert len(set(codes)) == len(codes)
