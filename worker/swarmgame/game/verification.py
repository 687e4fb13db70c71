"""Verification of what other peers sent.

The communication backend has checked form, signature and hash. Here the content is compared with what this peer makes
itself: every question is regenerated from its reference, the prompt must be the one that this peer would have used,
and the text must match the ids. A group that fails is dropped and counted under its reason; bad content raises
nothing. Invariant: a group that passes carries our own prompt (payload included, none of the sender's ids), so the
sender influences reward and training only through the sampled completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from swarmgame.game.components import DataManager, Trainer
from swarmgame.game.protocol import Exchange
from swarmgame.game.state import Contribution, GameState, Group, GroupKey, Prompt, Question


@dataclass(frozen=True)
class VerifiedRollouts:
    """The result of a verification.

    Args:
        state: with the contributions of other peers, without the groups that were dropped.
        trainable: the groups that may be trained on.
        outcomes: number of groups that were dropped or restricted, by reason.
        reasons: for each contribution, in the order given: question id → reason, for those groups.
    """

    state: GameState
    trainable: frozenset[GroupKey]
    outcomes: Mapping[str, int]
    reasons: tuple[Mapping[str, str], ...] = ()


class RolloutVerifier:
    """Checks the content of contributions against our own data and tokenizer."""

    def __init__(self, data: DataManager, trainer: Trainer, exchange: Exchange) -> None:
        self._data = data
        self._trainer = trainer
        self._exchange = exchange

    def verify(
        self, state: GameState, contributions: Iterable[Contribution], prompts: Mapping[str, Prompt]
    ) -> VerifiedRollouts:
        """Verify contributions, and add what passes to a state.

        Args:
            state: with our own contribution of the stage.
            contributions: of other peers.
            prompts: our own of this stage, by question.
        """
        outcomes: Counter[str] = Counter()
        reasons: list[dict[str, str]] = []
        trainable: set[GroupKey] = set()
        contributions = tuple(contributions)
        resolved = self._resolved(state, contributions)
        for contribution in contributions:
            questions = self._questions(resolved, contribution)
            reason = {g.question_id: "unresolvable" for g in contribution.groups if g.question_id not in questions}
            outcomes["unresolvable"] += len(reason)
            reasons.append(reason)
            state = state.with_questions(questions.values())
            expected = self._expected(state, contribution, questions, prompts)
            groups: list[Group] = []
            for group in contribution.groups:
                if group.question_id not in questions:
                    continue
                ours = expected.get(group.question_id)
                if ours is not None and ours.messages == group.prompt.messages:
                    group = replace(group, prompt=replace(ours, token_ids=()))
                    trainable.add(
                        GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id)
                    )
                elif contribution.stage == 0 or self._exchange is Exchange.PULL:
                    # In stage 0 the prompt follows from the question, so a different one is forged (or of another
                    # game).
                    outcomes["prompt-mismatch"] += 1
                    reason[group.question_id] = "prompt-mismatch"
                    continue
                else:
                    # A later stage's prompt depends on which contributions its author had collected. The text is
                    # used by the next stage, but not for training.
                    outcomes["words-only"] += 1
                    reason[group.question_id] = "words-only"
                if self._text_agrees(contribution, group):
                    groups.append(group)
                else:
                    outcomes["text-mismatch"] += 1
                    reason[group.question_id] = "text-mismatch"
                    trainable.discard(
                        GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id)
                    )
            references = {group.question_id: contribution.references[group.question_id] for group in groups}
            try:
                state = state.with_contribution(replace(contribution, groups=tuple(groups), references=references))
            except ValueError:
                outcomes["duplicate"] += 1
                reason.update({group.question_id: "duplicate" for group in groups})
                trainable = {
                    key for key in trainable if key[:3] != (contribution.round, contribution.stage, contribution.peer)
                }
        return VerifiedRollouts(state, frozenset(trainable), outcomes, tuple(reasons))

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

    def _expected(
        self,
        state: GameState,
        contribution: Contribution,
        questions: Mapping[str, Question],
        prompts: Mapping[str, Prompt],
    ) -> Mapping[str, Prompt]:
        """Return the prompts that this peer would have made for these questions in that stage, where known."""
        if contribution.stage == 0:
            stage_0 = GameState.begin(state.round, questions.values())
            return {prompt.question_id: prompt for prompt in self._data.stage_inputs(stage_0, 0)}
        return prompts if contribution.round == state.round.number else {}

    def _text_agrees(self, contribution: Contribution, group: Group) -> bool:
        if contribution.tokenizer != self._trainer.tokenizer:
            return True
        decoded = (self._trainer.decode(rollout.token_ids) for rollout in group.rollouts)
        return all(text is None or text == rollout.text for text, rollout in zip(decoded, group.rollouts, strict=True))
