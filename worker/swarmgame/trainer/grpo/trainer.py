"""The GRPO trainer: a causal language model that answers prompts and is trained on the relative rewards of its
answers.

It combines `policy` (weights and tokenizer), `generation`, `batch` (which rollouts count, and how much), `loss` and
`optimization`. Invariants: training uses the ids that were
sampled, EOS included, and the log-probabilities of the sampler; a round without a training signal changes nothing,
not even the optimizer's moments; any number of ranks makes the same update.
"""

from __future__ import annotations

import logging
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
from swarmgame.game.components import ComponentContext, RolloutUse, Trainer
from swarmgame.game.state import FinishReason, GameState, Group, GroupKey, Prompt, Rewards, Rollout, Round
from swarmgame.inference.engines import make_sampler
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.ahead import GenerationAhead, Request
from swarmgame.trainer.grpo.batch import TrainingBatch, TrainingSample, engine_mismatch, micro_batches, training_batches
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.export import export_policy
from swarmgame.trainer.grpo.generation import Generation
from swarmgame.trainer.grpo.loss import LossInputs, Normalizer, entropy_threshold, importance_weights, loss
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.schedule import learning_rate
from swarmgame.trainer.grpo.step_stats import StepStats, lag, report
from swarmgame.trainer.grpo.uses import rollout_uses
from swarmgame.trainer.optimization import Optimization

logger = logging.getLogger(__name__)


class GRPOTrainer(Trainer):
    """Group-relative policy optimization of a causal language model; `use: grpo`."""

    Config: ClassVar[type[BaseModel]] = GRPOConfig
    needs_model = True

    def __init__(self, config: GRPOConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: GRPOConfig = config
        self.policy = Policy(config, context)
        self._generation = Generation(
            make_sampler(self.policy, config.sampler, longest=self.policy.longest_prompt + config.max_new_tokens),
            context.ranks,
            rollouts_per_batch=config.rollouts_per_batch,
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
        self._last_update: Mapping[GroupKey, Sequence[RolloutUse]] = {}
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
            if round.sampling is not None:
                generations, temperature = round.sampling.samples, round.sampling.temperature or config.temperature
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

    # ── training
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        rate = learning_rate(self.config, self._rounds)
        counts: Counter[str] = Counter()
        stats = StepStats()
        version = self._version
        updates: list[TrainingBatch] = []
        if self._generation.sampler.uses_model:
            self._ahead.finish()
        with self._train_mode(state.round):
            exact = self._generation.sampler.exact
            for update in training_batches(state, rewards, self.policy, self.config, version, exact=exact):
                counts.update(update.counts)
                updates.append(update)
                if not update.samples:
                    continue
                samples = _share(update.samples, self.context.ranks.rank, self.context.ranks.size)
                normalizer = self._normalizer(update, samples)
                for _ in range(self.config.iterations):
                    stats.add(self._step(samples, normalizer, rate))
                stats.add(lag(samples))
        self._last_update = rollout_uses(updates, self.context.ranks)
        # Before the checkpoint: it must hold the rollouts of weights that no longer exist.
        self._ahead.finish()
        dropped = self._ahead.forget(state.round.number)
        self._rounds += self.config.update != "none"
        if self._version != version:
            self._generation.sampler.update_weights(self._version)
        metrics = report(counts, stats.over(self.context.ranks.gather(stats.packed())), rate)
        if self.config.overlap:
            own = [contribution for stage in range(len(state.stages)) if (contribution := state.own(stage)) is not None]
            metrics["policy_lag"] = float(
                max((version - contribution.policy_version for contribution in own), default=0)
            )
            metrics["ahead_dropped"] = float(dropped)
        return {**metrics, **self._generation.sampler.metrics()}

    def _step(self, samples: Sequence[TrainingSample], normalizer: Normalizer, rate: float) -> StepStats:
        """Take one optimizer step: gradients of all micro-batches of all ranks, then AdamW."""
        while True:
            self._optimization.clear()
            stats = StepStats()
            try:
                for batch in self._micro_batches(samples):
                    stats.add(self._backward(batch, normalizer))
                break
            except torch.cuda.OutOfMemoryError as error:
                # Repeat the complete step: an aborted backward pass has left part of its gradients.
                self._optimization.clear()
                if not self._generation.sampler.release():
                    self._halve_micro_batches(samples, error)
            torch.cuda.empty_cache()
        norm = self._optimization.step(rate, self.context.ranks)
        if norm is None:
            logger.warning("the gradient was not finite: the step was left out")
            stats.skipped += 1
        else:
            self._version += 1
            stats.norms.append(norm)
        return stats

    def _backward(self, batch: Sequence[TrainingSample], normalizer: Normalizer) -> StepStats:
        prompts, completions = [sample.prompt for sample in batch], [sample.completion for sample in batch]
        logprobs, entropies, mask = self.policy.score(prompts, completions)
        old, importance = self._old_logprobs(batch, logprobs.detach(), mask)
        advantages = self._moved([sample.advantage for sample in batch], torch.float32)
        truncated = self._moved([sample.truncated for sample in batch], torch.bool)
        inputs = LossInputs(
            logprobs_BT=logprobs,
            old_logprobs_BT=old,
            advantages_B=advantages,
            mask_BT=mask,
            entropies_BT=entropies,
            reference_logprobs_BT=self.policy.score_reference(prompts, completions) if self.config.beta > 0 else None,
            truncated_B=truncated,
            remote_importance_weights_BT=importance,
        )
        outputs = loss(inputs, self.config, normalizer)
        outputs.loss.backward()  # type: ignore[no-untyped-call]
        self._optimization.accumulate()
        metrics = dict(outputs.metrics)
        if (mismatch := engine_mismatch(batch, logprobs)) is not None:
            metrics["mismatch_kl"] = mismatch
        return StepStats(outputs.loss.detach(), metrics)

    def _old_logprobs(
        self, batch: Sequence[TrainingSample], current: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the denominators of the ratio, and the importance weights of remote rollouts.

        For our own samples the denominator is what the sampler reported. For others it is our policy when training
        began, weighted by its distance to theirs.
        """
        # One copy to the device for all samples; padding keeps what `current` has there.
        own = self._rectangle([sample.sampler_logprobs for sample in batch], current, mask)
        remote = [index for index, sample in enumerate(batch) if sample.sampler_logprobs is None]
        if not remote:
            return own, None
        started = current.clone()
        for index in remote:
            sample, length = batch[index], len(batch[index].completion)
            if sample.initial_logprobs is None:
                sample.initial_logprobs = current[index, :length].clone()
            else:
                started[index, :length] = sample.initial_logprobs
        is_own = self._moved([sample.sampler_logprobs is not None for sample in batch], torch.bool).unsqueeze(1)
        old = torch.where(is_own, own, started)
        given = [s.behavior_logprobs if s.sampler_logprobs is None else s.sampler_logprobs for s in batch]
        importance = importance_weights(old, self._rectangle(given, old, mask), mask, self.config)
        means = (importance * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        for sample, mean in zip(batch, means, strict=True):
            sample.weight = mean
        return old, importance

    def _rectangle(self, given: Sequence[Sequence[float] | None], otherwise_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return one row per rollout: the given numbers, or `otherwise_BT` on padding and where none are given."""
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

    def _micro_batches(self, samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
        return micro_batches(samples, self._tokens_per_micro_batch, packed=self.policy.packed)

    def _normalizer(self, update: TrainingBatch, samples: Sequence[TrainingSample]) -> Normalizer:
        """Return the batch's normalizer, with the entropy below which no token is trained on if the options need it."""
        if not self.config.needs_entropies:
            return update.normalizer
        found = []
        with torch.no_grad():
            for batch in self._micro_batches(samples):
                _, entropies, mask = self.policy.score(
                    [sample.prompt for sample in batch], [sample.completion for sample in batch]
                )
                found.append(entropies[mask].float().cpu())
        own = torch.cat(found) if found else torch.zeros(0)
        gathered = self.context.ranks.gather(own.numpy().astype("<f4").tobytes())
        entropies_of_ranks = np.concatenate([np.frombuffer(part, dtype="<f4") for part in gathered])
        return replace(
            update.normalizer,
            entropy_threshold=entropy_threshold(torch.from_numpy(entropies_of_ranks.copy()), self.config),
        )

    def _halve_micro_batches(self, samples: Sequence[TrainingSample], error: Exception) -> None:
        largest = max(sum(sample.length for sample in batch) for batch in self._micro_batches(samples))
        single = all(len(batch) == 1 for batch in self._micro_batches(samples))
        if single:
            raise Temporary(
                f"the device has no memory to train on a single rollout of {largest} tokens: lower maxNewTokens, or "
                "use "
                "gradientCheckpointing, lora or a device with more memory"
            ) from error
        self._tokens_per_micro_batch = max(1, min(self._tokens_per_micro_batch, largest) // 2)
        logger.warning(
            "out of memory while training: micro-batches of %d tokens from now on", self._tokens_per_micro_batch
        )

    @contextmanager
    def _train_mode(self, round: Round) -> Iterator[None]:
        """Put the model into training mode, with a random state of its own (dropout of adapters)."""
        device = torch.device(self.context.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(round.peer_seed, "train", round.number, self.context.ranks.rank))
            self.policy.model.train()
            try:
                yield
            finally:
                self.policy.model.eval()

    def last_update(self) -> Mapping[GroupKey, Sequence[RolloutUse]]:
        return self._last_update

    # ── state
    def weights(self) -> Mapping[str, Any]:
        return self._optimization.weights

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "policy_version": self._version,
            "rounds": self._rounds,
            "tokens_per_micro_batch": self._tokens_per_micro_batch,
            "tokenizer": self.tokenizer,
            "dtype": str(self.policy.dtype).removeprefix("torch."),
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

    @classmethod
    def prepare_export(cls, config: GRPOConfig, state: Mapping[str, Any]) -> tuple[GRPOConfig, Mapping[str, Any]]:
        """Return a configuration in the type that trained, and the weights, without what only sampling and training
        use: a generation server, compiled layers, the reference of the KL term, the optimizer's moments.
        """
        changes = {
            "dtype": state.get("dtype", config.dtype),
            "sampler": "eager",
            "layout": "padded",
            "compile": False,
            "overlap": False,
            "beta": 0.0,
            "gradient_checkpointing": False,
        }
        weights = {**state, "optimization": {**state["optimization"], "moments": {}}, "ahead": ()}
        return config.model_copy(update=changes), weights

    @property
    def has_adapters(self) -> bool:
        return self.policy.adapted is not None

    def export(self, folder: Path, *, merge_adapters: bool = True) -> None:
        export_policy(self.policy, folder, merge_adapters=merge_adapters)

    def close(self) -> None:
        self._ahead.close()
        self._generation.sampler.close()


def _share(samples: Sequence[TrainingSample], rank: int, size: int) -> list[TrainingSample]:
    """Return the samples of a rank: every n-th by length, so that all ranks have about the same work."""
    return sorted(samples, key=lambda sample: sample.length)[rank::size]
