"""Environments: components that answer the turns of a policy.

An episode is a function of its question and of the policy's turns so far, and of nothing else. Whoever has the question
and the turns can therefore play it again: a peer checks the transcripts of others so, and trusts no reward but its own.
An author writes a class with state; the runtime makes the class anew for every play, in the sandbox.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from swarmgame.game.components import Component
from swarmgame.game.state import PeerId, Question
from swarmgame.user_code import CodeError


class Step(NamedTuple):
    """What an environment answers to one turn.

    Args:
        observation: what the policy reads before its next turn; may be empty when the episode is over.
        reward: for this turn, a finite number; None: none.
        done: whether the episode is over.
    """

    observation: str = ""
    reward: float | None = None
    done: bool = False


class Episode(ABC):
    """One play of a question. It must not use time, random numbers of the system, files that change, or a network."""

    def first(self) -> str:
        """Return what the policy reads behind the question, before its first turn; empty: nothing."""
        return ""

    @abstractmethod
    def step(self, action: str) -> Step:
        """Answer a turn of the policy.

        Args:
            action: the text of the turn, without special tokens.
        """


class Environment(Component, ABC):
    """Answers a policy's turns for the questions of a game."""

    role: ClassVar[str] = "user"
    """Role of an observation in the chat template: `user`, or `tool` where the template knows it."""

    @abstractmethod
    def start(self, question: Question) -> Episode:
        """Begin an episode; called once for each play."""

    def content_digest(self) -> str:
        """Return a digest of what episodes are made from besides configuration and code, such as a folder of texts.
        Peers of a swarm compare it when they meet.
        """
        return ""


class Tool(Component, ABC):
    """A function that the environment `toolbox` calls for the policy. It keeps nothing from one call to the next."""

    parameters: ClassVar[Mapping[str, str]]
    """Its arguments by name, each with a sentence for the policy. A call in tags gives the first one."""

    @abstractmethod
    def call(self, arguments: Mapping[str, Any]) -> str:
        """Return what the policy reads. A mistake of the policy is a text, too, which says what was wrong.

        Args:
            arguments: one for each parameter; any value of JSON.
        """

    def content_digest(self) -> str:
        """Return a digest of what results are made from besides configuration and code."""
        return ""


@dataclass(frozen=True, slots=True)
class Play:
    """An episode, as our own environment plays it.

    Args:
        steps: one for each turn; fewer where the environment ended it. None where it failed.
        first: what the policy reads before its first turn.
        failure: what failed; None: nothing did.
        is_known: False where the failure is none of the episode itself, such as time that ran out: another machine, or
            the same one later, may play it.
    """

    steps: tuple[Step, ...] = ()
    first: str = ""
    failure: CodeError | None = None
    is_known: bool = True


class Episodes(ABC):
    """The environment of a game, as loop and trainers use it.

    Args:
        max_turns: of the policy in an episode.
        max_observation_tokens: of one observation; a longer one loses its end.
        role: see `Environment`.
    """

    def __init__(self, *, max_turns: int, max_observation_tokens: int, role: str) -> None:
        self.max_turns = max_turns
        self.max_observation_tokens = max_observation_tokens
        self.role = role
        self.questions: dict[str, Question] = {}
        """Those of the round, by id; the loop sets them before the trainer generates."""

    def begin(self, questions: Iterable[Question]) -> None:
        """Take the questions of a round or an evaluation instead of those before."""
        self.questions = {question.id: question for question in questions}

    @abstractmethod
    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        """Play episodes from their beginning.

        Args:
            plays: questions, each with the policy's turns; without any, only the first observation is asked for.
            author: whose turns these are; all plays of a call have one author. Empty: this peer's own. The time for
                another peer's is bounded.
            waiting: authors whose turns are still to be played in this round, this one included; they share the time.
        """

    def counters(self) -> Mapping[str, int]:
        """Return running totals for metrics."""
        return {}

    def take_seconds(self) -> float:
        """Return the wall time of plays since the last call."""
        return 0.0

    @abstractmethod
    def begin_round(self, number: int) -> None:
        """Begin what is bounded in a round anew."""

    @abstractmethod
    def close(self) -> None:
        """Release processes."""
