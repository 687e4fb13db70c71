"""Verification of transcripts: our own environment plays what another peer claims to have played.

An environment is deterministic in the question and the policy's turns, so its observations are known without trusting
anybody. A transcript with one other observation, with ids that do not give the texts, or that goes on where the episode
was over, drops its whole group. What passes carries the rewards of our own play.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from swarmgame.game.environment import Episodes, Play
from swarmgame.game.state import FinishReason, Group, PeerId, Question, Rollout

MISMATCH = "transcript-mismatch"
NOT_PLAYED = "transcript-not-played"
"""The time for other peers' episodes was used up, so nothing is known of it."""

_ENDS = frozenset({FinishReason.DONE, FinishReason.TURNS, FinishReason.LENGTH})
"""How an episode ends that did not fail."""

MOST_TEXT = 2**20
"""Most characters of the turns of one transcript. As JSON, a character may take 12 bytes, and a request to the sandbox
64 MiB.
"""

ObservationIds = Callable[[str, int], Sequence[int] | None]
"""(observation, last id of the turn before) → the ids that our trainer puts there; None where it cannot tell."""


def played(
    episodes: Episodes,
    author: PeerId,
    groups: Sequence[Group],
    questions: Mapping[str, Question],
    observation_ids: ObservationIds,
    *,
    waiting: int = 1,
) -> tuple[list[Group], dict[str, str]]:
    """Play the transcripts of one author again.

    Args:
        questions: regenerated, by id.
        observation_ids: of our trainer.
        waiting: see `Episodes.play`.

    Returns:
        The groups that pass, with our own rewards; and for each other one, by question, why not.
    """
    faults = {
        group.question_id: MISMATCH
        for group in groups
        if not all(_is_playable(rollout, episodes) for rollout in group.rollouts)
    }
    playable = [group for group in groups if group.question_id not in faults]
    rollouts = [(group, rollout) for group in playable for rollout in group.rollouts]
    plays = episodes.play(
        [(questions[group.question_id], answered(rollout)) for group, rollout in rollouts],
        author=author,
        waiting=waiting,
    )
    found: dict[str, list[Rollout]] = {}
    for (group, rollout), play in zip(rollouts, plays, strict=True):
        fault = fault_of(rollout, play, episodes, observation_ids)
        if fault and faults.get(group.question_id) != MISMATCH:
            faults[group.question_id] = fault
        rewards = tuple(float("nan") if step.reward is None else step.reward for step in play.steps)
        found.setdefault(group.question_id, []).append(replace(rollout, turn_rewards=rewards))
    kept = [
        replace(group, rollouts=tuple(found.get(group.question_id, ())))
        for group in playable
        if group.question_id not in faults
    ]
    return kept, faults


def answered(rollout: Rollout) -> list[str]:
    """Return the turns that the environment has answered: a turn that was cut by the budget is none."""
    turns = list(rollout.turns)
    was_cut = rollout.finish_reason is FinishReason.LENGTH and len(rollout.observations) < len(turns)
    return turns[:-1] if was_cut else turns


def fault_of(rollout: Rollout, play: Play, episodes: Episodes, observation_ids: ObservationIds) -> str:
    """Return why a transcript cannot be what our environment plays; empty if it can."""
    if not play.is_known:
        return NOT_PLAYED
    turns, observations, reason = answered(rollout), list(rollout.observations), rollout.finish_reason
    if play.failure is not None:
        # An honest peer's environment failed at the same turn: it has no observation of it. What it answered before
        # cannot be played without that turn, so all turns but the last one count as they are.
        return "" if reason is FinishReason.ERROR and len(observations) == len(turns) - 1 else MISMATCH
    if reason is FinishReason.ERROR:
        return NOT_PLAYED  # its author's machine had no time or memory left for a turn that ours has played
    if len(play.steps) != len(turns) or reason not in _ENDS:
        return MISMATCH
    expected = [step.observation for step in play.steps]
    is_over = bool(play.steps) and play.steps[-1].done
    if is_over and not expected[-1]:
        expected.pop()
    if observations != expected or is_over != (reason is FinishReason.DONE):
        return MISMATCH
    if (reason is FinishReason.TURNS) != (len(turns) == episodes.max_turns and not is_over):
        return MISMATCH
    return "" if _ids_agree(rollout, observation_ids) else MISMATCH


def _is_playable(rollout: Rollout, episodes: Episodes) -> bool:
    """Return whether a transcript has as many turns, and as much text, as an honest one may have."""
    turns = answered(rollout)
    return len(turns) <= episodes.max_turns and sum(map(len, turns)) <= MOST_TEXT


def _ids_agree(rollout: Rollout, observation_ids: ObservationIds) -> bool:
    """Return whether the environment's ids are those that our trainer would have put there."""
    at = 0
    for index, segment in enumerate(rollout.segments):
        ids = tuple(rollout.token_ids[at : at + segment.tokens])
        if index % 2 and segment.tokens:
            expected = observation_ids(segment.text, int(rollout.token_ids[at - 1]))
            if expected is not None and tuple(expected) != ids:
                return False
        at += segment.tokens
    return True
