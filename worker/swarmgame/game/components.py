"""The components of a game that an author may replace: DataManager, RewardManager, Trainer.

Each is a class with a pydantic `Config` (the manifest's `with:` block) and a constructor `(config, context)`. The data
may be text, images, boards or transcripts, the policy a language model, a CNN or a table, the update rule anything.
Invariant: `round_data`, `resolve` and `stage_inputs` are deterministic in their arguments and the configuration. Any
peer can therefore regenerate the questions of another one, and a resumed peer repeats its own.
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
    """The environment in which the runtime constructs every component.

    Args:
        seed: of the game.
        stages: number of stages in a round.
        peer: id of this peer.
        model_uri, model_revision: from the manifest; empty where the game names no model.
        model_token: path of a file with the hub's token, or None; never the token itself.
        device: a torch device string, `cpu` or `cuda:0`.
        cache: a folder for models and datasets; kept after the run.
        ranks: the other processes of this peer.
        demonstrations: worked examples for a warm start; None where the data has none. The runtime sets it for
            trainers only.
        directory: a folder of this peer, for logs and files that it shares with other processes; None outside of a
            run.
        sampler_url: address of a generation server that belongs to this peer; empty where there is none.
        sampler_weights: a folder that the generation server reads under the same path.
        name: of the run, or else of the game; empty outside of a run.
        index: number of this peer in its run.
        manifest: as plain data with every default, without variables and template of the pods; for trackers only, else
            empty.
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
    name: str = ""
    index: int = 0
    manifest: Mapping[str, Any] = field(default_factory=dict)


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


class Component:
    """Base of all components: a configuration, a context, and `close`."""

    Config: ClassVar[type[BaseModel]] = Config

    def __init__(self, config: Any, context: ComponentContext) -> None:
        self.config = config
        self.context = context

    def close(self) -> None:
        """Release processes, files and memory. Called once, also after an error."""


class DataManager(Component, ABC):
    """The source of questions, and of the prompts of each stage."""

    knows_next_round: bool = True
    """False where a round's questions always depend on the result of the round before: nothing is then generated
    ahead. A curriculum whose level seldom changes may leave it True: rollouts for the wrong questions are discarded.
    """

    @abstractmethod
    def round_data(self, round: Round) -> Sequence[Question]:
        """Return the questions of a round. `round.seed` gives all peers the same, `round.peer_seed` each its own."""

    @abstractmethod
    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """Return the prompts of a stage, given the contributions so far: at most one a question, usually for
        `state.question_ids`.

        The loop also calls it for stage 0 with the questions of another peer, to check that peer's prompts."""

    @abstractmethod
    def resolve(self, reference: QuestionRef) -> Question | None:
        """Regenerate a question of another peer; None when the reference is not of this game (unknown environment or
        different configuration).
        """

    def resolve_all(self, references: Sequence[QuestionRef]) -> Sequence[Question | None]:
        """Resolve many references, in order. Override it where one call is cheaper than many."""
        return [self.resolve(reference) for reference in references]

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return held-out questions, which no round uses; empty where the game has none."""
        return ()

    def round_finished(self, state: GameState, rewards: Rewards) -> None:
        """Update a curriculum. Called once a round, after training."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state for a resume, JSON-like. Empty where everything derives from the round."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state to load")


class RewardManager(Component, ABC):
    """Scores rollouts, from our own data only: the rewards that other peers claim are not used."""

    @abstractmethod
    def rewards(self, state: GameState) -> Rewards:
        """Return a reward per rollout for every group of `state.groups()` whose question is in `state.questions`."""

    full_reward: float = 1.0
    """A rollout with at least this reward counts as passed (pass@k of the evaluation)."""

    def counters(self) -> Mapping[str, int]:
        """Return running totals for metrics: sandbox breaches, scorer exceptions."""
        return {}


class Trainer(Component, ABC):
    """A policy: samples rollouts (`generate`) and updates itself (`train`)."""

    @property
    @abstractmethod
    def policy_version(self) -> int:
        """Number of updates of this policy so far."""

    @property
    @abstractmethod
    def tokenizer(self) -> str:
        """Hash of the tokenizer or action space: ids may be exchanged between peers only where it is equal."""

    @property
    def sampling_version(self) -> int:
        """Version of the policy that sampled what `generate` returned last. Below `policy_version` only where a
        trainer generates ahead.
        """
        return self.policy_version

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        """Return one group a prompt, in order, each with its prompt with `token_ids` filled in. Seed all random
        numbers from `round.peer_seed`, `round.number`, `round.stage` and `round.evaluation`, so that a
        resumed round repeats itself. `round.sampling`, where it is set, is how many rollouts an evaluation wants for
        each prompt, and at which temperature."""

    generates_ahead: bool = False
    """Whether `generate_ahead` is implemented; only then does the loop make the next round's questions early."""

    def generate_ahead(self, prompts: Sequence[Prompt], round: Round) -> None:
        """Start sampling for the first stage of a later round, and return at once. The round may turn out to have
        other prompts, or not to take place: `generate` must then return the same as without this call."""

    @abstractmethod
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        """Train on a complete round: per stage, per round or not at all. Our own groups are `state.own_groups()`, the
        selected groups of other peers `state.external`. Return metrics: finite floats, or NaN where undefined."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """Return the state for an exact resume: nested dictionaries and lists of tensors and JSON-like values, random
        states included.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of these ids, exactly as in `Rollout.text`; None where ids have no text or are outside of
        the vocabulary. The loop uses it to refuse a rollout whose text does not match its ids."""
        return None

    def export(self, folder: Path) -> None:
        """Write the policy in the usual format (for a language model: `save_pretrained`)."""
