"""`spec.game`: the components of the game by name, and how a round proceeds.

The block under `with` belongs to the component that `use` names and is checked by it, not here. The exception is a
trainer's `sampler: {engine: vllm}`, which the operator reads too.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from swarmgame_api.base import Model, Rule
from swarmgame_api.quantities import (
    AbsolutePath,
    Expected,
    FreeForm,
    Image,
    Keyed,
    Name,
    ObjectName,
    Percentage,
    fraction,
    percent,
)
from swarmgame_api.sampler import VllmOptions, sampler_problems, vllm_options

ComponentName = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$",
        min_length=1,
        max_length=253,
    ),
    Expected("a registered name such as grpo, or package.module:Class"),
]


Temperature = Annotated[
    str,
    StringConstraints(pattern=r"^(10(\.0+)?|[1-9](\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)$", max_length=6),
    Expected('a number above 0 and at most 10, in quotes, such as "0.7"'),
]


class ComponentSpec(Model):
    """A component of the game by name, and its configuration."""

    use: ComponentName
    """A registered name (`swarmgame components list` shows them), or `package.module:Class` of your own."""
    with_: FreeForm = Field(default_factory=dict)
    """The component's own configuration, validated by its `Config` before anything starts."""


class EnvironmentSpec(ComponentSpec):
    """What answers the turns of the policy, so that a rollout has several of them."""

    max_turns: Annotated[int, Field(ge=1, le=256)] = 8
    """Turns of the policy in an episode. The rollout ends when they are used up."""
    max_observation_tokens: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Of one answer of the environment; a longer one loses its end."""


class RoleSpec(Model):
    """A role of some of the peers."""

    name: Name
    """The name that the game's code uses: solver, proposer, evaluator …"""
    share: Percentage | None = None
    """Share of the live members with this role."""
    count: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Number of live members with this role. A role with neither share nor count takes the rest."""

    @property
    def share_fraction(self) -> float | None:
        """The share in (0, 1]."""
        return None if self.share is None else fraction(self.share)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(has(self.share) && has(self.count))",
            expected="a share or a count, not both",
            check=lambda role: role.share is None or role.count is None,
        ),
    )


class ModuleImage(Model):
    """An image whose files are mounted; it is never run."""

    reference: Image
    """The image; by digest, so that every peer runs the same code."""


class ConfigMapReference(Model):
    """A ConfigMap of the game's namespace."""

    name: ObjectName
    """Its name. Every key is a file of the package."""


class ModuleSpec(Model):
    """Your own code for the pods: mounted and put on PYTHONPATH; nothing is installed at start."""

    name: Name
    """Name of the volume."""
    image: ModuleImage | None = None
    """An image that holds the package."""
    config_map_ref: ConfigMapReference | None = None
    """A ConfigMap that holds the package: for a file or two."""
    mount_path: AbsolutePath
    """Where it is mounted; this folder is put on PYTHONPATH."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.image) != has(self.configMapRef)",
            expected="exactly one of image and configMapRef",
            check=lambda module: (module.image is None) != (module.config_map_ref is None),
        ),
    )


class SharingSpec(Model):
    """Which groups of other peers a peer trains on."""

    external_groups: Annotated[int, Field(ge=0, le=4096)] = 0
    """Number of groups of other peers that a peer trains on each round, besides its own. 0: only its own."""
    strategy: Literal["nonzero-advantage", "uniform", "top-score"] = "nonzero-advantage"
    """Which of them: those whose rewards differ, and so have an advantage; any; or those with the highest rewards."""
    max_per_peer: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most groups of one peer in a round, so that no peer dominates."""
    max_staleness_rounds: Annotated[int, Field(ge=0, le=64)] = 1
    """For how many rounds a late rollout stays usable."""
    max_influence: Percentage = "50%"
    """Largest share of an update that the rollouts of all other peers together may have; one of them may have a third
    of it, or maxPerPeer / externalGroups of it if that is more. What is beyond is scaled down. 100%: no bound."""
    exchange: Literal["Auto", "Gather", "Pull"] = "Auto"
    """Gather: every peer fetches everything that was published, as later stages need it. Pull: a peer fetches only
    what it trains on. Auto: Gather when a round has more than one stage, else Pull."""

    @property
    def influence_fraction(self) -> float:
        """The largest influence in (0, 1]."""
        return fraction(self.max_influence)

    @property
    def influence_part(self) -> float:
        """The part of it that one peer may have, in [0, 1]."""
        return min(1.0, self.max_per_peer / self.external_groups) if self.external_groups else 0.0


class ProgressionSpec(Model):
    """When a stage ends."""

    quorum: Percentage = "67%"
    """Share of the live members that must publish before a stage may close. The deadline closes it regardless.
    `swarmgame run` takes 100 % where none is given, unless others can join."""
    stage_deadline_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120
    """Longest wait of a stage. Late rollouts stay usable for `sharing.maxStalenessRounds` rounds."""
    when_alone: Literal["Continue", "Stop"] = "Continue"
    """What the last remaining peer does. Either way its log, metrics and status show that it is isolated."""

    @property
    def quorum_fraction(self) -> float:
        """The quorum in (0, 1]."""
        return fraction(self.quorum)


class EvaluationSpec(Model):
    """Evaluation on held-out questions, which are never trained on: before the first update, every so many rounds, and
    after the last round. A peer plays it by itself, with the role that it would have alone."""

    every_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Rounds between two evaluations. When two in a row fall while the rollouts of other peers earn as much as before,
    none of these is trained on until the score is back, or for four evaluations."""
    questions: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Questions of each evaluation; a round never uses one of them."""
    samples: Annotated[int, Field(ge=0, le=1024)] = 0
    """Rollouts a question in a second pass, which samples: avg@k, and pass@k for k = 1, 2, 4, … up to this number. 0:
    no second pass. The first pass takes the likeliest answer, unless the trainer's options say otherwise."""
    temperature: Temperature | None = None
    """Temperature of the second pass, in quotes. Absent: that of training."""

    @property
    def sampling_temperature(self) -> float | None:
        """The temperature as a number."""
        return None if self.temperature is None else float(self.temperature)


class GameSpec(Model):
    """The game itself. Immutable unless the game is suspended."""

    max_rounds: Annotated[int, Field(ge=1, le=1_000_000_000)]
    """The game is complete after this many rounds."""
    stages: Annotated[int, Field(ge=1, le=32)] = 1
    """Exchanges inside a round; every stage sees what was published in the earlier ones."""
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """All randomness is derived from it and the peers' ids, by hash; `swarmgame run` derives the ids from it too."""
    data: ComponentSpec
    """The source of questions: a DataManager."""
    rewards: ComponentSpec
    """The scores of answers: a RewardManager."""
    trainer: ComponentSpec
    """The policy and its update: a Trainer."""
    environment: EnvironmentSpec | None = None
    """What answers the policy's turns: an Environment. Absent: a rollout is one turn."""
    roles: Annotated[tuple[RoleSpec, ...], Field(max_length=16), Keyed("name")] = ()
    """Roles of the live members. Empty: all peers do the same, unless a `roleManager` names roles of its own."""
    role_manager: ComponentSpec | None = None
    """What assigns the roles at the beginning of each round: a RoleManager. Absent: by-rank, by the sorted ids."""
    modules: Annotated[tuple[ModuleSpec, ...], Field(max_length=8), Keyed("name")] = ()
    """Your own code for the pods. With `swarmgame run`, modules beside the manifest are importable without an entry
    here."""
    sharing: SharingSpec = SharingSpec()
    """Which groups of other peers a peer trains on."""
    progression: ProgressionSpec = ProgressionSpec()
    """When a stage ends."""
    evaluation: EvaluationSpec | None = None
    """Regular evaluation on held-out questions. Absent: none."""

    @property
    def exchange(self) -> Literal["Gather", "Pull"]:
        """`sharing.exchange` with Auto resolved."""
        if self.sharing.exchange == "Auto":
            return "Gather" if self.stages > 1 else "Pull"
        return self.sharing.exchange

    @property
    def vllm(self) -> VllmOptions | None:
        """Options of the vLLM server that generates for the trainer; None where the trainer generates itself."""
        return vllm_options(self.trainer.with_)

    @model_validator(mode="after")
    def _check_sampler(self) -> Self:
        broken = [
            (f"trainer.with.{each.path}", each.got, each.expected) for each in sampler_problems(self.trainer.with_)
        ]
        if broken:
            raise PydanticCustomError(
                "rules", "expected {summary}", {"summary": "; ".join(b[2] for b in broken), "broken": broken}
            )
        return self

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.roles) || self.roles.map(r, has(r.share) ? int(r.share.replace('%', '')) : 0).sum() <= 100",
            expected='shares that add up to at most "100%"',
            check=lambda game: sum(percent(role.share) for role in game.roles if role.share) <= 100,
            field="roles",
            show=lambda game: [role.share for role in game.roles],
        ),
        Rule(
            cel="!has(self.roles) || self.roles.all(r, self.roles.exists_one(other, other.name == r.name))",
            expected="every role once",
            check=lambda game: len({role.name for role in game.roles}) == len(game.roles),
            field="roles",
            show=lambda game: [role.name for role in game.roles],
        ),
        Rule(
            cel="!has(self.roles) || self.roles.filter(r, !has(r.share) && !has(r.count)).size() <= 1",
            expected="at most one role without a share or count: it takes the rest",
            check=lambda game: sum(role.share is None and role.count is None for role in game.roles) <= 1,
            field="roles",
            show=lambda game: [role.name for role in game.roles if role.share is None and role.count is None],
        ),
        Rule(
            cel="!has(self.modules) || self.modules.all(m, self.modules.exists_one(other, other.name == m.name))",
            expected="every module once",
            check=lambda game: len({module.name for module in game.modules}) == len(game.modules),
            field="modules",
            show=lambda game: [module.name for module in game.modules],
        ),
        Rule(
            cel="!has(self.modules)"
            " || self.modules.all(m, self.modules.exists_one(other, other.mountPath == m.mountPath))",
            expected="a mountPath of its own for every module",
            check=lambda game: len({module.mount_path for module in game.modules}) == len(game.modules),
            field="modules",
            show=lambda game: [module.mount_path for module in game.modules],
        ),
    )
