"""Policy gradients for any torch module over discrete actions: a CNN over images, a table, a policy for a board game.

One action is one rollout: its index is the only token id. REINFORCE with a baseline (a mean, or a second network that
learns what to expect) and an entropy bonus; actions of other peers have importance weights of at most 1 and a bounded
share of an update, and none if their claims or our own policy make them improbable. Invariants: all random numbers come
from the round's seeds; a round without a training signal changes nothing; any number of ranks makes the same update.
The module is sampled and trained in evaluation mode: with dropout or the statistics of a batch, the policy that is
trained would be another one than that which sampled, and an importance weight would be that of its noise.

Source: Williams 1992 (REINFORCE); truncated importance weights as in IMPALA (arXiv 1802.01561).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from swarmgame.errors import BadData
from swarmgame.game.author_records import RemoteUse
from swarmgame.game.components import ComponentContext, Notice, RolloutUse, Trainer
from swarmgame.game.state import FinishReason, GameState, Group, GroupKey, PeerId, Prompt, Rewards, Rollout, Round
from swarmgame.seeds import derive_seed
from swarmgame.trainer.action_advantages import action_advantages
from swarmgame.trainer.action_bounds import Action, ActionBounds
from swarmgame.trainer.action_values import ActionValues, check_values, load_values
from swarmgame.trainer.claims import is_possible
from swarmgame.trainer.not_finite import SkippedSteps, first_module
from swarmgame.trainer.optimization import Optimization
from swarmgame.trainer.policies import build_policy, check_policy, logits_of, quiet, save_policy, stacked
from swarmgame.trainer.policy_gradient_config import PolicyGradientConfig
from swarmgame.user_code import kind_of

logger = logging.getLogger(__name__)

MISMATCH_BOUND = 1e-2
"""Largest mean difference, in nats, between what was sampled and what the first step computes of the same weights."""


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
        self._notices = [Notice("evaluation-mode", text) for text in quiet(self.module)]
        self._has_compared = False
        self._optimization = Optimization(
            {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad},
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
        self._values = ActionValues(config, context) if config.baseline == "value" else None
        self.rollouts_per_group = config.generations
        self._version = 0
        self._skipped = SkippedSteps()
        self._bounds = ActionBounds(context.max_influence, context.influence_part, config.importance_cap)
        self._last_update: dict[GroupKey, list[RolloutUse]] = {}

    @classmethod
    def check_with(
        cls, config: Any, context: ComponentContext, prompt: Prompt | None, *, load_model: bool = False
    ) -> Sequence[str]:
        observation = _observation(prompt.payload) if prompt is not None else None
        found = check_policy(config.module, config.actions, config.options, observation, load=load_model)
        if config.baseline == "value":
            check_values(config, observation, load=load_model)
        return found

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
        observations = stacked([_observation(prompt.payload) for prompt in prompts])
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
        observations = observations.to(self.context.device)
        logits = logits_of(self.module, observations, self.config.module, self.config.actions, self.config.options)
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if bool(logprobs.isnan().any()):
            raise BadData(
                f"the policy's output for an observation is not finite, {first_module(self.module, observations)}. "
                "Likely cause: a learning rate that is too high, or observations that are not finite. Lower "
                "learningRate, set maxGradNorm, and look at the data's payloads"
            )
        return logprobs

    def knows(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) == 1 and 0 <= token_ids[0] < self.config.actions

    def decode(self, token_ids: Sequence[int]) -> str | None:
        return str(token_ids[0]) if self.knows(token_ids) else None

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
        skipped = 0
        self._last_update = {}
        self._bounds.begin(state, rewards)
        for part in parts:
            scored = self._actions(state, part, rewards, counts)
            for action in scored:
                unused = [RolloutUse(math.nan, 0.0)] * len(state.group_of(action.group).rollouts)
                self._last_update.setdefault(action.group, unused)[action.position] = RolloutUse(action.advantage, 0.0)
            actions = self._bounds.limit(scored)
            # Without an entropy bonus, equal rewards give no gradient, and a step on old momentum would be noise.
            has_bonus = self.config.entropy_bonus != 0
            if not actions or not (has_bonus or any(action.advantage * action.influence != 0 for action in actions)):
                continue
            own = has_bonus or any(action.advantage != 0 and action.behavior_logprob is None for action in actions)
            norm = self._step(actions, sums, only_with_gradient=not own)
            if norm == 0 and not own:
                continue
            if norm is not None:
                norms.append(norm)
                self._version += 1
                if self._values is not None:
                    self._values.step(actions)
            else:
                logger.warning("the gradient was not finite: the step was left out")
                skipped += 1
        self._skipped.add(steps=len(norms), skipped=skipped, round=state.round.number)
        values = {} if self._values is None else self._values.taken_metrics()
        return {**self._metrics(counts, sums, norms), "steps_skipped": float(skipped), **values}

    def _step(self, actions: Sequence[Action], sums: dict[str, float], *, only_with_gradient: bool) -> float | None:
        ranks = self.context.ranks
        own = actions[ranks.rank :: ranks.size]
        measured: list[list[float]] = []
        self._optimization.clear()
        if own:
            device = self.context.device
            logprobs_BA = self._logprobs(stacked([action.observation for action in own]))
            chosen_B = logprobs_BA.gather(1, torch.tensor([[action.action] for action in own], device=device)).squeeze(
                1
            )
            advantages_B = torch.tensor([action.advantage * action.influence for action in own], device=device)
            self._compare(own, chosen_B.detach())
            found_BC = self._bounds.compare(own, chosen_B.detach())
            weights_B = found_BC[:, 0]
            entropy_B = -(logprobs_BA.exp() * logprobs_BA).sum(dim=1)
            loss = -(weights_B * advantages_B * chosen_B + self.config.entropy_bonus * entropy_B).sum() / len(actions)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimization.accumulate()
            measured = found_BC.tolist()
            for name, value in (("loss", loss), ("entropy", entropy_B.sum()), ("importance", weights_B.sum())):
                sums[name] += float(value.detach())
            sums["actions"] += len(own)
        for rank, rows in enumerate(map(json.loads, ranks.gather(json.dumps(measured).encode()))):
            for action, row in zip(actions[rank :: ranks.size], rows, strict=True):
                self._last_update[action.group][action.position] = self._bounds.use_of(action, row)
        self._bounds.end_update()
        return self._optimization.step(self.config.learning_rate, ranks, only_with_gradient=only_with_gradient)

    def _compare(self, actions: Sequence[Action], logprobs_B: Tensor) -> None:
        """Note where the first step, before which no weight has changed, computes other log-probabilities of own
        actions than sampling did.
        """
        pairs = zip(actions, logprobs_B.tolist(), strict=True)
        apart = [abs(now - action.sampled_logprob) for action, now in pairs if action.sampled_logprob is not None]
        if self._has_compared or not apart:
            return
        self._has_compared = True
        found = sum(apart) / len(apart)
        if found > MISMATCH_BOUND:
            text = (
                f"sampling and training differ on actions of the same weights, by {found:.2g} nats in the first step, "
                f"and at most {MISMATCH_BOUND:g} is rounding: the module has noise that evaluation mode does not "
                "switch off, or what it computes for an observation depends on the others of its batch"
            )
            self._notices.append(Notice("sampler-mismatch", text))

    def _actions(
        self, state: GameState, keys: Sequence[GroupKey], rewards: Rewards, counts: Counter[str]
    ) -> list[Action]:
        """Return the usable actions of the given groups with their advantages; others are counted and left out."""
        found: list[tuple[Tensor, Rollout, float, bool, int, int]] = []
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
                    found.append((observation, rollout, float(score), own, number, at))
        expected = None if self._values is None else self._values.of([observation for observation, *_ in found])
        scored = [(number, score, own) for _, _, score, own, number, _ in found]
        advantages = action_advantages(scored, self.config.baseline, expected, scale=self.config.scale)
        return [
            Action(
                keys[number],
                at,
                observation,
                rollout.token_ids[0],
                advantage,
                None if own else rollout.logprobs[0],
                sampled_logprob=rollout.logprobs[0] if own else None,
                reward=score,
            )
            for (observation, rollout, score, own, number, at), advantage in zip(found, advantages, strict=True)
        ]

    def _is_action(self, rollout: Rollout) -> bool:
        if not self.knows(rollout.token_ids):
            return False
        claimed = rollout.logprobs[0]
        return math.isfinite(claimed) and claimed <= 1e-3 and is_possible(claimed, 1, self.config.actions)

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

    def notices(self) -> Sequence[Notice]:
        return self._notices

    def last_update(self) -> Mapping[GroupKey, Sequence[RolloutUse]]:
        return self._last_update

    def remote_uses(self) -> Mapping[PeerId, RemoteUse]:
        return self._bounds.remote_uses()

    # ── state
    def weights(self) -> Mapping[str, Any]:
        values = {} if self._values is None else self._values.weights
        return {**self._optimization.weights, **dict(self.module.named_buffers()), **values}

    def state_dict(self) -> Mapping[str, Any]:
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self.module.named_buffers()}
        return {
            "policy_version": self._version,
            "optimization": self._optimization.state_dict(),
            "buffers": buffers,
            "bounds": self._bounds.state_dict(),
            **({} if self._values is None else {"values": self._values.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimization.load_state_dict(state["optimization"])
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state["buffers"][name])
        self._version = int(state["policy_version"])
        self._bounds.load_state_dict(state.get("bounds", {}))
        load_values(self._values, state.get("values"))

    def export(self, folder: Path, *, merge_adapters: bool = True) -> None:
        """Write what `policies.load_policy` reads."""
        save_policy(folder, self.module, self.config.module, self.config.actions, self.config.options)


def _observation(payload: Any) -> Tensor:
    """Return the observation; a single 1 where the prompt has none.

    Raises:
        BadData: the payload is no array of numbers.
    """
    if payload is None:
        return torch.ones(1)
    if isinstance(payload, Tensor):
        return payload.detach().to("cpu", torch.float32)
    try:
        return torch.from_numpy(np.array(payload, dtype=np.float32))
    except (TypeError, ValueError) as error:
        expected = "numbers in a list or an array, of the same length in each row"
        raise BadData(f"a prompt's payload is {kind_of(payload)}; expected {expected} ({error})") from error


def _rollout(action: int, logprob: float) -> Rollout:
    return Rollout(str(action), (action,), (logprob,), FinishReason.STOP)
