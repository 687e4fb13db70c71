"""The parts of a game that an author may replace: DataManager, RewardManager, Trainer.

Each is a class with a pydantic `Config` (the manifest's `with:` block) and a constructor `(config, context)`. Nothing
is assumed of the data (text, images, boards, transcripts), of the policy (a language model, a CNN, a table) or of the
update rule. Invariant: `round_data`, `resolve` and `stage_inputs` are deterministic in their arguments and the
configuration, so that any peer can regenerate what another one asked, and a resumed peer repeats what it had done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from swarmgame.config import Config
from swarmgame.game.ranks import OneRank, Ranks
from swarmgame.game.state import GameState, Group, PeerId, Prompt, Question, QuestionRef, Rewards, Round


@dataclass(frozen=True)
class ComponentContext:
    """What the runtime hands to every part.

    Args:
        seed: the game's.
        stages: how many a round has.
        peer: our id.
        model_uri, model_revision: from the manifest; empty where the game names no model.
        model_token: path of a file with the hub's token, or None; never the token itself.
        device: a torch device string, `cpu` or `cuda:0`.
        cache: a folder that outlives the run, for models and datasets.
        ranks: the other processes of this peer.
        demonstrations: worked examples for a warm start; empty where the data has none. Set for trainers, by the
            runtime.
        directory: a folder of this peer's own, for logs and for what it hands to other processes; None outside of a
            run.
        sampler_url: a generation server that was put beside this peer; empty where there is none.
        sampler_weights: a folder that this server sees under the same path.
    """

    seed: int = 0
    stages: int = 1
    peer: PeerId = ""
    model_uri: str = ""
    model_revision: str = ""
    model_token: Path | None = None
    device: str = "cpu"
    cache: Path = field(default_factory=lambda: Path("~/.cache/swarmgame").expanduser())
    ranks: Ranks = field(default_factory=OneRank)
    demonstrations: Demonstrations | None = None
    directory: Path | None = None
    sampler_url: str = ""
    sampler_weights: Path | None = None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and a completion that a good policy might give: what a warm start imitates."""

    prompt: Prompt
    completion: str


class Demonstrations(ABC):
    """Worked examples, as many as one asks for; never one that evaluation or a round will ask."""

    @abstractmethod
    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """`count` examples, deterministic in the seed."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever the examples would: part of the name under which a warm-started model is cached."""


class Component:
    """What all parts have: a configuration, a setting, and an end."""

    Config: ClassVar[type[BaseModel]] = Config

    def __init__(self, config: Any, context: ComponentContext) -> None:
        self.config = config
        self.context = context

    def close(self) -> None:
        """Gives back processes, files, memory. Called once, also after an error."""


class DataManager(Component, ABC):
    """Where questions come from, and what each stage asks."""

    knows_next_round: bool = True
    """False where a round's questions always depend on how the round before ended: nothing is then generated ahead. A
    curriculum that moves now and then may leave it: what was generated for other questions is thrown away."""

    @abstractmethod
    def round_data(self, round: Round) -> Sequence[Question]:
        """The items of a round. Use `round.seed` to ask every peer the same, `round.peer_seed` to ask each its own."""

    @abstractmethod
    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """What stage `stage` asks, given all that was said before: one prompt an item at most, usually for
        `state.question_ids`.

        The loop also calls it for stage 0 with the questions of another peer in place of our own, to see whether that
        peer asked them as we would have."""

    @abstractmethod
    def resolve(self, reference: QuestionRef) -> Question | None:
        """Makes another peer's item again. None when the reference is not of this game (unknown environment, other
        configuration).
        """

    def resolve_all(self, references: Sequence[QuestionRef]) -> Sequence[Question | None]:
        """`resolve` for many at once, in order; override it where asking once is cheaper than asking often."""
        return [self.resolve(reference) for reference in references]

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Held-out items, never asked in a round; empty where the game has none."""
        return ()

    def round_finished(self, state: GameState, rewards: Rewards) -> None:
        """Called once a round, after training: where a curriculum moves."""

    def state_dict(self) -> Mapping[str, Any]:
        """What resume needs; JSON-like. Most data managers derive everything from the round and need nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state to load")


class RewardManager(Component, ABC):
    """How good each rollout was. Never asks a peer: what others claim about themselves is not believed."""

    @abstractmethod
    def rewards(self, state: GameState) -> Rewards:
        """A reward per rollout for every group of `state.groups()` whose item is in `state.items`."""

    full_reward: float = 1.0
    """A rollout with at least this reward has passed (pass@k of the evaluation)."""

    def counters(self) -> Mapping[str, int]:
        """Running totals worth a metric: sandbox breaches, scorer exceptions."""
        return {}


class Trainer(Component, ABC):
    """A policy: says things (`generate`) and learns (`train`)."""

    @property
    @abstractmethod
    def policy_version(self) -> int:
        """How many updates this policy has seen."""

    @property
    @abstractmethod
    def tokenizer(self) -> str:
        """Hash of the tokenizer or action space: ids may be exchanged between peers only where it is equal."""

    @property
    def sampling_version(self) -> int:
        """Version of the policy that sampled what `generate` returned last. Below `policy_version` only where a trainer
        generates ahead.
        """
        return self.policy_version

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        """One group a prompt, in order. The prompt inside each group is the given one with `token_ids` filled in. Seed
        whatever is random from `round.peer_seed`, `round.number`, `round.stage` and `round.evaluation`, so that a
        resumed round repeats itself."""

    generates_ahead: bool = False
    """Whether `generate_ahead` does anything; the loop makes the next round's questions early only where it does."""

    def generate_ahead(self, prompts: Sequence[Prompt], round: Round) -> None:
        """Begin to sample what `generate` will be asked for the first stage of a later round, and return at once. The
        round may ask other prompts in the end, or never come: `generate` must then return what it would have returned
        without this call."""

    @abstractmethod
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        """Learns from a whole round: per stage, per round or not at all. Own groups are `state.own_groups()`, those
        that the sharing policy chose from others `state.external`. Returns metrics (finite floats, or NaN for "not
        defined this time")."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """What an exact resume needs: nested dictionaries and lists of tensors and JSON-like values, random states
        included.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """The words of these ids, exactly as `generate` writes them into `Rollout.text`; None where ids have no words,
        or for ids that are not of the vocabulary. With it the loop refuses a rollout whose text says one thing and
        whose ids another."""
        return None

    def export(self, folder: Path) -> None:
        """Writes the policy in the form its users load it from (for a language model: `save_pretrained`)."""
