"""Policy gradients for any torch module over discrete actions: a CNN over images, a table, a policy for a board game.

One action is one rollout: its index is the only token id. REINFORCE with a baseline per group and an entropy bonus;
actions of other peers have truncated importance weights. Invariants: all random numbers come from the round's seeds; a
round without a training signal changes nothing; any number of ranks makes the same update.

Source: Williams 1992 (REINFORCE); truncated importance weights as in IMPALA (arXiv 1802.01561).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext, RolloutUse, Trainer
from swarmgame.game.state import FinishReason, GameState, Group, GroupKey, Prompt, Rewards, Rollout, Round
from swarmgame.seeds import derive_seed
from swarmgame.trainer.optimization import Optimization
from swarmgame.trainer.policies import PATH, build_policy, save_policy


class PolicyGradientConfig(Config):
    """The `with:` block of `use: policy-gradient`."""

    actions: Annotated[int, Field(ge=2, le=65_536)]
    """Number of actions; an action is an index below it."""
    module: str = "mlp"
    """The policy: `mlp`, `cnn`, or `package.module:factory`. Called with `actions` and the options; returns a torch
    module from observations [B, …] to logits [B, actions]."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the factory. `mlp`: inputs, hidden, layers. `cnn`: shape, channels, hidden."""
    generations: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Actions a prompt."""
    evaluation_generations: Annotated[int, Field(ge=1)] = 1
    """Actions a held-out prompt."""
    evaluation_greedy: bool = True
    """Take the likeliest action on held-out prompts instead of sampling one."""
    baseline: Literal["group", "update", "none"] = "group"
    """What a reward is compared with: the mean of its group, of the update, or nothing."""
    scale: bool = False
    """Divide by the standard deviation of the update's compared rewards."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, decoupled."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Longer gradients are scaled down to this norm; null: never."""
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the policy's entropy in the loss: it delays convergence."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Largest importance weight of an action of another peer."""
    update: Literal["per-round", "per-stage", "none"] = "per-round"
    """One optimizer step over all stages of a round, one a stage, or none."""


@dataclass(frozen=True, slots=True)
class _Action:
    """One action to train on, the rollout `position` of its group; `behavior_logprob` is None for our own."""

    group: GroupKey
    position: int
    observation: Tensor
    action: int
    advantage: float
    behavior_logprob: float | None


class PolicyGradientTrainer(Trainer):
    """REINFORCE over discrete actions; `use: policy-gradient`. A prompt's `payload` is the observation: array-like, or
    None.
    """

    Config: ClassVar[type[BaseModel]] = PolicyGradientConfig

    def __init__(self, config: PolicyGradientConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: PolicyGradientConfig = config
        self.module = build_policy(
            config.module, config.actions, config.options, derive_seed(context.seed, "policy")
        ).to(context.device)
        self._optimization = Optimization(
            {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad},
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
        self._version = 0
        self._last_update: dict[GroupKey, list[RolloutUse]] = {}

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def tokenizer(self) -> str:
        description = json.dumps({"discrete": self.config.actions})
        return hashlib.blake2b(description.encode(), digest_size=8, person=b"swarmgame-act").hexdigest()

    # ── sampling
    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        if not prompts:
            return []
        count = self.config.evaluation_generations if round.evaluation else self.config.generations
        observations = torch.stack([_observation(prompt.payload) for prompt in prompts])
        if round.sampling is not None:
            count = round.sampling.samples
        with torch.no_grad():
            logprobs_PA = self._logprobs(observations).cpu()
        if round.sampling is not None and round.sampling.temperature is not None:
            logprobs_PA = torch.log_softmax(logprobs_PA / round.sampling.temperature, dim=-1)
        if round.evaluation and self.config.evaluation_greedy and round.sampling is None:
            actions_PN = logprobs_PA.argmax(dim=1, keepdim=True).expand(-1, count)
        else:
            # Every rank samples the same actions: it is cheap, and nothing needs to be gathered.
            purpose = "evaluate" if round.evaluation else "generate"
            generator = torch.Generator().manual_seed(derive_seed(round.peer_seed, purpose, round.number, round.stage))
            actions_PN = torch.multinomial(logprobs_PA.double().exp(), count, replacement=True, generator=generator)
        chosen_PN = logprobs_PA.gather(1, actions_PN)
        return [
            Group(prompt, tuple(map(_rollout, actions, chosen)))
            for prompt, actions, chosen in zip(prompts, actions_PN.tolist(), chosen_PN.tolist(), strict=True)
        ]

    def _logprobs(self, observations: Tensor) -> Tensor:
        logits = self.module(observations.to(self.context.device))
        expected = (len(observations), self.config.actions)
        if tuple(logits.shape) != expected:
            raise InvalidManifest(
                f"{PATH}.module",
                self.config.module,
                f"a module whose output has shape {expected}, not {tuple(logits.shape)}",
            )
        return torch.log_softmax(logits.float(), dim=-1)

    def decode(self, token_ids: Sequence[int]) -> str | None:
        if len(token_ids) != 1 or not 0 <= token_ids[0] < self.config.actions:
            return None
        return str(token_ids[0])

    # ── training
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        keys = [*(key for key, _ in state.own_groups()), *state.external]
        if self.config.update == "per-round":
            parts = [keys]
        elif self.config.update == "per-stage":
            parts = [[key for key in keys if key.stage == stage] for stage in range(len(state.stages))]
        else:
            parts = []
        counts: Counter[str] = Counter()
        sums = dict.fromkeys(("loss", "entropy", "importance", "actions"), 0.0)
        norms: list[float] = []
        self._last_update = {}
        for part in parts:
            actions = self._actions(state, part, rewards, counts)
            for action in actions:
                unused = [RolloutUse(math.nan, 0.0)] * len(state.group_of(action.group).rollouts)
                self._last_update.setdefault(action.group, unused)[action.position] = RolloutUse(action.advantage, 0.0)
            # Without an entropy bonus, equal rewards give no gradient, and a step on old momentum would be noise.
            if not actions or (self.config.entropy_bonus == 0 and all(action.advantage == 0 for action in actions)):
                continue
            norm = self._step(actions, sums)
            if norm is not None:
                norms.append(norm)
                self._version += 1
        return self._metrics(counts, sums, norms)

    def _step(self, actions: Sequence[_Action], sums: dict[str, float]) -> float | None:
        ranks = self.context.ranks
        own = actions[ranks.rank :: ranks.size]
        measured: list[float] = []
        self._optimization.clear()
        if own:
            device = self.context.device
            logprobs_BA = self._logprobs(torch.stack([action.observation for action in own]))
            chosen_B = logprobs_BA.gather(1, torch.tensor([[action.action] for action in own], device=device)).squeeze(
                1
            )
            advantages_B = torch.tensor([action.advantage for action in own], device=device)
            before_B = torch.tensor(
                [math.nan if action.behavior_logprob is None else action.behavior_logprob for action in own],
                device=device,
            )
            ratio_B = (chosen_B.detach() - before_B).exp().clamp(max=self.config.importance_cap)
            weights_B = torch.where(before_B.isnan(), 1.0, ratio_B)
            entropy_B = -(logprobs_BA.exp() * logprobs_BA).sum(dim=1)
            loss = -(weights_B * advantages_B * chosen_B + self.config.entropy_bonus * entropy_B).sum() / len(actions)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimization.accumulate()
            measured = weights_B.tolist()
            for name, value in (("loss", loss), ("entropy", entropy_B.sum()), ("importance", weights_B.sum())):
                sums[name] += float(value.detach())
            sums["actions"] += len(own)
        for rank, weights in enumerate(map(json.loads, ranks.gather(json.dumps(measured).encode()))):
            for action, weight in zip(actions[rank :: ranks.size], weights, strict=True):
                self._last_update[action.group][action.position] = RolloutUse(action.advantage, weight)
        return self._optimization.step(self.config.learning_rate, ranks)

    def _actions(
        self, state: GameState, keys: Sequence[GroupKey], rewards: Rewards, counts: Counter[str]
    ) -> list[_Action]:
        """Return the usable actions of the given groups with their advantages; others are counted and left out."""
        found: list[tuple[Tensor, int, float, float | None, int, int]] = []
        for number, key in enumerate(keys):
            own = key.peer == state.peer and key.round == state.round.number
            group, scores = state.group_of(key), rewards.get(key, ())
            usable = len(scores) == len(group.rollouts) and not any(map(math.isinf, scores))
            if usable and not own:
                usable = state.contribution_of(key).tokenizer == self.tokenizer and all(
                    map(self._is_action, group.rollouts)
                )
            if not usable:
                counts["groups_unscored" if own else "remote_dropped"] += 1
                continue
            counts["groups_trained" if own else "groups_external"] += 1
            payload = (
                group.prompt.payload
                if own or group.prompt.payload is not None
                else state.questions[key.question_id].payload
            )
            observation = _observation(payload)
            for at, (rollout, score) in enumerate(zip(group.rollouts, scores, strict=True)):
                if not math.isnan(score):
                    behavior = None if own else rollout.logprobs[0]
                    found.append((observation, rollout.token_ids[0], float(score), behavior, number, at))
        advantages = self._advantages([(number, score) for _, _, score, _, number, _ in found])
        return [
            _Action(keys[number], at, observation, action, advantage, behavior)
            for (observation, action, _, behavior, number, at), advantage in zip(found, advantages, strict=True)
        ]

    def _advantages(self, scored: Sequence[tuple[int, float]]) -> list[float]:
        """Return rewards minus the baseline. A group of equal rewards gets exactly zero."""
        if not scored:
            return []
        by_group: dict[int, list[float]] = {}
        for number, score in scored:
            by_group.setdefault(number if self.config.baseline == "group" else 0, []).append(score)
        if self.config.baseline == "none":
            compared = [score for _, score in scored]
        else:
            means = {
                number: values[0] if len(set(values)) == 1 else sum(values) / len(values)
                for number, values in by_group.items()
            }
            compared = [score - means[number if self.config.baseline == "group" else 0] for number, score in scored]
        deviation = float(np.std(compared))
        return [value / deviation for value in compared] if self.config.scale and deviation > 0 else compared

    def _is_action(self, rollout: Rollout) -> bool:
        if len(rollout.token_ids) != 1 or not 0 <= rollout.token_ids[0] < self.config.actions:
            return False
        return math.isfinite(rollout.logprobs[0]) and rollout.logprobs[0] <= 1e-3

    def _metrics(
        self, counts: Mapping[str, int], sums: Mapping[str, float], norms: Sequence[float]
    ) -> dict[str, float]:
        parts = [json.loads(payload) for payload in self.context.ranks.gather(json.dumps(sums).encode())]
        total = {name: sum(part[name] for part in parts) for name in sums}
        actions = total["actions"]
        return {
            "loss": total["loss"] / len(norms) if norms else math.nan,
            "grad_norm": sum(norms) / len(norms) if norms else math.nan,
            "learning_rate": self.config.learning_rate,
            "steps": float(len(norms)),
            "entropy": total["entropy"] / actions if actions else math.nan,
            "importance": total["importance"] / actions if actions else math.nan,
            **{
                name: float(counts.get(name, 0))
                for name in ("groups_trained", "groups_external", "groups_unscored", "remote_dropped")
            },
        }

    def last_update(self) -> Mapping[GroupKey, Sequence[RolloutUse]]:
        return self._last_update

    # ── state
    def weights(self) -> Mapping[str, Any]:
        return {**self._optimization.weights, **dict(self.module.named_buffers())}

    def state_dict(self) -> Mapping[str, Any]:
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self.module.named_buffers()}
        return {"policy_version": self._version, "optimization": self._optimization.state_dict(), "buffers": buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimization.load_state_dict(state["optimization"])
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state["buffers"][name])
        self._version = int(state["policy_version"])

    def export(self, folder: Path, *, merge_adapters: bool = True) -> None:
        """Write what `policies.load_policy` reads."""
        save_policy(folder, self.module, self.config.module, self.config.actions, self.config.options)


def _observation(payload: Any) -> Tensor:
    """Return the observation; a single 1 where the prompt has none."""
    if payload is None:
        return torch.ones(1)
    if isinstance(payload, Tensor):
        return payload.detach().to("cpu", torch.float32)
    return torch.from_numpy(np.array(payload, dtype=np.float32))


def _rollout(action: int, logprob: float) -> Rollout:
    return Rollout(str(action), (action,), (logprob,), FinishReason.STOP)
