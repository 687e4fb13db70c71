"""A trial of what peers make of each other: one round of all stages, with texts that were made up.

Each peer has its own instance of the data. In every stage each makes the prompts of the others again, as a swarm does,
and reads texts that a hostile peer may send. A game in which this fails drops all groups of other peers, or ends by a
text of theirs: both are errors before anything starts. What others drop is only a warning where no peer trains on the
groups of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from swarmgame.errors import BadGame
from swarmgame.game.author_view import state_of_author
from swarmgame.game.components import DataManager
from swarmgame.game.explained import explained
from swarmgame.game.state import Contribution, GameState, Group, Question, Rollout, Round
from swarmgame.user_code import describe, printable

_MADE_UP = (*map(str, range(64)), "yes")
"""Texts for a move: the first that the rules allow is made. Actions of a policy without text are numbers."""
_HOSTILE = ("", "no move at all", "-1", "1000000007", "\x00")


class _Player(NamedTuple):
    """One of the peers: its instance of the data, and its state of the round."""

    data: DataManager
    state: GameState


class _NoMove(Exception):
    """The rules allow none of the texts that are tried; a sentence for a warning."""


def try_turns(
    players: Sequence[tuple[DataManager, Round]], stages: int, seed: int, *, trains_on_others: bool
) -> Sequence[str]:
    """Play a round of all peers.

    Args:
        players: of each its own instance of the data, and the round as it sees it.
        stages: to be played; 1 where a peer collects nothing of others before the end of the round.
        seed: of the game.
        trains_on_others: whether peers train on groups of others. Otherwise they may keep questions for themselves.

    Returns:
        Warnings: what other peers drop, and what was not tried.

    Raises:
        BadGame: one peer cannot make the questions or prompts of another one that trains on them, ends by its texts,
            or has no working `check_move`.
    """
    peers = []
    for data, round in players:
        with explained(type(data), "round_data"):
            peers.append(_Player(data, GameState.begin(round, data.round_data(round))))
    warnings: dict[str, None] = {}  # in order, each once: all peers find the same
    for stage in range(stages):
        try:
            sent = [_contribution(player, stage) for player in peers]
        except _NoMove as missing:
            return [*warnings, str(missing)]
        next_peers = []
        for player, own in zip(peers, sent, strict=True):
            received, others = player._replace(state=player.state.with_contribution(own)), []
            for other in sent:
                if other.peer == own.peer:
                    continue
                received, kept, problem = _received(received, other, seed)
                if problem and trains_on_others:
                    raise BadGame(problem)
                warnings |= dict.fromkeys([problem] if problem else [])
                others.append(kept)
            for other in others:
                received = received._replace(state=received.state.with_contribution(other))
            next_peers.append(received)
            if stage + 1 < stages:
                for other in others:
                    _read_hostile(received, other, seed)
        peers = next_peers
    return list(warnings)


def _contribution(player: _Player, stage: int) -> Contribution:
    """Return what a peer sends in a stage.

    Raises:
        _NoMove: the rules allow none of the texts that are tried.
    """
    data, state = player
    with explained(type(data), f"stage_inputs, stage {stage}"):
        prompts = data.stage_inputs(state, stage)
    groups = [Group(prompt, (_move(data, state, prompt.question_id, stage),)) for prompt in prompts]
    references = {group.question_id: state.questions[group.question_id].reference for group in groups}
    return Contribution(state.peer, state.round.number, stage, tuple(groups), references, role=state.round.role)


def _move(data: DataManager, state: GameState, question_id: str, stage: int) -> Rollout:
    """Return the first text that the rules allow.

    Raises:
        BadGame: they refuse all, and not only by `ValueError`: a mistake in `check_move` looks like this.
        _NoMove: they refuse all.
    """
    refusals = []
    for text in _texts(state.questions[question_id]):
        refusal = _refusal(data, state, question_id, text)
        if refusal is None:
            return _rollout(text)
        refusals.append((text, refusal))
    what = f"{type(data).__name__}.check_move refused all {len(refusals)} texts that were tried in stage {stage}"
    for text, refusal in refusals:
        if not isinstance(refusal, ValueError):
            found = describe(refusal)
            raise BadGame(
                f"{what}, {printable(repr(text), 60)} by {found}. So it would drop the moves of all other peers. Mend "
                f"it, or raise ValueError for a text that breaks the rules{found.below}"
            ) from refusal
    text, refusal = refusals[-1]
    raise _NoMove(
        f"{what}, such as {printable(repr(text), 60)} ({describe(refusal).message}): the turns of the peers were not "
        "tried. Give a question an `answer` that is an allowed move"
    )


def _received(player: _Player, other: Contribution, seed: int) -> tuple[_Player, Contribution, str]:
    """Check another peer's contribution as a swarm does.

    Returns:
        The peer with the other's questions; what it keeps of the contribution; what it drops, as a sentence, or an
        empty text.
    """
    data, state = player
    name = type(data).__name__
    with explained(type(data), "resolve_all"):
        resolved = data.resolve_all(list(other.references.values()))
    found = [question for question in resolved if question is not None]
    problem = ""
    if len(found) < len(other.references):
        problem = (
            f"{name}.resolve does not know a question of its own round_data: other peers drop all groups as "
            "unresolvable. Return the question for each reference that round_data makes; without it peers can only "
            "play for themselves, with spec.game.sharing.exchange Pull and externalGroups 0"
        )
    state = state.with_questions(found)
    as_author = state_of_author(state, other, found, seed)
    with explained(type(data), f"stage_inputs, stage {other.stage}, as another peer"):
        prompts = data.stage_inputs(as_author, other.stage) if as_author is not None else ()
    expected = {prompt.question_id: prompt for prompt in prompts}
    kept = []
    for group in other.groups:
        if group.question_id not in state.questions:
            continue
        ours = expected.get(group.question_id)
        if ours is not None and ours.messages == group.prompt.messages:
            kept.append(group)
            continue
        if other.stage > 0:
            kept.append(group)  # its words are read, see RolloutVerifier
        what = "no prompt" if ours is None else "another prompt"
        problem = problem or (
            f"{name}.stage_inputs makes {what} in stage {other.stage} for the same question when another peer "
            f"makes it to check the author's: other peers drop all groups. A prompt may depend on the question and "
            "on state, where state.round.peer and state.round.role are the author's, but not on what only one peer "
            "has, such as self.context.peer"
        )
    return _Player(data, state), _with_groups(other, kept), problem


def _with_groups(contribution: Contribution, groups: Iterable[Group]) -> Contribution:
    kept = tuple(groups)
    references = {group.question_id: contribution.references[group.question_id] for group in kept}
    return replace(contribution, groups=kept, references=references)


def _read_hostile(player: _Player, other: Contribution, seed: int) -> None:
    """Read the next stage with another peer's texts replaced.

    Args:
        player: with all contributions of the stage.

    Raises:
        BadGame: the author's code fails at one; with the author's lines.
    """
    data, state = player
    before = replace(state, stages=state.stages[:-1])
    as_author = state_of_author(before, other, [state.questions[key] for key in other.references], seed)
    assert as_author is not None, "all peers are in the same round"
    honest = before
    for each in state.contributions(other.stage):
        honest = honest if each.peer == other.peer else honest.with_contribution(each)
    for text in _HOSTILE:
        groups = [
            Group(group.prompt, (_rollout(text),))
            for group in other.groups
            if _refusal(data, as_author, group.question_id, text) is None
        ]
        if not groups:
            continue
        try:
            data.stage_inputs(honest.with_contribution(_with_groups(other, groups)), other.stage + 1)
        except Exception as error:
            found = describe(error)
            if not found.trace:
                raise  # our own code
            raise BadGame(
                f"{type(data).__name__}.stage_inputs failed in stage {other.stage + 1} on a text that another peer may "
                f"send ({printable(repr(text), 60)}): {found}. Raise ValueError for such a text in check_move, which "
                f"drops its group\n{found.trace}"
            ) from error


def _texts(question: Question) -> Iterable[str]:
    return (question.answer, *_MADE_UP) if question.answer else _MADE_UP


def _rollout(text: str) -> Rollout:
    return Rollout(text, (int(text) if text.isdecimal() else 0,), (-1.0,))


def _refusal(data: DataManager, state: GameState, question_id: str, text: str) -> Exception | None:
    """Return by what the rules refuse a text, which may be any error, as in a swarm; None where they allow it."""
    try:
        data.check_move(state, question_id, _rollout(text))
    except Exception as error:  # noqa: BLE001 — a refusal, as in a swarm
        return error
    return None
