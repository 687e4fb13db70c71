"""Multistage math: answer, vote on the swarm's answers, answer again with the votes.

GenRL's example as a game of about a hundred lines. Stage 0 asks the question; stage 1 shows the swarm's answers, the
most common first, and asks for the letter of the best one; stage 2 shows the answers with the most votes and asks the
question again. All peers have the same questions (`shared: true`), so that they can use each other's answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from swarmgame import Demonstration, GameState, GroupKey, Message, Prompt, RewardManager
from swarmgame.data.reasoning_gym import ReasoningGymData

LETTERS = "ABCD"
LONGEST_ANSWER = 6


def short(question: str) -> str:
    """Shorten `Solve the following multiplication: 3 * 4. …` to `3*4=`, for a tiny model that reads characters."""
    terms = max(re.findall(r"\d[-+*/()\d\s]*\d", question), key=len, default="")
    return re.sub(r"\s", "", terms) + "=" if terms else question


def answers(state: GameState, question_id: str) -> list[str]:
    """Return the swarm's different answers of stage 0, the most common first, at most four."""
    counts = Counter(
        rollout.text.strip()[:LONGEST_ANSWER]
        for _, group in state.groups_for(0, question_id)
        for rollout in group.rollouts
    )
    counts.pop("", None)
    return [text for text, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: len(LETTERS)]]


def votes(state: GameState, question_id: str, choices: Sequence[str]) -> Counter[str]:
    """Return how often each answer was chosen in stage 1."""
    letters = [rollout.text.strip() for _, group in state.groups_for(1, question_id) for rollout in group.rollouts]
    return Counter({choice: letters.count(letter) for letter, choice in zip(LETTERS, choices, strict=False)})


def voting_prompt(question: str, choices: Sequence[str]) -> str:
    """Return the prompt of stage 1: the answers, each with a letter."""
    return "".join(
        [short(question), *(f"\n{letter}{choice}" for letter, choice in zip(LETTERS, choices, strict=False)), "\nbest:"]
    )


def final_prompt(question: str, choices: Sequence[str], votes: Mapping[str, int]) -> str:
    """Return the prompt of stage 2: the two answers with the most votes."""
    ranked = sorted(choices, key=lambda choice: -votes[choice])
    return "".join([short(question), *(f"\n{choice}" for choice in ranked[:2]), "\nso:"])


class MultistageMath(ReasoningGymData):
    """Questions of reasoning-gym in three stages."""

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        questions = [state.questions[question_id] for question_id in state.question_ids]
        if stage == 0:
            return [Prompt.from_question(question, short(question.text)) for question in questions]
        answered = [(question, answers(state, question.id)) for question in questions]
        if stage == 1:
            return [
                Prompt.from_question(question, voting_prompt(question.text, choices))
                for question, choices in answered
                if choices
            ]
        return [
            Prompt.from_question(question, final_prompt(question.text, choices, votes(state, question.id, choices)))
            for question, choices in answered
            if choices
        ]

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return prompts of all three stages with correct completions. The right answer is often, but not always, the
        most common one.
        """
        random = Random(seed)
        return [self._example(example, random) for example in super().demonstrate(seed, count)]

    def _example(self, example: Demonstration, random: Random) -> Demonstration:
        question, right = example.prompt.text, example.completion
        wrong = sorted({str(random.randint(1, 9) * random.randint(1, 9)) for _ in range(3)} - {right})
        choices = [right, *wrong]
        if random.random() < 0.4:
            random.shuffle(choices)
        match random.choice((0, 0, 0, 1, 2)):
            case 0:
                text, completion = short(question), right
            case 1:
                text, completion = voting_prompt(question, choices), LETTERS[choices.index(right)]
            case _:
                text, completion = (
                    final_prompt(question, choices, {choice: -rank for rank, choice in enumerate(choices)}),
                    right,
                )
        return Demonstration(replace(example.prompt, messages=(Message("user", text),)), completion)


class MultistageRewards(RewardManager):
    """Stages 0 and 2: 1 for the right answer. Stage 1: 1 for the letter of the right answer, 0.2 for another letter
    that was offered.
    """

    def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
        return {
            key: [self._reward(state, key, rollout.text.strip()) for rollout in group.rollouts]
            for key, group in state.groups()
        }

    def _reward(self, state: GameState, key: GroupKey, text: str) -> float:
        right = state.questions[key.question_id].answer
        if key.stage != 1:
            return float(text == right)
        choices = dict(zip(LETTERS, answers(state, key.question_id), strict=False))
        return 0.0 if text not in choices else 1.0 if choices[text] == right else 0.2
