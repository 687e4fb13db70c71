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
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from swarmgame.config import Config
from swarmgame.game.author_records import RemoteUse
from swarmgame.game.demonstrations import Demonstrations
from swarmgame.game.ranks import OneRank, Ranks
from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.game.state import (
    GameState,
    Group,
    GroupKey,
    PeerId,
    Prompt,
    Question,
    QuestionRef,
    Rewards,
    Rollout,
    Round,
)
from swarmgame.game.trainer_reports import Notice, RolloutUse

if TYPE_CHECKING:
    from swarmgame.game.environment import Episodes

__all__ = ["Component", "ComponentContext", "DataManager", "Notice", "RewardManager", "RolloutUse", "Trainer"]


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
        folder: of the manifest; relative paths of files that the game reads begin there. None outside of a run.
        ranks: the other processes of this peer.
        demonstrations: worked examples for a warm start; None where the data has none. The runtime sets it for
            trainers only.
        directory: a folder of this peer, for logs and files that it shares with other processes; None outside of a
            run.
        sampler_url: address of a generation server that belongs to this peer; empty where there is none.
        sampler_weights: a folder that the generation server reads under the same path.
        name: of the run, or else of the game; empty outside of a run.
        index: number of this peer in its run.
        max_influence: largest share of an update that rollouts of other peers may have, in [0, 1]; 1: no bound.
        influence_part: of that, what one peer may have at least.
        manifest: as plain data with every default, without variables and template of the pods; for trackers only, else
            empty.
        remote_work: bounds the time that answers of other peers take; None: it is not bounded in all.
        episodes: plays the game's environment; None where the game has none.
    """

    seed: int = 0
    stages: int = 1
    peer: PeerId = ""
    model_uri: str = ""
    model_revision: str = ""
    model_token: Path | None = None
    device: str = "cpu"
    cache: Path = field(default_factory=lambda: Path("~/.cache/swarmgame").expanduser())
    folder: Path | None = None
    ranks: Ranks = field(default_factory=OneRank)
    demonstrations: Demonstrations | None = None
    directory: Path | None = None
    sampler_url: str = ""
    sampler_weights: Path | None = None
    name: str = ""
    index: int = 0
    max_influence: float = 0.5
    influence_part: float = 0.0
    manifest: Mapping[str, Any] = field(default_factory=dict)
    remote_work: RemoteWork | None = None
    episodes: Episodes | None = None


class Component:
    """Base of all components: a configuration, a context, and `close`."""

    Config: ClassVar[type[BaseModel]] = Config
    own_options: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Config` that each peer of a swarm may set for itself."""

    def __init__(self, config: Any, context: ComponentContext) -> None:
        self.config = config
        self.context = context

    @classmethod
    def shared_options(cls, config: Any) -> Mapping[str, Any]:
        """Return the settings that all peers of a swarm must have in common, as JSON-like values."""
        found: dict[str, Any] = config.model_dump(mode="json", exclude=set(cls.own_options))
        return found

    def close(self) -> None:
        """Release processes, files and memory. Called once, also after an error."""


class DataManager(Component, ABC):
    """The source of questions, and of the prompts of each stage."""

    own_options: ClassVar[frozenset[str]] = frozenset({"questions_per_round", "shared", "specialties"})
    knows_next_round: bool = True
    """False where a round's questions always depend on the result of the round before: nothing is then generated
    ahead. A curriculum whose level seldom changes may leave it True: rollouts for the wrong questions are discarded.
    """

    @abstractmethod
    def round_data(self, round: Round) -> Sequence[Question]:
        """Return the questions of a round. `round.seed` gives all peers the same, `round.peer_seed` each its own."""

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """Return the prompts of a stage, given the contributions so far: at most one a question, usually for
        `state.question_ids`. Without an override these are the questions themselves, in every stage.

        The loop also calls it as another peer (`state.round.peer`, `role`), to check that peer's prompts: they may
        depend on the state, and on nothing that only this peer has."""
        return [Prompt.from_question(state.questions[question_id]) for question_id in state.question_ids]

    @abstractmethod
    def resolve(self, reference: QuestionRef) -> Question | None:
        """Regenerate a question of another peer; None when the reference is not of this game (unknown environment or
        different configuration).
        """

    def resolve_all(self, references: Sequence[QuestionRef]) -> Sequence[Question | None]:
        """Resolve many references, in order. Override it where one call is cheaper than many."""
        return [self.resolve(reference) for reference in references]

    def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
        """Check a rollout of another peer against the rules of the game, before anything reads it. Without an override
        every text is allowed.

        Args:
            state: as its author saw it: `state.round.role` is the author's.

        Raises:
            ValueError: it breaks them, in a sentence. Its group is dropped and counted as `illegal-move`.
        """

    def content_digest(self) -> str:
        """Return a digest of what questions are made from besides configuration and code: rows, files, versions of
        libraries. Peers of a swarm compare it when they meet. Override it where the data reads anything.
        """
        return ""

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
        """Return a reward per rollout for every group of `state.groups()` whose question is in `state.questions`.

        A reward is a finite number (of Python, numpy or torch; a bool counts), or NaN for a rollout that cannot be
        scored. Anything else, or a number of rewards that is not that of rollouts, ends the run, and so does a round
        without a single score."""

    full_reward: float = 1.0
    """A rollout with at least this reward counts as passed (pass@k of the evaluation). It is read after `rewards`."""

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        """Find mistakes that only a trial with a question of the game's data shows, in a second or two. Called before
        anything starts.

        Raises:
            InvalidManifest, BadGame: the rewards cannot be used.
        """

    @classmethod
    def needs_trial(cls, config: Any) -> bool:
        """Whether `check_with` calls nothing of the rewards, so that a trial of the game calls them."""
        return cls.check_with.__func__ is RewardManager.check_with.__func__  # type: ignore[attr-defined]

    @classmethod
    def needs_environment(cls, config: Any) -> bool:
        """Whether a manifest with these rewards must have `spec.game.environment`."""
        return False

    def round_scored(self, state: GameState) -> None:
        """End the count of a round. Called once a round, after scoring and before training.

        Raises:
            BadGame: the round shows that the rewards cannot work, since every call failed.
        """

    def failures(self) -> Sequence[ScoringFailure]:
        """Return the kinds of failed calls so far, each with its first error and its count."""
        return ()

    def counters(self) -> Mapping[str, int]:
        """Return running totals for metrics: sandbox breaches, scorer exceptions."""
        return {}


class Trainer(Component, ABC):
    """A policy: samples rollouts (`generate`) and updates itself (`train`)."""

    needs_model: ClassVar[bool] = False
    """Whether a manifest with this trainer must have `spec.model`."""

    @property
    @abstractmethod
    def policy_version(self) -> int:
        """Number of updates of this policy so far."""

    @property
    @abstractmethod
    def tokenizer(self) -> str:
        """Hash of the tokenizer or action space: ids may be exchanged between peers only where it is equal."""

    base_model: str = ""
    """Fingerprint of the files that the policy began with; empty for a policy without a model."""

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

    tokens_per_rollout: int = 0
    """Most ids of a rollout that `generate` returns, which is also the most that one of another peer may have. 0: not
    known, and not bounded.
    """
    rollouts_per_group: int = 0
    """Most rollouts that `generate` returns for a prompt of a round, which is also the most that a group of another
    peer may have. 0: not known, and not bounded.
    """

    filters_sampling: bool = False
    """Whether `generate` samples among the likeliest tokens only (top-k, top-p, greedy), so that rollouts are likelier
    than their log-probabilities say."""

    def observation_ids(self, observation: str, last: int) -> Sequence[int] | None:
        """Return the ids that `generate` puts behind a turn of the policy for an observation, in a game with an
        environment; None where they are not known, or ids have no meaning for this trainer.

        Args:
            last: the last id of the turn.
        """
        return None

    plays_episodes: ClassVar[bool] = False
    """Whether `generate` lets `context.episodes` answer; a manifest with an environment needs such a trainer."""

    generates_ahead: bool = False
    """Whether `generate_ahead` is implemented; only then does the loop make the next round's questions early."""

    def generate_ahead(self, prompts: Sequence[Prompt], round: Round) -> None:
        """Start sampling for the first stage of a later round, and return at once. The round may turn out to have
        other prompts, or not to take place: `generate` must then return the same as without this call."""

    @abstractmethod
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        """Train on a complete round: per stage, per round or not at all. Our own groups are `state.own_groups()`, the
        selected groups of other peers `state.external`. Return metrics: a number each, NaN where undefined."""

    def last_update(self) -> Mapping[GroupKey, Sequence[RolloutUse]] | None:
        """Return how the last `train` used the rollouts of each group, one entry a rollout; a group that is absent was
        not used. None where the trainer does not report it. Only for the archive of rollouts."""
        return None

    def remote_uses(self) -> Mapping[PeerId, RemoteUse]:
        """Return how the last `train` used the rollouts of each other peer in it. The loop leaves out for some rounds
        whose claims cannot be true. Empty where the trainer does not report it.
        """
        return {}

    def notices(self) -> Sequence[Notice]:
        """Return what was found about the policy so far, when it was loaded or trained: each is shown once."""
        return ()

    def weights(self) -> Mapping[str, Any]:
        """Return the trained tensors by name, not copied. Their hash is recorded each round; empty: the hash is of
        `state_dict()`, which may take long for a large model."""
        return {}

    has_shared_state: bool = False
    """Whether the ranks of a peer divide the weights. `state_dict` and the hash of `weights` are then calls of all
    ranks, of which the first alone uses the result."""

    @classmethod
    def doubts(cls, config: Any, processes: int | None) -> Sequence[str]:
        """Return what is legal in a configuration but probably not meant, as sentences.

        Args:
            processes: of a peer; None where it depends on its devices.

        Raises:
            InvalidManifest, BadGame: the trainer cannot run so.
        """
        return ()

    @classmethod
    def check_with(
        cls, config: Any, context: ComponentContext, prompt: Prompt | None, *, load_model: bool = False
    ) -> Sequence[str]:
        """Find mistakes that only the policy's files show, and return warnings, as sentences. Called before anything
        starts; writes nothing.

        Args:
            prompt: one of the game's first stage; None where it has none.
            load_model: also load the policy, where that takes seconds.

        Raises:
            InvalidManifest: the policy cannot be used.
        """
        return ()

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """Return the state for an exact resume: nested dictionaries and lists of tensors and JSON-like values, random
        states included. The tensors need not be copies.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of these ids, exactly as in `Rollout.text`; None where ids have no text or are outside of
        the vocabulary. The loop uses it to refuse a rollout whose text does not match its ids."""
        return None

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Return whether all ids are in the vocabulary or action space. The loop refuses groups with other ids."""
        return True

    @property
    def has_adapters(self) -> bool:
        """Whether the policy is adapters over a base model, so that `export` may keep them apart."""
        return False

    @classmethod
    def makes_adapters(cls, config: Any) -> bool | None:
        """Return `has_adapters` of a trainer with this configuration; None where only creating one shows it."""
        return False if cls.has_adapters is Trainer.has_adapters else None

    @classmethod
    def prepare_export(cls, config: Any, state: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Return the configuration and the state of a trainer that is created on a CPU only to export a saved state.
        Override it to leave out what sampling and training alone need.
        """
        return config, state

    def export(self, folder: Path, *, merge_adapters: bool = True) -> None:
        """Write the policy in the usual format (for a language model: `save_pretrained`). It must change neither the
        policy nor a random state, since training may go on.

        Without an override the runtime writes every torch module that is an attribute of the trainer.

        Args:
            merge_adapters: False only where `has_adapters` is True.
        """
        raise NotImplementedError
