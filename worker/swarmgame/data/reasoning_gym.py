"""The `reasoning-gym` data: generated questions with checkable answers, which any peer regenerates from a reference.

Every question has a seed of its own, derived by hash, and is item 0 of a dataset with that seed, so no two streams
share questions (reasoning-gym uses `Random(seed + index)`, so adjacent seeds share questions). The two highest bits of
a seed give its purpose: round, evaluation or demonstration. Held-out questions are therefore disjoint from those of
rounds, and a reference to one is refused. All questions are made in the sandbox (see `environments`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from random import Random
from typing import Annotated, Any

from pydantic import Field

from swarmgame.config import Config
from swarmgame.data.curriculum import CurriculumConfig, CurriculumLevel, Level, resolve_levels
from swarmgame.data.template import Template
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext, DataManager
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.state import GameState, Message, Prompt, Question, QuestionRef, Rewards, Round
from swarmgame.sandbox.client import CallResult, Sandbox, SandboxBroken, SharedSandbox
from swarmgame.seeds import SEED_BITS, derive_seed

PATH = "spec.game.data.with"
MAKING_SECONDS = 10.0
"""Most processor time for one question; the slowest known takes one second."""
_ATTEMPTS = 8
_CACHED = 4096
_BATCH = 256
_ENVIRONMENTS = "swarmgame.data.environments"


class AnswerFormat(StrEnum):
    """The format in which the policy answers, and which the reward reads."""

    PLAIN = "plain"
    TAGGED = "tagged"


TAGGED_INSTRUCTION = "Think as long as you like, then give only the final answer within <answer></answer>."


class Purpose(IntEnum):
    """The purpose of a seed: its two highest bits."""

    ROUND = 0
    EVALUATION = 1
    DEMONSTRATION = 2


class EnvironmentConfig(Config):
    """One environment of the mix."""

    name: str
    """Its name: `swarmgame env list` prints all of them."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """How often it is drawn, relative to the others."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Its own configuration, in snake case: see `swarmgame env show NAME`."""
    curriculum: CurriculumConfig | None = None
    """Makes it harder as rewards rise; only where reasoning-gym has a curriculum."""


class ReasoningGymConfig(Config):
    """Which questions are used, how many, and how they are phrased."""

    environments: Annotated[tuple[EnvironmentConfig, ...], Field(min_length=1, max_length=200)]
    """The mix."""
    questions_per_round: Annotated[int, Field(ge=1, le=4096)] = 8
    """Questions of this peer in a round."""
    shared: bool = False
    """Whether all peers get the same questions in a round; otherwise each draws its own."""
    specialties: tuple[tuple[str, ...], ...] = ()
    """Names of environments by rank among the members: the peer of rank r uses only those of entry r modulo the number
    of entries.
    """
    system_prompt: str = ""
    """Put before every question as a system message; for the tagged format, the default explains the tags."""
    prompt_template: str = "{question}"
    """The user's message; `{question}` stands for the question, and `{{NAME}}` is that name in braces."""
    answer_format: AnswerFormat = AnswerFormat.PLAIN
    """`plain`: the complete text is the answer. `tagged`: the text within <answer></answer>."""


class ReasoningGymData(DataManager, Demonstrations):
    """See the module. Use it with the `reasoning-gym` rewards, which read the question's metadata."""

    Config = ReasoningGymConfig
    config: ReasoningGymConfig
    own_options = DataManager.own_options | {"environments"}  # in `content_digest`, without their weights

    def __init__(self, config: ReasoningGymConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self._check()
        self._template = Template(config.prompt_template, ["question"], path=f"{PATH}.promptTemplate")
        self._sandbox: Sandbox | None = SharedSandbox.hold()
        self._cache: OrderedDict[QuestionRef, Question] = OrderedDict()
        try:
            self._levels = [
                resolve_levels(
                    self._sandbox,
                    entry.name,
                    entry.config,
                    entry.curriculum,
                    position,
                    f"{PATH}.environments[{position}]",
                )
                for position, entry in enumerate(config.environments)
            ]
            for level in (level for levels in self._levels for level in levels):
                self._sandbox.prepare(f"{_ENVIRONMENTS}:keep", level.name, level.config)
        except BaseException:
            self.close()
            raise
        self._by_digest = {(level.name, level.digest): level for levels in reversed(self._levels) for level in levels}
        self._curricula = {
            position: CurriculumLevel(entry.curriculum, len(self._levels[position]))
            for position, entry in enumerate(config.environments)
            if entry.curriculum is not None
        }

    # ── questions and prompts
    def round_data(self, round: Round) -> Sequence[Question]:
        base = round.seed if self.config.shared else round.peer_seed
        allowed = self._specialty(round)
        weights = [self.config.environments[position].weight for position in allowed]
        drawn = [
            Random(derive_seed("environment", base, round.number, index)).choices(allowed, weights)[0]
            for index in range(self.config.questions_per_round)
        ]
        levels = [self._levels[position][self._current(position)] for position in drawn]
        return self._make(Purpose.ROUND, levels, ("round", base, round.number))

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """Return the same prompts for every stage; a game of several stages overrides this."""
        return [self.prompt(state.questions[question]) for question in state.question_ids]

    def prompt(self, question: Question) -> Prompt:
        """Return the prompt of a question: the system prompt, and the question in the template."""
        system = self.config.system_prompt or (
            TAGGED_INSTRUCTION if self.config.answer_format == AnswerFormat.TAGGED else ""
        )
        text = self._template.fill({"question": question.text})
        messages = (Message("system", system), Message("user", text)) if system else (Message("user", text),)
        return Prompt(question_id=question.id, messages=messages)

    def resolve(self, reference: QuestionRef) -> Question | None:
        return self.resolve_all([reference])[0]

    def resolve_all(self, references: Sequence[QuestionRef]) -> Sequence[Question | None]:
        """Regenerate all references of this game that are not cached in one call of the sandbox."""
        levels = {reference: level for reference in references if (level := self._level_of(reference)) is not None}
        new = [reference for reference in levels if reference not in self._cache]
        made = zip(
            new,
            self._call([levels[reference] for reference in new], [reference.seed for reference in new]),
            strict=True,
        )
        fresh = {
            reference: self._store(_question(levels[reference], reference.seed, result, self.config.answer_format))
            for reference, result in made
            if not result.breach
        }
        return [
            fresh.get(reference) or self._cache.get(reference) if reference in levels else None
            for reference in references
        ]

    def _level_of(self, reference: QuestionRef) -> Level | None:
        """Return the level that a reference belongs to; None when no round of this game can have it."""
        of_a_round = (
            reference.index == 0 and 0 <= reference.seed < 1 << SEED_BITS and _purpose(reference.seed) == Purpose.ROUND
        )
        return self._by_digest.get((reference.environment, reference.config)) if of_a_round else None

    def content_digest(self) -> str:
        """Return the environments with all their levels, and the version of the library, which is in the digests."""
        return " ".join(sorted({f"{level.name}:{level.digest}" for levels in self._levels for level in levels}))

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return the same questions on every peer: the environments in turn, each at its start level."""
        levels = [self._start(index % len(self._levels)) for index in range(count)]
        return self._make(Purpose.EVALUATION, levels, ("evaluation", self.context.seed))

    def round_finished(self, state: GameState, rewards: Rewards) -> None:
        for key, _ in state.own_groups():
            question, scores = (
                state.questions.get(key.question_id),
                [score for score in rewards.get(key, ()) if score == score],
            )
            if question is None or not scores or state.round.evaluation:
                continue
            position, level = question.metadata.get("position"), question.metadata.get("level")
            if position in self._curricula and self._curricula[position].level == level:
                self._curricula[position].add(sum(scores) / len(scores))

    # ── demonstrations
    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return questions with their stored answers, where the scorer accepts them; fewer than `count` if hardly any
        environment has such answers.
        """
        found: list[Demonstration] = []
        weights = [entry.weight for entry in self.config.environments]
        tried, solved = [0] * len(weights), [0] * len(weights)
        drawn = 0
        while len(found) < count:
            # An environment that stores no accepted answers is left out after a few questions.
            usable = [position for position in range(len(weights)) if solved[position] or tried[position] < _ATTEMPTS]
            if not usable:
                break
            batch = min(max(count - len(found), _ATTEMPTS), _BATCH)
            random = Random(derive_seed("demonstrated environment", seed, drawn))
            levels = [
                self._start(position)
                for position in random.choices(usable, [weights[position] for position in usable], k=batch)
            ]
            seeds = [_seed(Purpose.DEMONSTRATION, seed, drawn + index) for index in range(batch)]
            drawn += batch
            for level, chosen, result in zip(levels, seeds, self._call(levels, seeds, "demonstrate"), strict=True):
                tried[level.position] += 1
                if result.value:
                    solved[level.position] += 1
                    found.append(self._demonstration(_question(level, chosen, result, self.config.answer_format)))
        return found[:count]

    def _demonstration(self, question: Question) -> Demonstration:
        tagged = self.config.answer_format == AnswerFormat.TAGGED
        return Demonstration(
            self.prompt(question), f"<answer>{question.answer}</answer>" if tagged else question.answer
        )

    @property
    def fingerprint(self) -> str:
        shape = [self.config.system_prompt, self.config.prompt_template, self.config.answer_format.value]
        starts = [self._start(position) for position in range(len(self._levels))]
        mix = [f"{level.name} {level.digest} {self.config.environments[level.position].weight}" for level in starts]
        return f"{derive_seed(*shape, *mix):016x}"

    # ── state
    def state_dict(self) -> Mapping[str, Any]:
        return {str(position): curriculum.state_dict() for position, curriculum in self._curricula.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {str(position) for position in self._curricula}:
            raise ValueError(
                f"a state of the curricula {sorted(state)}, but this game has {sorted(map(str, self._curricula))}"
            )
        for position, curriculum in self._curricula.items():
            curriculum.load_state_dict(state[str(position)])

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox = None
            SharedSandbox.release()

    # ── making questions
    def _make(self, purpose: Purpose, levels: Sequence[Level], stream: tuple[str | int, ...]) -> list[Question]:
        """Make one question a level. Some generators fail for rare seeds; every peer then tries the same next seed."""
        questions: dict[int, Question] = {}
        last: CallResult | None = None
        for attempt in range(_ATTEMPTS):
            for index, level in enumerate(levels):
                # A round's questions are made twice where its rollouts are generated ahead.
                made = self._cache.get(
                    QuestionRef(level.name, level.digest, _seed(purpose, *stream, index, attempt), 0)
                )
                same = made is not None and (made.metadata["position"], made.metadata["level"]) == (
                    level.position,
                    level.level,
                )
                if made is not None and same and index not in questions:
                    questions[index] = made
            missing = [index for index in range(len(levels)) if index not in questions]
            seeds = [_seed(purpose, *stream, index, attempt) for index in missing]
            for index, seed, result in zip(
                missing, seeds, self._call([levels[index] for index in missing], seeds), strict=True
            ):
                if not result.breach:
                    question = _question(levels[index], seed, result, self.config.answer_format)
                    questions[index] = question if purpose == Purpose.EVALUATION else self._store(question)
                last = result
            if len(questions) == len(levels):
                return [questions[index] for index in range(len(levels))]
        failing = next(level.name for index, level in enumerate(levels) if index not in questions)
        why = f"the environment {failing} made no question in {_ATTEMPTS} attempts"
        if last is not None and last.error is not None:
            raise BadGame(f"{why}: {last.error}\n{last.error.trace}".rstrip())
        raise SandboxBroken(f"{why} ({last.message if last else ''}); see `swarmgame env check {failing}`")

    def _call(self, levels: Sequence[Level], seeds: Sequence[int], function: str = "make") -> list[CallResult]:
        if self._sandbox is None:
            raise RuntimeError("the data manager is closed")
        calls = [[level.name, level.config, seed] for level, seed in zip(levels, seeds, strict=True)]
        batches = [calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH)]
        return [
            result
            for batch in batches
            for result in self._sandbox.call_untrusted(
                f"{_ENVIRONMENTS}:{function}", batch, deadline=MAKING_SECONDS, together=True
            )
        ]

    def _store(self, question: Question) -> Question:
        self._cache[question.reference] = question
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return question

    # ── which environments and levels
    def _current(self, position: int) -> int:
        curriculum = self._curricula.get(position)
        return curriculum.level if curriculum is not None else 0

    def _start(self, position: int) -> Level:
        curriculum = self.config.environments[position].curriculum
        levels = self._levels[position]
        return levels[min(curriculum.start_level, len(levels) - 1)] if curriculum is not None else levels[0]

    def _specialty(self, round: Round) -> list[int]:
        positions = list(range(len(self.config.environments)))
        if not self.config.specialties or round.peer not in round.members:
            return positions
        names = self.config.specialties[round.members.index(round.peer) % len(self.config.specialties)]
        return [position for position in positions if self.config.environments[position].name in names]

    # ── checking the configuration
    def _check(self) -> None:
        names = {entry.name for entry in self.config.environments}
        for index, group in enumerate(self.config.specialties):
            if not group or not set(group) <= names:
                raise InvalidManifest(
                    f"{PATH}.specialties[{index}]",
                    list(group),
                    f"some of this game's environments: {', '.join(sorted(names))}",
                )
        if self.config.shared and self.config.specialties:
            raise InvalidManifest(
                f"{PATH}.shared", True, "false where peers have specialties: they cannot get the same questions"
            )
        if self.config.shared and any(entry.curriculum for entry in self.config.environments):
            raise InvalidManifest(
                f"{PATH}.shared", True, "false where there is a curriculum: each peer moves through it at its own pace"
            )


def _seed(purpose: Purpose, *parts: str | int) -> int:
    return purpose << (SEED_BITS - 2) | derive_seed("question", *parts) >> 2


def _purpose(seed: int) -> int:
    return seed >> (SEED_BITS - 2)


def _question(level: Level, seed: int, result: CallResult, answer_format: AnswerFormat) -> Question:
    metadata = {
        "environment": level.name,
        "config": level.config,
        "position": level.position,
        "level": level.level,
        "answer_format": answer_format.value,
    }
    return Question(
        QuestionRef(level.name, level.digest, seed, 0),
        str(result.value["question"]),
        str(result.value["answer"]),
        metadata,
    )
