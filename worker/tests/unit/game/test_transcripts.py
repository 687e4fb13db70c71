"""Transcripts of other peers: our own environment plays them again, and what differs is dropped."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from guessing_games import GuessingTrainer, LocalEpisodes, observation_ids
from toys import ToyData

from swarmgame import FinishReason, GameState, Group, Question, Rollout
from swarmgame.game.environment import Play
from swarmgame.game.environment_data import EnvironmentData
from swarmgame.game.rollout import Segment
from swarmgame.game.state import PeerId, Round
from swarmgame.game.transcripts import MISMATCH, MOST_TEXT, NOT_PLAYED, played
from swarmgame.user_code import CodeError


def transcripts(questions: int, *, generations: int = 1, max_turns: int = 3) -> tuple[list[Group], dict[str, Question]]:
    """Return groups of honest transcripts, and their questions."""
    data = ToyData(ToyData.Config(questions=questions))
    episodes = LocalEpisodes(max_turns=max_turns)
    round = Round(0, 1, 2, 1, "other")
    asked = data.round_data(round)
    prompts = EnvironmentData(data, episodes).stage_inputs(GameState.begin(round, asked), 0)
    groups = GuessingTrainer(episodes, generations=generations).generate(prompts, round)
    return list(groups), {question.id: question for question in asked}


def check(
    groups: Sequence[Group], questions: dict[str, Question], **options: int
) -> tuple[list[Group], dict[str, str]]:
    return played(LocalEpisodes(**options), "other", groups, questions, observation_ids)


def with_segment(rollout: Rollout, at: int, **fields: object) -> Rollout:
    segments = list(rollout.segments)
    segments[at] = replace(segments[at], **fields)  # type: ignore[arg-type]
    return replace(rollout, segments=tuple(segments))


def test_honest_transcripts_pass_with_the_rewards_of_our_own_play() -> None:
    groups, questions = transcripts(200, generations=4)
    kept, faults = check(
        [replace(g, rollouts=tuple(replace(r, turn_rewards=(9.0,)) for r in g.rollouts)) for g in groups], questions
    )
    assert (kept, faults) == (groups, {})
    ends = {rollout.finish_reason for group in groups for rollout in group.rollouts}
    assert ends == {FinishReason.DONE, FinishReason.TURNS}
    for sent, ours in zip(groups, kept, strict=True):
        for theirs, rollout in zip(sent.rollouts, ours.rollouts, strict=True):
            assert rollout.turn_rewards[-1] == pytest.approx(theirs.turn_rewards[-1], nan_ok=True)
            if rollout.finish_reason is FinishReason.DONE:
                assert rollout.turn_rewards[-1] == pytest.approx(1 - 0.1 * (len(rollout.turns) - 1))


def test_a_thousand_transcripts_with_one_altered_observation_each_are_all_dropped() -> None:
    groups, questions = transcripts(1600)
    random_ = random.Random(3)
    altered = []
    for group in groups:
        (rollout,) = group.rollouts
        if rollout.observations and len(altered) < 1000:
            at = random_.randrange(len(rollout.observations)) * 2 + 1
            text = rollout.segments[at].text
            other = random_.choice(
                [each for each in ("larger", "smaller", "Right.", text + " ", text[1:]) if each != text]
            )
            altered.append(replace(group, rollouts=(with_segment(rollout, at, text=other),)))
    assert len(altered) == 1000
    kept, faults = check(altered, questions)
    assert kept == []
    assert list(faults.values()) == [MISMATCH] * 1000
    assert check(groups, questions) == (groups, {})


def long_one() -> tuple[Group, dict[str, Question]]:
    """Return the group of a transcript whose three turns were all wrong."""
    groups, questions = transcripts(50)
    return next(g for g in groups if g.rollouts[0].finish_reason is FinishReason.TURNS), questions


def without_the_last_turns(rollout: Rollout) -> Rollout:
    """One turn of three, said to be all."""
    tokens = rollout.segments[0].tokens
    return Rollout(
        rollout.turns[0],
        rollout.token_ids[:tokens],
        rollout.logprobs[:tokens],
        FinishReason.TURNS,
        (rollout.segments[0], replace(rollout.segments[1], tokens=0)),
    )


def with_other_ids(rollout: Rollout) -> Rollout:
    ids = list(rollout.token_ids)
    ids[rollout.segments[0].tokens + 1] += 1
    return replace(rollout, token_ids=tuple(ids))


FORGERIES: dict[str, Callable[[Rollout], Rollout]] = {
    "an end that did not come": lambda r: replace(r, finish_reason=FinishReason.DONE),
    "a stop, which no episode ends with": lambda r: replace(r, finish_reason=FinishReason.STOP),
    "a budget of tokens where that of turns was used up": lambda r: replace(r, finish_reason=FinishReason.LENGTH),
    "fewer turns than there were": without_the_last_turns,
    "ids that are not those of the observation": with_other_ids,
    "no observation at the end": lambda r: replace(r, segments=r.segments[:-1], finish_reason=FinishReason.TURNS),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_transcript_drops_its_group(forge: Callable[[Rollout], Rollout]) -> None:
    group, questions = long_one()
    forged = replace(group, rollouts=(group.rollouts[0], forge(group.rollouts[0])))
    assert check([forged], questions) == ([], {group.question_id: MISMATCH})


def test_a_group_without_rollouts_passes_as_it_is() -> None:
    """Its author left all of them out for numbers that are not finite, or is a stranger who sends anything."""
    groups, questions = transcripts(2)
    sent = [replace(groups[0], rollouts=()), groups[1]]
    assert check(sent, questions) == (sent, {})


class Recording(LocalEpisodes):
    """Remembers what it was asked to play."""

    def __init__(self, *, max_turns: int) -> None:
        super().__init__(max_turns=max_turns)
        self.played: list[Sequence[str]] = []

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        self.played += [turns for _, turns in plays]
        return super().play(plays, author=author, waiting=waiting)


@pytest.mark.parametrize(("text", "turns"), [("x" * (MOST_TEXT + 1), 3), ("5", 2)])
def test_more_text_or_turns_than_a_transcript_may_have_are_a_mismatch_and_not_played(text: str, turns: int) -> None:
    group, questions = long_one()
    done = [g for g in transcripts(50)[0] if g.rollouts[0].finish_reason is FinishReason.DONE]
    honest = next(each for each in done if len(each.rollouts[0].turns) <= turns)
    sent = [honest, replace(group, rollouts=(with_segment(group.rollouts[0], 0, text=text),))]
    episodes = Recording(max_turns=turns)
    assert played(episodes, "other", sent, questions, observation_ids) == ([honest], {group.question_id: MISMATCH})
    assert episodes.played == [list(honest.rollouts[0].turns)]


def test_a_failure_that_our_own_play_does_not_show_may_be_one_of_time_at_its_author() -> None:
    group, questions = long_one()
    failed = replace(group.rollouts[0], finish_reason=FinishReason.ERROR)
    assert check([replace(group, rollouts=(failed,))], questions) == ([], {group.question_id: NOT_PLAYED})


class Failing(LocalEpisodes):
    """Fails at every turn."""

    def __init__(self, *, is_known: bool) -> None:
        super().__init__()
        self._is_known = is_known

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        return [Play(failure=CodeError("ValueError", "no"), is_known=self._is_known) for _ in plays]


def test_a_failure_that_our_own_play_shows_is_kept_and_one_of_time_says_nothing() -> None:
    group, questions = long_one()
    failed = replace(group, rollouts=(Rollout("5", (53, 0), (-1.0, -0.5), FinishReason.ERROR),))
    kept, faults = played(Failing(is_known=True), "other", [failed], questions, observation_ids)
    assert (kept, faults) == ([failed], {})
    for each in (failed, group):
        _, faults = played(Failing(is_known=False), "other", [each], questions, observation_ids)
        assert faults == {group.question_id: NOT_PLAYED}
    assert played(Failing(is_known=True), "other", [group], questions, observation_ids)[1] == {
        group.question_id: MISMATCH
    }


def test_a_turn_that_the_budget_cut_is_not_played() -> None:
    groups, questions = transcripts(30)
    group = next(group for group in groups if len(group.rollouts[0].turns) > 1)
    (rollout,) = group.rollouts
    first, observation = rollout.segments[:2]
    size = first.tokens + observation.tokens
    cut = Rollout(
        "9",
        (*rollout.token_ids[:size], 57),
        (*rollout.logprobs[: first.tokens], -1.0),
        FinishReason.LENGTH,
        (first, observation, Segment(1, "9")),
    )
    kept, faults = check([replace(group, rollouts=(cut,))], questions)
    assert (len(kept), faults) == (1, {})
    assert len(kept[0].rollouts[0].turn_rewards) == 1
