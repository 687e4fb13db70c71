"""The GRPO trainer: a causal language model that answers prompts and learns from how its answers compare with each
other.

It joins the parts: `policy` (weights and tokenizer), `generation`, `rows` (which rollouts count, and how much), `loss`,
`optimization`. Not here: the mathematics, the exchange, the rewards. Invariants: training uses the ids that were
sampled, EOS included, and the log-probabilities of the sampler; a round in which nothing can be learned moves nothing,
the optimizer's moments included; any number of ranks makes the same update.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from swarmgame.errors import Temporary
from swarmgame.game.components import ComponentContext, Trainer
from swarmgame.game.state import FinishReason, GameState, Group, Prompt, Rewards, Rollout, Round
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.ahead import GenerationAhead, Request
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.generation import Generation, sampler_of
from swarmgame.trainer.grpo.loss import LossInputs, Mean, Normalizer, entropy_threshold, importance_weights, loss
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.rows import Row, Update, engine_mismatch, micro_batches, updates
from swarmgame.trainer.grpo.schedule import learning_rate
from swarmgame.trainer.optimization import Optimization

logger = logging.getLogger(__name__)

LOSS_METRICS = ("entropy", "kl", "mismatch_kl", "lag_kl", "clip_low", "clip_high", "ratio", "importance")
"""Metrics of the loss that are reported, as means over the tokens trained on (`lag_kl`: over those of lagged rows)."""


class GRPOTrainer(Trainer):
    """Group-relative policy optimization of a causal language model; `use: grpo`."""

    Config: ClassVar[type[BaseModel]] = GRPOConfig

    def __init__(self, config: GRPOConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: GRPOConfig = config
        self.policy = Policy(config, context)
        self._generation = Generation(
            sampler_of(self.policy, config), context.ranks, rollouts_per_batch=config.rollouts_per_batch
        )
        self._optimization = Optimization(
            self.policy.parameters,
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
        self._ahead = GenerationAhead(self._generation, torch.device(context.device))
        self.generates_ahead = config.overlap
        self._version = 0
        self._sampling_version = 0
        self._rounds = 0
        tokens = config.tokens_per_micro_batch
        self._tokens_per_micro_batch = tokens if tokens != "auto" else 32_768 if self.policy.packed else 16_384

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def sampling_version(self) -> int:
        return self._sampling_version

    @property
    def tokenizer(self) -> str:
        return self.policy.hash

    # ── generating
    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        self._ahead.finish()  # one thread samples at a time
        request = self._request(prompts, round)
        ready = self._ahead.take(request) if round.stage == 0 and not round.evaluation else None
        if ready is not None:
            self._sampling_version, sampled = ready.version, ready.completions
        else:
            self._sampling_version = self._version
            sampled = self._generation(request.token_ids, request.n, request.params, seed=request.seed)
        return [
            Group(prompt, tuple(map(self._rollout, group)))
            for prompt, group in zip(request.prompts, sampled, strict=True)
        ]

    def generate_ahead(self, prompts: Sequence[Prompt], round: Round) -> None:
        self._ahead.begin(self._request(prompts, round), self._version)

    def _request(self, prompts: Sequence[Prompt], round: Round) -> Request:
        config, ranks = self.config, self.context.ranks
        encoded = [replace(prompt, token_ids=self.policy.encode(prompt)) for prompt in prompts]
        generations, temperature = config.generations, config.temperature
        if round.evaluation:
            generations, temperature = config.evaluation_generations, config.evaluation_temperature
        params = SamplingParams(
            max_new_tokens=config.max_new_tokens,
            temperature=temperature or 1.0,
            top_k=config.top_k,
            top_p=config.top_p,
            min_new_tokens=config.min_new_tokens,
            greedy=temperature == 0,
        )
        purpose = "evaluate" if round.evaluation else "generate"
        seed = derive_seed(round.peer_seed, purpose, round.number, round.stage, ranks.rank)
        return Request.of(round, encoded, generations, params, seed=seed, ranks=ranks.size)

    def _rollout(self, sampled: Sampled) -> Rollout:
        reason = FinishReason.STOP if sampled.stopped else FinishReason.LENGTH
        return Rollout(self.policy.decode(sampled.token_ids) or "", sampled.token_ids, sampled.logprobs, reason)

    def decode(self, token_ids: Sequence[int]) -> str | None:
        return self.policy.decode(token_ids)

    # ── learning
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        rate = learning_rate(self.config, self._rounds)
        counts: Counter[str] = Counter()
        stats = StepStats()
        version = self._version
        if self._generation.sampler.uses_model:
            self._ahead.finish()
        with self._learning(state.round):
            exact = self._generation.sampler.exact
            for update in updates(state, rewards, self.policy, self.config, version, exact=exact):
                counts.update(update.counts)
                if not update.rows:
                    continue
                rows = _share(update.rows, self.context.ranks.rank, self.context.ranks.size)
                normalizer = self._normalizer(update, rows)
                for _ in range(self.config.iterations):
                    stats.add(self._step(rows, normalizer, rate))
                stats.add(_lag(rows))
        # Here at the latest, so that a checkpoint holds what weights that no longer exist have sampled.
        self._ahead.finish()
        dropped = self._ahead.forget(state.round.number)
        self._rounds += self.config.update != "none"
        if self._version != version:
            self._generation.sampler.update_weights(self._version)
        metrics = _metrics(counts, stats.over(self.context.ranks.gather(stats.packed())), rate)
        if self.config.overlap:
            own = [contribution for stage in range(len(state.stages)) if (contribution := state.own(stage)) is not None]
            metrics["policy_lag"] = float(
                max((version - contribution.policy_version for contribution in own), default=0)
            )
            metrics["ahead_dropped"] = float(dropped)
        return {**metrics, **self._generation.sampler.metrics()}

    def _step(self, rows: Sequence[Row], normalizer: Normalizer, rate: float) -> StepStats:
        """One optimizer step: gradients of all micro-batches of all ranks, then AdamW."""
        while True:
            self._optimization.clear()
            stats = StepStats()
            try:
                for batch in self._micro_batches(rows):
                    stats.add(self._backward(batch, normalizer))
                break
            except torch.cuda.OutOfMemoryError as error:
                # The complete step again: a backward pass that was cut short has left part of its gradients behind.
                self._optimization.clear()
                if not self._generation.sampler.release():
                    self._halve_micro_batches(rows, error)
            torch.cuda.empty_cache()
        norm = self._optimization.step(rate, self.context.ranks)
        if norm is None:
            logger.warning("the gradient was not finite: the step was left out")
            stats.skipped += 1
        else:
            self._version += 1
            stats.norms.append(norm)
        return stats

    def _backward(self, batch: Sequence[Row], normalizer: Normalizer) -> StepStats:
        prompts, completions = [row.prompt for row in batch], [row.completion for row in batch]
        logprobs, entropies, mask = self.policy.score(prompts, completions)
        old, importance = self._old_logprobs(batch, logprobs.detach(), mask)
        advantages = self._moved([row.advantage for row in batch], torch.float32)
        truncated = self._moved([row.truncated for row in batch], torch.bool)
        inputs = LossInputs(
            logprobs_BT=logprobs,
            sampler_logprobs_BT=old,
            advantages_B=advantages,
            mask_BT=mask,
            entropies_BT=entropies,
            reference_logprobs_BT=self.policy.score_reference(prompts, completions) if self.config.beta > 0 else None,
            truncated_B=truncated,
            importance_BT=importance,
        )
        outputs = loss(inputs, self.config, normalizer)
        outputs.loss.backward()  # type: ignore[no-untyped-call]
        self._optimization.accumulate()
        metrics = dict(outputs.metrics)
        if (mismatch := engine_mismatch(batch, logprobs)) is not None:
            metrics["mismatch_kl"] = mismatch
        return StepStats(outputs.loss.detach(), metrics)

    def _old_logprobs(self, batch: Sequence[Row], current: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the ratio is taken against, and how much remote rollouts count.

        For our own rows: what the sampler reported. For those of others: our policy when training began, weighted by
        its distance to theirs.
        """
        # One copy to the device for all rows; padding keeps what `current` has there.
        own = self._rectangle([row.sampler for row in batch], current, mask)
        remote = [index for index, row in enumerate(batch) if row.sampler is None]
        if not remote:
            return own, None
        started = current.clone()
        for index in remote:
            row, length = batch[index], len(batch[index].completion)
            if row.start is None:
                row.start = current[index, :length].clone()
            else:
                started[index, :length] = row.start
        is_own = self._moved([row.sampler is not None for row in batch], torch.bool).unsqueeze(1)
        old = torch.where(is_own, own, started)
        sender = self._rectangle([row.sampler if row.sampler is not None else row.sender for row in batch], old, mask)
        return old, importance_weights(old, sender, mask, self.config)

    def _rectangle(self, given: Sequence[Sequence[float] | None], otherwise_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return one row per rollout: the given numbers, and `otherwise_BT` on padding and in rows where none are
        given.
        """
        values = np.zeros(tuple(otherwise_BT.shape), dtype=np.float32)
        for row, numbers in zip(values, given, strict=True):
            if numbers is not None:
                row[: len(numbers)] = numbers
        known = self._moved([numbers is not None for numbers in given], torch.bool).unsqueeze(1)
        return torch.where(known & mask_BT, self._moved(values, otherwise_BT.dtype), otherwise_BT)

    def _moved(self, values: Any, dtype: torch.dtype) -> Tensor:
        """Move numbers to the device without waiting for it."""
        made = torch.as_tensor(values, dtype=dtype)
        device = torch.device(self.context.device)
        return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)

    def _micro_batches(self, rows: Sequence[Row]) -> list[list[Row]]:
        return micro_batches(rows, self._tokens_per_micro_batch, packed=self.policy.packed)

    def _normalizer(self, update: Update, rows: Sequence[Row]) -> Normalizer:
        """The update's, with the entropy below which no token is trained on, where that was asked for."""
        if not self.config.needs_entropies:
            return update.normalizer
        found = []
        with torch.no_grad():
            for batch in self._micro_batches(rows):
                _, entropies, mask = self.policy.score([row.prompt for row in batch], [row.completion for row in batch])
                found.append(entropies[mask].float().cpu())
        own = torch.cat(found) if found else torch.zeros(0)
        gathered = self.context.ranks.gather(own.numpy().astype("<f4").tobytes())
        everything = np.concatenate([np.frombuffer(part, dtype="<f4") for part in gathered])
        return replace(
            update.normalizer, entropy_threshold=entropy_threshold(torch.from_numpy(everything.copy()), self.config)
        )

    def _halve_micro_batches(self, rows: Sequence[Row], error: Exception) -> None:
        largest = max(sum(row.length for row in batch) for batch in self._micro_batches(rows))
        alone = all(len(batch) == 1 for batch in self._micro_batches(rows))
        if alone:
            raise Temporary(
                f"the device has no memory to learn from a single rollout of {largest} tokens: lower maxNewTokens, or use "
                "gradientCheckpointing, lora or a device with more memory"
            ) from error
        self._tokens_per_micro_batch = max(1, min(self._tokens_per_micro_batch, largest) // 2)
        logger.warning(
            "out of memory while training: micro-batches of %d tokens from now on", self._tokens_per_micro_batch
        )

    @contextmanager
    def _learning(self, round: Round) -> Iterator[None]:
        """Training mode, with a random state of its own (dropout of adapters)."""
        device = torch.device(self.context.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(round.peer_seed, "train", round.number, self.context.ranks.rank))
            self.policy.model.train()
            try:
                yield
            finally:
                self.policy.model.eval()

    # ── keeping
    def state_dict(self) -> Mapping[str, Any]:
        return {
            "policy_version": self._version,
            "rounds": self._rounds,
            "tokens_per_micro_batch": self._tokens_per_micro_batch,
            "tokenizer": self.tokenizer,
            "optimization": self._optimization.state_dict(),
            "ahead": self._ahead.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["tokenizer"] != self.tokenizer:
            raise ValueError(
                f"the saved policy has tokenizer {state['tokenizer']}, this model {self.tokenizer}: it is another model"
            )
        self._optimization.load_state_dict(state["optimization"])
        self._version, self._rounds = int(state["policy_version"]), int(state["rounds"])
        self._tokens_per_micro_batch = int(state["tokens_per_micro_batch"])
        self._ahead.load_state_dict(state.get("ahead", ()))
        self._generation.sampler.update_weights(self._version)

    def export(self, folder: Path) -> None:
        self.policy.export(folder)

    def close(self) -> None:
        self._ahead.close()
        self._generation.sampler.close()


class StepStats:
    """Loss and metrics of micro-batches, steps and ranks, added up."""

    def __init__(self, loss: Tensor | float = 0.0, means: Mapping[str, Mean] | None = None) -> None:
        self.loss = loss
        self.means = dict(means or {})
        self.norms: list[float] = []
        self.skipped = 0

    def add(self, other: StepStats) -> None:
        self.loss = self.loss + other.loss
        for name, mean in other.means.items():
            self.means[name] = self.means[name] + mean if name in self.means else mean
        self.norms += other.norms
        self.skipped += other.skipped

    def packed(self) -> bytes:
        # One tensor for all numbers: each float() of a tensor on a device waits for it.
        values = [self.loss, *(part for mean in self.means.values() for part in (mean.total, mean.weight))]
        tensors = [value.detach().double() for value in values if isinstance(value, Tensor)]
        measured = iter(torch.stack(tensors).tolist() if tensors else [])
        loss, *parts = [next(measured) if isinstance(value, Tensor) else float(value) for value in values]
        means = dict(zip(self.means, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return json.dumps({"loss": loss, "means": means}).encode()

    def over(self, payloads: Sequence[bytes]) -> StepStats:
        """This rank's steps, with the losses and means of all ranks."""
        total = StepStats()
        for payload in payloads:
            part = json.loads(payload)
            total.add(StepStats(part["loss"], {name: Mean(*pair) for name, pair in part["means"].items()}))
        total.norms, total.skipped = self.norms, self.skipped
        return total


def _lag(rows: Sequence[Row]) -> StepStats:
    """`lag_kl`: how far the policy had moved, when training began, from the version that sampled our lagged rows."""
    lagged = [row for row in rows if row.lagged and row.start is not None]
    if not lagged:
        return StepStats()
    started = torch.cat([row.start for row in lagged if row.start is not None]).float()
    sampled = torch.tensor([logprob for row in lagged for logprob in row.sender or ()], device=started.device)
    drift = started - sampled
    return StepStats(0.0, {"lag_kl": Mean(float((drift.exp() - drift - 1).sum()), float(len(drift)))})


def _share(rows: Sequence[Row], rank: int, size: int) -> list[Row]:
    """A rank's rows: every n-th by length, so that all have about the same work."""
    return sorted(rows, key=lambda row: row.length)[rank::size]


def _metrics(counts: Mapping[str, int], stats: StepStats, rate: float) -> dict[str, float]:
    steps = len(stats.norms) + stats.skipped
    groups = counts.get("groups_trained", 0) + counts.get("groups_zero_advantage", 0)
    rollouts = counts.get("rollouts", 0)
    metrics = {
        "loss": float(stats.loss) / steps if steps else math.nan,
        "grad_norm": sum(stats.norms) / len(stats.norms) if stats.norms else math.nan,
        "learning_rate": rate,
        "steps": float(len(stats.norms)),
        "steps_skipped": float(stats.skipped),
        "zero_advantage_share": counts.get("groups_zero_advantage", 0) / groups if groups else math.nan,
        "truncated_share": counts.get("rollouts_truncated", 0) / rollouts if rollouts else math.nan,
        "completion_length": counts.get("completion_tokens", 0) / rollouts if rollouts else math.nan,
    }
    for name in LOSS_METRICS:
        metrics[name] = stats.means[name].value if name in stats.means else math.nan
    for name in (
        "groups_trained",
        "groups_external",
        "groups_retokenised",
        "groups_unscored",
        "foreign_dropped",
        "tokens_trained",
    ):
        metrics[name] = float(counts.get(name, 0))
    return metrics
