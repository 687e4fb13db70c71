"""Demonstrations: worked examples, with which a builtin model is trained before the game."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from swarmgame.game.state import Prompt


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and a good completion: training data of a warm start."""

    prompt: Prompt
    completion: str


class Demonstrations(ABC):
    """A source of worked examples. It never gives a question that a round or an evaluation uses."""

    @abstractmethod
    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return `count` examples, deterministic in the seed."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that changes whenever the examples do; part of the cache key of a warm-started model."""
