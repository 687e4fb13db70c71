"""The results of a run: held-out scores before and after training, and rewards at both ends, with standard errors.

Pure functions of the lines of finished rounds. All peers evaluate the same held-out questions, so the standard error of
their mean is taken over questions, after averaging over peers; the error of a change is that of the paired differences
(Miller 2024, arXiv 2411.00640). Where the scores of single questions are not in the lines, the peers' own errors are
averaged, which is too large rather than too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from swarmgame.game.evaluation import ALL, standard_error
from swarmgame.observability.peer_progress import Line, PeerProgress, is_lost, mean, number, numbers
from swarmgame.observability.status import finite

Evaluated = Mapping[str, Any]
"""An evaluation as a line has it: the fields of `game.evaluation.Evaluation`."""


@dataclass(frozen=True, slots=True)
class Change:
    """A number at the beginning and at the end, each with its standard error; None where it is not known."""

    first: float | None = None
    last: float | None = None
    first_error: float | None = None
    last_error: float | None = None
    error: float | None = None
    """Of the difference."""

    @property
    def difference(self) -> float | None:
        return None if self.first is None or self.last is None else self.last - self.first


@dataclass(frozen=True)
class HeldOut:
    """The first and the last evaluation of each peer, as means over the peers.

    Args:
        first_round, last_round: number of finished rounds at the first and at the last evaluation; the first is 0
            where it was before any update.
        questions: number of questions that were scored.
        total: over all environments.
        environments: by environment; empty where there is only one.
        stages: by stage; empty where there is only one.
        samples: rollouts a question of the sampled pass; 0 without one.
        sampled: avg@k of the sampled pass, over all environments.
        pass_at: k → pass@k of the sampled pass, or else of the first pass if that has several rollouts a question.
        roles: by role, over the peers that had no other; empty where the game has fewer than two. A peer plays an
            evaluation alone, so this compares what the policies of the roles have learned, not how they play the roles.
    """

    first_round: int
    last_round: int
    questions: int
    total: Change
    environments: Mapping[str, Change]
    stages: Sequence[Change]
    samples: int
    sampled: Change | None
    pass_at: Mapping[str, Change]
    roles: Mapping[str, Change] = field(default_factory=dict)


def evaluations_of(lines: Iterable[Line]) -> dict[int, Evaluated]:
    """Return a peer's evaluations by the number of rounds that were finished before each, in order; those of weights
    that were lost in a crash are left out.
    """
    found: dict[int, Evaluated] = {}
    for line in lines:
        if is_lost(line):
            continue
        for key, after in (("first_evaluation", 0), ("evaluation", 1)):
            evaluation = line.get(key)
            if isinstance(evaluation, Mapping) and number(evaluation, "average", ALL) is not None:
                found.setdefault(int(line["round"]) + after, evaluation)
    return found


def held_out_of(peers: Sequence[PeerProgress]) -> HeldOut | None:
    """Return the held-out results; None where no peer was evaluated."""
    found = _held_out(peers)
    by_role: dict[str, list[PeerProgress]] = {}
    for peer in peers:
        roles = {str(line.get("role") or "") for line in peer.rounds.values()}
        if len(roles) == 1 and (role := roles.pop()):
            by_role.setdefault(role, []).append(peer)
    results = {role: each for role in sorted(by_role) if (each := _held_out(by_role[role])) is not None}
    if found is None or len(results) < 2:
        return found
    return replace(found, roles={role: each.total for role, each in results.items()})


def _held_out(peers: Sequence[PeerProgress]) -> HeldOut | None:
    by_peer = [found for peer in peers if (found := evaluations_of(peer.rounds.values()))]
    if not by_peer:
        return None
    pairs = [(found[min(found)], found[max(found)]) for found in by_peer]
    # A peer with a single evaluation has no change; what it has is the end.
    changed = [pair for found, pair in zip(by_peer, pairs, strict=True) if len(found) > 1]
    names = sorted({name for pair in pairs for each in pair for name in numbers(each, "average")} - {ALL})
    stages = max(len(each.get("stages") or ()) for pair in pairs for each in pair)
    last = [pair[1] for pair in pairs]
    samples = int(max((number(each, "sampled", "samples") or 0) for each in last))
    several = max((number(each, "samples") or 1) for each in last) > 1
    path = ("sampled", "pass_at") if samples else ("pass_at",)
    ks = sorted({k for each in last for k in numbers(each, *path)} if samples or several else (), key=int)
    return HeldOut(
        first_round=max(min(found) for found in by_peer),
        last_round=max(max(found) for found in by_peer),
        questions=max(len(each.get("scores") or ()) for each in last),
        total=_total(changed, last),
        environments={name: _change(changed, last, "average", name) for name in names} if len(names) > 1 else {},
        stages=[_stage(changed, last, stage) for stage in range(stages)] if stages > 1 else (),
        samples=samples,
        sampled=_change(changed, last, "sampled", "average", ALL) if samples else None,
        pass_at={k: _change(changed, last, *path, k) for k in ks},
    )


def rewards_at_ends(peers: Sequence[PeerProgress], pick: Callable[[Line], float | None], window: int) -> Change:
    """Return the mean of a number over peers and over the first and the last `window` rounds that have it."""
    by_round: dict[int, list[float]] = {}
    for peer in peers:
        for played, line in peer.rounds.items():
            if (value := pick(line)) is not None:
                by_round.setdefault(played, []).append(value)
    values = [fmean(by_round[played]) for played in sorted(by_round)]
    return Change(fmean(values[:window]), fmean(values[-window:])) if values else Change()


def stage_reward(line: Line, stage: int) -> float | None:
    """Return the mean reward of one stage; None where nothing was scored in it."""
    rewards = line.get("stage_rewards")
    if not isinstance(rewards, list) or stage >= len(rewards):
        return None
    return number({"reward": rewards[stage]}, "reward")


Pair = tuple[Evaluated, Evaluated]


def _total(changed: Sequence[Pair], last: Sequence[Evaluated]) -> Change:
    """Return the change over all environments, with errors over questions where the lines have their scores."""
    change = _change(changed, last, "average", ALL)
    differences = [
        {question: after[question] - before[question] for question in after if question in before}
        for before, after in (tuple(map(_scores, pair)) for pair in changed)
    ]
    return Change(
        first=change.first,
        last=change.last,
        first_error=_over_questions([_scores(before) for before, _ in changed], change.first_error),
        last_error=_over_questions([_scores(each) for each in last], change.last_error),
        error=_over_questions(differences, change.error),
    )


def _change(changed: Sequence[Pair], last: Sequence[Evaluated], *path: str) -> Change:
    error_path = tuple("errors" if step == "average" else step for step in path) if "average" in path else ("none",)
    first_error = mean(number(before, *error_path) for before, _ in changed)
    last_error = mean(number(each, *error_path) for each in last)
    both = None if first_error is None or last_error is None else math.hypot(first_error, last_error)
    return Change(
        first=mean(number(before, *path) for before, _ in changed),
        last=mean(number(each, *path) for each in last),
        first_error=first_error,
        last_error=last_error,
        error=both,
    )


def _stage(changed: Sequence[Pair], last: Sequence[Evaluated], stage: int) -> Change:
    def at(each: Evaluated) -> float | None:
        return stage_reward({"stage_rewards": each.get("stages")}, stage)

    return Change(mean(at(before) for before, _ in changed), mean(map(at, last)))


def _scores(each: Evaluated) -> dict[str, float]:
    return numbers(each, "scores")


def _over_questions(scores: Sequence[Mapping[str, float]], otherwise: float | None) -> float | None:
    """Return the standard error over questions of the mean over peers; `otherwise` with fewer than two questions."""
    by_question: dict[str, list[float]] = {}
    for each in scores:
        for question, value in each.items():
            by_question.setdefault(question, []).append(value)
    found = finite(standard_error([fmean(values) for values in by_question.values()]))
    return otherwise if found is None else found
