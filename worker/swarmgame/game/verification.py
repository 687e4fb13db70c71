"""Verification of what other peers sent.

The communication backend has checked form, signature and hash. Here the content is compared with what this peer makes
itself: every question is regenerated from its reference, the prompt must be the one that this peer makes as its author,
the ids must be known and give the text, the rules of the game must allow it, and it must be no copy. A group that fails
is dropped and counted under its reason; bad content raises nothing. Invariant: a group that passes carries our own
prompt (payload included, none of the sender's ids), so the sender influences reward and training only through the
sampled completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swarmgame.game.author_prompts import PROMPT_FAILED, AuthorPrompts
from swarmgame.game.author_view import role_of_author, state_of_author
from swarmgame.game.components import DataManager, Trainer
from swarmgame.game.copies import SeenRollouts
from swarmgame.game.environment import Episodes
from swarmgame.game.environment_data import EnvironmentData
from swarmgame.game.move_check import OTHER_POSITION, PAST_STAGE, MoveCheck
from swarmgame.game.protocol import Exchange
from swarmgame.game.roles import RoleManager
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    PeerId,
    Prompt,
    Question,
    Rollout,
    Round,
)
from swarmgame.game.transcripts import MISMATCH, NOT_PLAYED, played

_HONEST = frozenset({"words-only", "copied", "other-role", NOT_PLAYED, PROMPT_FAILED, OTHER_POSITION, PAST_STAGE})
"""Reasons that groups of an honest peer have, too. A copy may be the original, which reached us later."""


@dataclass(frozen=True)
class VerifiedRollouts:
    """The result of a verification.

    Args:
        state: with the contributions of other peers, without the groups that were dropped.
        trainable: the groups that may be trained on.
        outcomes: number of groups that were dropped or restricted, by reason.
        reasons: for each contribution, in the order given: question id → reason, for those groups.
        invalid: (round, stage, peer) of the contributions with groups that were dropped.
    """

    state: GameState
    trainable: frozenset[GroupKey]
    outcomes: Mapping[str, int]
    reasons: tuple[Mapping[str, str], ...] = ()
    invalid: frozenset[tuple[int, int, PeerId]] = frozenset()


@dataclass
class _Checked:
    """What was found about one contribution: the groups that pass, and for the others the reason.

    Args:
        knows_members: whether we know with which members its author made it, on which its prompts may depend.
    """

    contribution: Contribution
    knows_members: bool = True
    groups: list[Group] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    trainable: set[str] = field(default_factory=set)

    def refuse(self, groups: Iterable[Group], reason: str) -> None:
        refused = {group.question_id for group in groups}
        self.reasons.update(dict.fromkeys(sorted(refused), reason))
        self.trainable -= refused
        self.groups = [group for group in self.groups if group.question_id not in refused]

    def refuse_each(self, reasons: Mapping[str, str]) -> None:
        """Refuse groups, each for its own reason, by question."""
        for reason in set(reasons.values()):
            self.refuse([group for group in self.groups if reasons.get(group.question_id) == reason], reason)

    def key(self, question_id: str) -> GroupKey:
        return GroupKey(*self.place, question_id)

    @property
    def place(self) -> tuple[int, int, PeerId]:
        return self.contribution.round, self.contribution.stage, self.contribution.peer

    @property
    def is_invalid(self) -> bool:
        """Whether a group is one that no honest peer sends."""
        honest = _HONEST if self.knows_members else _HONEST | {"prompt-mismatch"}
        return any(reason not in honest for reason in self.reasons.values())

    @property
    def verified(self) -> Contribution:
        references = {group.question_id: self.contribution.references[group.question_id] for group in self.groups}
        return replace(self.contribution, groups=tuple(self.groups), references=references)


class RolloutVerifier:
    """Checks the content of contributions against our own data and tokenizer, and against what was seen before.

    Args:
        seen: rollouts of earlier contributions; our own are added here.
        episodes: of the game; None where a rollout is one turn.
        seed: of the game.
        roles: of the game, for the roles of late contributions; see `state_of_author`.
    """

    def __init__(
        self,
        data: DataManager,
        trainer: Trainer,
        exchange: Exchange,
        seen: SeenRollouts,
        episodes: Episodes | None = None,
        *,
        seed: int = 0,
        roles: RoleManager | None = None,
    ) -> None:
        self._data = data
        self._trainer = trainer
        self._exchange = exchange
        self._seen = seen
        self._episodes = episodes
        self._seed = seed
        self._roles = roles
        self._prompts = AuthorPrompts(data)
        self._moves = MoveCheck(data)
        seen.filtered = trainer.filters_sampling

    def verify(
        self,
        state: GameState,
        contributions: Iterable[Contribution],
        prompts: Mapping[str, Prompt],
        arrivals: Sequence[int] = (),
    ) -> VerifiedRollouts:
        """Verify contributions, and add what passes to a state.

        Args:
            state: with our own contribution of the stage.
            contributions: of other peers.
            prompts: our own of this stage, by question.
            arrivals: see `Collected`. Of equal rollouts those that arrived first count.
        """
        contributions = tuple(contributions)
        self._seen.move_to(state.round.number)
        if self._episodes is not None:
            self._episodes.begin_round(state.round.number)
        if state.stages and (own := state.own(len(state.stages) - 1)) is not None:
            self._seen.add_own(own)
        resolved = self._resolved(state, contributions)
        checked: list[_Checked] = []
        placed: list[_Checked] = []
        places = state  # with all contributions that have a place, whatever their groups
        for index, contribution in enumerate(contributions):
            waiting = len({other.peer for other in contributions[index:]})
            questions, unbegun = self._begun(self._questions(resolved, contribution), contribution.peer, waiting)
            state = state.with_questions(questions.values())
            as_author = state_of_author(state, contribution, questions.values(), self._seed, self._roles)
            expected = self._prompts.expected(as_author, contribution, prompts)
            each = self._checked(state.round, contribution, questions, expected, unbegun)
            each.refuse_each(self._moves.refused(as_author, contribution.peer, each.groups, each.trainable))
            self._play(each, questions, waiting=waiting)
            try:
                places = places.with_contribution(contribution)
            except ValueError:
                each.refuse(each.groups, "duplicate")
            else:
                placed.append(each)
            checked.append(each)
        for at in sorted(range(len(checked)), key=lambda at: arrivals[at] if arrivals else at):
            self._drop_copies(checked[at])
        for each in placed:
            state = state.with_contribution(each.verified)
        return VerifiedRollouts(
            state,
            trainable=frozenset(each.key(question_id) for each in checked for question_id in each.trainable),
            outcomes=Counter(reason for each in checked for reason in each.reasons.values()),
            reasons=tuple(each.reasons for each in checked),
            invalid=frozenset(each.place for each in checked if each.is_invalid),
        )

    def _checked(
        self,
        round: Round,
        contribution: Contribution,
        questions: Mapping[str, Question],
        expected: Mapping[str, Prompt] | None,
        unbegun: Mapping[str, str],
    ) -> _Checked:
        """Compare the groups of a contribution with what we make ourselves.

        Args:
            expected: the prompts that the author should have made; None where the game's code failed.
        """
        role = role_of_author(round, contribution, self._roles)
        is_late = contribution.round != round.number
        is_stranger = contribution.peer not in round.roles and any(round.roles.values())
        found = _Checked(replace(contribution, role=role), knows_members=not (is_late or is_stranger))
        for group in contribution.groups:
            ours = expected.get(group.question_id) if expected is not None else None
            if group.question_id not in questions:
                found.reasons[group.question_id] = unbegun.get(group.question_id, "unresolvable")
            elif expected is None:
                found.reasons[group.question_id] = PROMPT_FAILED
            elif ours is not None and ours.messages == group.prompt.messages:
                group = replace(group, prompt=replace(ours, token_ids=()))
                if fault := self._fault(contribution, group):
                    found.reasons[group.question_id] = fault
                else:
                    found.groups.append(group)
                    found.trainable.add(group.question_id)
            elif contribution.stage == 0 or self._exchange is Exchange.PULL:
                # In stage 0 the prompt follows from the question, so a different one is forged (or of another game).
                found.reasons[group.question_id] = "prompt-mismatch" if contribution.role == role else "other-role"
            elif fault := self._fault(contribution, group):
                found.reasons[group.question_id] = fault
            else:
                # A later stage's prompt depends on which contributions its author had collected, which may be others
                # than ours. The text is used by the next stage, but not for training.
                found.groups.append(group)
                found.reasons[group.question_id] = "words-only"
        return found

    def _play(self, checked: _Checked, questions: Mapping[str, Question], *, waiting: int) -> None:
        """Play the episodes of a contribution again, refuse the groups that differ, and take our own rewards."""
        if self._episodes is None:
            played_groups = [group for group in checked.groups if not all(map(_is_one_turn, group.rollouts))]
            checked.refuse(played_groups, MISMATCH)
            return
        known = checked.contribution.tokenizer == self._trainer.tokenizer
        ids = self._trainer.observation_ids if known else lambda observation, last: None
        author = checked.contribution.peer
        kept, faults = played(self._episodes, author, checked.groups, questions, ids, waiting=waiting)
        for fault in (MISMATCH, NOT_PLAYED):
            checked.refuse([group for group in checked.groups if faults.get(group.question_id) == fault], fault)
        checked.groups = kept

    def _drop_copies(self, checked: _Checked) -> None:
        """Refuse the groups whose rollouts were seen before, and remember the others."""
        copied = [group for group in checked.groups if self._seen.is_copy(checked.contribution, group)]
        checked.refuse(copied, "copied")
        self._seen.add(checked.contribution, checked.groups)

    def _resolved(self, state: GameState, contributions: Sequence[Contribution]) -> Mapping[str, Question]:
        """Regenerate every question that the contributions refer to, in one call."""
        # The id is a hash of the reference, so a reference under a different id is forged.
        named = {
            group.question_id: contribution.references[group.question_id]
            for contribution in contributions
            for group in contribution.groups
            if contribution.references[group.question_id].id == group.question_id
        }
        unknown = {
            question_id: reference for question_id, reference in named.items() if question_id not in state.questions
        }
        made = zip(unknown, self._data.resolve_all(tuple(unknown.values())), strict=True)
        known = {question_id: state.questions[question_id] for question_id in named if question_id in state.questions}
        return known | {question_id: resolved for question_id, resolved in made if resolved is not None}

    def _questions(self, resolved: Mapping[str, Question], contribution: Contribution) -> dict[str, Question]:
        """Return the questions of one contribution that could be regenerated."""
        return {
            group.question_id: resolved[group.question_id]
            for group in contribution.groups
            if group.question_id in resolved and contribution.references[group.question_id].id == group.question_id
        }

    def _begun(
        self, questions: Mapping[str, Question], author: PeerId, waiting: int
    ) -> tuple[Mapping[str, Question], Mapping[str, str]]:
        """Return the questions whose episodes can begin, and for the others why not."""
        if not isinstance(self._data, EnvironmentData):
            return questions, {}
        unbegun = self._data.unbegun(tuple(questions.values()), author, waiting)
        return {each.id: each for each in questions.values() if each.id not in unbegun}, unbegun

    def _fault(self, contribution: Contribution, group: Group) -> str:
        """Return why the rollouts of a group cannot be used; empty if they can."""
        if contribution.tokenizer == self._trainer.tokenizer:
            if not all(self._trainer.knows(rollout.token_ids) for rollout in group.rollouts):
                return "unknown-ids"
            turns = [turn for rollout in group.rollouts for turn in rollout.turn_ids]
            decoded = (self._trainer.decode(token_ids) for token_ids, _ in turns)
            if not all(text is None or text == sent for text, (_, sent) in zip(decoded, turns, strict=True)):
                return "text-mismatch"
        return ""


def _is_one_turn(rollout: Rollout) -> bool:
    """Return whether a rollout is one of a game without an environment."""
    return not rollout.segments and rollout.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
