"""Listening: from what another peer sent to what may be used of it.

The communication backend has checked form, signature and hash; here the content is held against what we can make
ourselves: every question is regenerated from its reference, the prompt must be the one that we would have asked, and
the text must be what the ids say. Invariant: a group that passes carries our own prompt (payload included, no ids of
the sender's), so neither reward nor training can be steered by anything but the sampled completion. A group that fails
is dropped and counted under its reason; nothing here raises on bad content.
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
    """The state with the others' words in it, which of their groups may be trained on, and why some were dropped."""

    state: GameState
    trainable: frozenset[GroupKey]
    outcomes: Mapping[str, int]


class RolloutVerifier:
    """Checks the content of contributions against our own data and tokenizer."""

    def __init__(self, data: DataManager, trainer: Trainer, exchange: Exchange) -> None:
        self._data = data
        self._trainer = trainer
        self._exchange = exchange

    def verify(
        self, state: GameState, contributions: Iterable[Contribution], prompts: Mapping[str, Prompt]
    ) -> VerifiedRollouts:
        """Adds contributions to a state.

        Args:
            state: with our own contribution of the stage.
            contributions: of others.
            prompts: what we asked in this stage, by item.
        """
        outcomes: Counter[str] = Counter()
        trainable: set[GroupKey] = set()
        contributions = tuple(contributions)
        resolved = self._resolved(state, contributions)
        for contribution in contributions:
            questions = self._questions(resolved, contribution, outcomes)
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
                    # In stage 0 the prompt follows from the question alone, so another one is a lie (or another game).
                    outcomes["prompt-mismatch"] += 1
                    continue
                else:
                    # A later stage's prompt depends on who was heard. Their words are of use to the next stage, not to
                    # training.
                    outcomes["words-only"] += 1
                if self._text_agrees(contribution, group):
                    groups.append(group)
                else:
                    outcomes["text-mismatch"] += 1
                    trainable.discard(
                        GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id)
                    )
            references = {group.question_id: contribution.references[group.question_id] for group in groups}
            try:
                state = state.with_contribution(replace(contribution, groups=tuple(groups), references=references))
            except ValueError:
                outcomes["duplicate"] += 1
                trainable = {
                    key for key in trainable if key[:3] != (contribution.round, contribution.stage, contribution.peer)
                }
        return VerifiedRollouts(state, frozenset(trainable), outcomes)

    def _resolved(self, state: GameState, contributions: Sequence[Contribution]) -> Mapping[str, Question]:
        """Every question spoken of, made again by ourselves; asked of the data in one go."""
        # Two references with one id cannot be: the id is a hash of the reference. One filed under another id is a lie.
        spoken = {
            group.question_id: contribution.references[group.question_id]
            for contribution in contributions
            for group in contribution.groups
            if contribution.references[group.question_id].id == group.question_id
        }
        unknown = {
            question_id: reference for question_id, reference in spoken.items() if question_id not in state.questions
        }
        made = zip(unknown, self._data.resolve_all(tuple(unknown.values())), strict=True)
        known = {question_id: state.questions[question_id] for question_id in spoken if question_id in state.questions}
        return known | {question_id: resolved for question_id, resolved in made if resolved is not None}

    def _questions(
        self, resolved: Mapping[str, Question], contribution: Contribution, outcomes: Counter[str]
    ) -> dict[str, Question]:
        """The questions of one contribution, as far as we could make them again."""
        questions: dict[str, Question] = {}
        for group in contribution.groups:
            if group.question_id in resolved and contribution.references[group.question_id].id == group.question_id:
                questions[group.question_id] = resolved[group.question_id]
            else:
                outcomes["unresolvable"] += 1
        return questions

    def _expected(
        self,
        state: GameState,
        contribution: Contribution,
        questions: Mapping[str, Question],
        prompts: Mapping[str, Prompt],
    ) -> Mapping[str, Prompt]:
        """What we would have asked about these items in that stage, as far as we can know it."""
        if contribution.stage == 0:
            alone = GameState.begin(state.round, questions.values())
            return {prompt.question_id: prompt for prompt in self._data.stage_inputs(alone, 0)}
        return prompts if contribution.round == state.round.number else {}

    def _text_agrees(self, contribution: Contribution, group: Group) -> bool:
        if contribution.tokenizer != self._trainer.tokenizer:
            return True
        decoded = (self._trainer.decode(rollout.token_ids) for rollout in group.rollouts)
        return all(text is None or text == rollout.text for text, rollout in zip(decoded, group.rollouts, strict=True))
