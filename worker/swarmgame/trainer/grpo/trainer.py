"""The GRPO trainer: a causal language model that answers prompts and is trained on the relative rewards of its
answers.

It combines `policy` (weights and tokenizer), `generation`, `batch` (which rollouts count, and how much), `loss` and
`optimization`. Invariants: training uses the ids that were sampled, EOS included, and the log-probabilities of the
sampler; a round without a training signal changes nothing, not even the optimizer's moments; any number of ranks makes
the same update. All ranks of a sharded policy make the same number of passes, empty ones where there are too few.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from swarmgame.errors import Temporary
from swarmgame.game.author_records import RemoteUse
from swarmgame.game.components import ComponentContext, Notice, RolloutUse, Trainer
from swarmgame.game.state import FinishReason, GameState, Group, GroupKey, PeerId, Prompt, Rewards, Rollout, Round
from swarmgame.inference.engines import make_sampler
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.inference.stop_strings import cut_at_stop
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.ahead import GenerationAhead
from swarmgame.trainer.grpo.batch import TrainingBatch, engine_mismatch, micro_batches, share_of_rank, training_batches
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.critic import Critic, load_critic
from swarmgame.trainer.grpo.denominators import denominators, filters_none
from swarmgame.trainer.grpo.entropy_quantile import with_entropy_threshold
from swarmgame.trainer.grpo.export import export_policy
from swarmgame.trainer.grpo.faulty_rollouts import FaultyRollouts
from swarmgame.trainer.grpo.generation import Generation
from swarmgame.trainer.grpo.loss import LossInputs, Mean, Normalizer
from swarmgame.trainer.grpo.model_check import check_model_files
from swarmgame.trainer.grpo.origin import check_origin, origin_of
from swarmgame.trainer.grpo.own_loss import loss_function, try_loss
from swarmgame.trainer.grpo.parity import Notices, ensure_parity
from swarmgame.trainer.grpo.peer_transcripts import check_options, transcripts_of
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.remote_bounds import RemoteBounds
from swarmgame.trainer.grpo.request import request_of
from swarmgame.trainer.grpo.samples import TrainingSample, Value, advantages_of, moved, trained_mask
from swarmgame.trainer.grpo.schedule import learning_rate
from swarmgame.trainer.grpo.sharding import doubts_of, passes_of_others, too_large
from swarmgame.trainer.grpo.step_stats import StepStats, lag, report
from swarmgame.trainer.grpo.uses import UpdateUses, uses_of
from swarmgame.trainer.not_finite import SkippedSteps
from swarmgame.trainer.optimization import Optimization

logger = logging.getLogger(__name__)


class GRPOTrainer(Trainer):
    """Group-relative policy optimization of a causal language model; `use: grpo`."""

    Config: ClassVar[type[BaseModel]] = GRPOConfig
    needs_model = True
    plays_episodes = True

    def __init__(self, config: GRPOConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: GRPOConfig = config
        self._loss = loss_function(config)
        self.policy = Policy(config, context)
        self.base_model = self.policy.base
        sampler = make_sampler(self.policy, config.sampler, longest=self.policy.longest_prompt + config.max_new_tokens)
        self.parity = ensure_parity(self.policy, sampler)
        self._notices = Notices(self.parity, self.policy.dtype)
        self._generation = Generation(sampler, context.ranks, rollouts_per_batch=config.rollouts_per_batch)
        self._optimization = self._make_optimization()
        self._critic: Critic | None = None
        if config.has_critic:
            cut = self._micro_batches, self._empty_passes, self._within_memory
            self._critic = Critic(self.policy, config, context, *cut)
        self._transcripts = transcripts_of(self.policy, self._generation, context)
        self._faulty = FaultyRollouts(self.policy)
        self._skipped = SkippedSteps()
        self._ahead = GenerationAhead(self._generation, torch.device(context.device))
        self.generates_ahead = config.overlap
        self.tokens_per_rollout = config.max_new_tokens if self._transcripts is None else self._transcripts.longest
        self.rollouts_per_group = config.generations
        self.filters_sampling = not filters_none(config)
        self.has_shared_state = self.policy.is_sharded
        self._version = 0
        self._sampling_version = 0
        self._bounds = RemoteBounds(context.max_influence, context.influence_part)
        self._uses = UpdateUses()
        self._rounds = 0
        tokens = config.tokens_per_micro_batch
        self._tokens_per_micro_batch = tokens if tokens != "auto" else 32_768 if self.policy.packed else 16_384

    def _make_optimization(self) -> Optimization:
        return Optimization(self.policy.parameters, **self.config.optimizer)

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
        request = request_of(self.policy, prompts, round, self.context.ranks)
        if self._transcripts is not None:
            self._sampling_version = self._version
            played = self._transcripts(request.prompts, request.n, request.params, request.seed)
            made = [Group(prompt, tuple(group)) for prompt, group in zip(request.prompts, played, strict=True)]
            return self._faulty.without(made, round.number)
        ready = self._ahead.take(request) if round.stage == 0 and not round.evaluation else None
        if ready is not None:
            self._sampling_version, sampled = ready.version, ready.completions
        else:
            self._sampling_version = self._version
            sampled = self._generation(request.token_ids, request.n, request.params, seed=request.seed)
        groups = [
            Group(prompt, tuple(self._rollout(each, request.params) for each in group))
            for prompt, group in zip(request.prompts, sampled, strict=True)
        ]
        return self._faulty.without(groups, round.number)

    def generate_ahead(self, prompts: Sequence[Prompt], round: Round) -> None:
        self._ahead.begin(request_of(self.policy, prompts, round, self.context.ranks), self._version)

    def _rollout(self, sampled: Sampled, params: SamplingParams) -> Rollout:
        sampled = cut_at_stop(sampled, params.stop, self.policy.decode, least=params.min_new_tokens)
        reason = FinishReason.STOP if sampled.stopped else FinishReason.LENGTH
        return Rollout(self.policy.completions.of_own(sampled.token_ids), sampled.token_ids, sampled.logprobs, reason)

    def decode(self, token_ids: Sequence[int]) -> str | None:
        return self.policy.decode(token_ids)

    def observation_ids(self, observation: str, last: int) -> Sequence[int] | None:
        return self._transcripts.observation_ids(observation, last) if self._transcripts is not None else None

    def knows(self, token_ids: Sequence[int]) -> bool:
        return self.policy.completions.knows(token_ids)

    # ── training
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        rate = learning_rate(self.config, self._rounds)
        counts, stats = Counter[str](), StepStats()
        version = self._version
        updates: list[TrainingBatch] = []
        self._bounds.begin(state, rewards)
        if self._generation.sampler.uses_model:
            self._ahead.finish()
        if self.policy.is_sharded and self._generation.sampler.release():
            torch.cuda.empty_cache()  # not only when memory runs out, as below: a rank cannot repeat a step alone
        seed = derive_seed(state.round.peer_seed, "train", state.round.number, self.context.ranks.rank)
        with self.policy.in_training(seed), self.context.ranks.guarded("training on shards"):
            exact, critic = self._generation.sampler.exact, None if self._critic is None else self._critic.advantages
            made = training_batches(
                state, rewards, self.policy, self.config, version, exact=exact, bounds=self._bounds, critic=critic
            )
            for update in made:
                counts.update(update.counts)
                updates.append(update)
                if not update.samples:
                    continue
                samples = share_of_rank(update.samples, self.context.ranks.rank, self.context.ranks.size)
                normalizer = self._normalizer(update, samples)
                # Where none of our own has a signal and others' are refused, there is no gradient, and no step.
                signal = self.config.has_other_terms or any(s.advantage != 0 and not s.remote for s in update.samples)
                for _ in range(self.config.iterations):
                    step = self._step(samples, normalizer, rate, only_with_gradient=not signal)
                    self._notices.compare(step)
                    stats.add(step)
                    if step.skipped:  # with the same weights and samples the next ones would be too
                        break
                stats.add(lag(samples))
        self._uses = uses_of(updates, self.config, self.context.ranks)
        self._bounds.note(self._uses.offered)
        # Before the checkpoint: it must hold the rollouts of weights that no longer exist.
        self._ahead.finish()
        dropped = self._ahead.forget(state.round.number)
        self._rounds += self.config.update != "none"
        if self._version != version:
            self._weights_changed()
        left_out = self._faulty.taken()
        self._skipped.add(steps=len(stats.norms), skipped=stats.skipped + left_out, round=state.round.number)
        metrics = report(counts, stats.over(self.context.ranks.gather(stats.packed())), rate)
        metrics |= {"rollouts_not_finite": float(left_out), "remote_influence": self._uses.remote_influence}
        if self._critic is not None:
            metrics |= self._critic.metrics()
        if self.config.overlap:
            own = [contribution for stage in range(len(state.stages)) if (contribution := state.own(stage)) is not None]
            metrics["policy_lag"] = float(max((version - each.policy_version for each in own), default=0))
            metrics["ahead_dropped"] = float(dropped)
        return {**metrics, **self._generation.sampler.metrics()}

    def notices(self) -> Sequence[Notice]:
        policy = self.policy
        texts = *policy.encoder.notices(), *policy.completions.notices()
        return [*self._notices.found, *texts, *self._faulty.notices()]

    def _weights_changed(self) -> None:
        with self.context.ranks.guarded("copying the weights"):
            self.policy.refresh()
        self._generation.sampler.update_weights(self._version)

    def _step(
        self, samples: list[TrainingSample], normalizer: Normalizer, rate: float, *, only_with_gradient: bool
    ) -> StepStats:
        """Take one optimizer step: gradients of all micro-batches of all ranks, then AdamW. Samples that make it
        impossible are taken out of the list.
        """
        empty = self._empty_passes(samples)

        def passes() -> StepStats:
            found = StepStats()
            self._clear()
            for batch in self._micro_batches(samples):
                found.add(self._backward(batch, normalizer))
            for _ in range(empty):
                self.policy.empty_pass(reference=self.config.beta > 0)
            return found

        stats = self._within_memory(samples, passes)
        norm = self._optimization.step(rate, self.context.ranks, only_with_gradient=only_with_gradient)
        if self._critic is not None:
            base = self.config.learning_rate
            self._critic.step(rate / base if base else 1.0, taken=norm is not None)
        if norm == 0 and only_with_gradient:
            return stats
        if norm is not None:
            self._version += 1
            stats.norms.append(norm)
            return stats
        batches, empty = self._micro_batches(samples), self._empty_passes(samples)
        if self._faulty.leave_out(samples, batches, self.config, self.context.ranks, empty_passes=empty):
            return self._step(samples, normalizer, rate, only_with_gradient=only_with_gradient)
        logger.warning("the gradient was not finite: the step was left out")
        stats.skipped += 1
        return stats

    def _within_memory(self, samples: Sequence[TrainingSample], passes: Callable[[], Value]) -> Value:
        """Return what all passes of some samples give; repeated from the beginning where memory runs out."""
        while True:
            try:
                return passes()
            except torch.cuda.OutOfMemoryError as error:
                if self.policy.is_sharded:
                    raise too_large(self._tokens_per_micro_batch) from error
                self._clear()  # an aborted backward pass has left part of its gradients
                if not self._generation.sampler.release():
                    self._halve_micro_batches(samples, error)
            torch.cuda.empty_cache()

    def _clear(self) -> None:
        self._optimization.clear()
        if self._critic is not None:
            self._critic.clear()

    def _backward(self, batch: Sequence[TrainingSample], normalizer: Normalizer) -> StepStats:
        prompts, completions = [sample.prompt for sample in batch], [sample.completion for sample in batch]
        states: list[Tensor] = []
        given = () if self._critic is None else (states,)
        logprobs, entropies, scored = self.policy.score(prompts, completions, *given)
        mask = trained_mask(batch, scored)
        found = denominators(batch, logprobs.detach(), mask, self.config, self._bounds.floors, self._bounds.surprise)
        advantages = advantages_of(batch, mask)
        if found.scale_B is not None:  # not only by weight: the weight of vespo is never exactly 0
            advantages = (advantages.T * found.scale_B).T
        inputs = LossInputs(
            logprobs_BT=logprobs,
            old_logprobs_BT=found.old_BT,
            advantages_B=advantages,
            mask_BT=mask,
            entropies_BT=entropies,
            reference_logprobs_BT=self.policy.score_reference(prompts, completions) if self.config.beta > 0 else None,
            truncated_B=moved([sample.truncated for sample in batch], torch.bool, logprobs.device),
            remote_importance_weights_BT=found.importance_BT,
            weighted_B=found.weighted_B,
            own_B=moved([not sample.remote for sample in batch], torch.bool, logprobs.device),
        )
        outputs = self._loss(inputs, self.config, normalizer)
        loss, metrics = outputs.loss, dict(outputs.metrics)
        if self._critic is not None:
            value_loss, found_values = self._critic.loss(batch, states, scored, normalizer.own_tokens)
            loss = loss + value_loss
            metrics |= found_values
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimization.accumulate()
        if found.improbable_B is not None and found.weighted_B is not None:
            metrics["improbable_share"] = Mean(found.improbable_B.sum(), found.weighted_B.sum())
        if not self._generation.sampler.exact:
            metrics["mismatch_kl"] = engine_mismatch(batch, logprobs)
        return StepStats(outputs.loss.detach(), metrics)

    def _empty_passes(self, samples: Sequence[TrainingSample]) -> int:
        sharded = self.policy.is_sharded
        return passes_of_others(len(self._micro_batches(samples)), self.context.ranks) if sharded else 0

    def _micro_batches(self, samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
        return micro_batches(samples, self._tokens_per_micro_batch, packed=self.policy.packed)

    def _normalizer(self, update: TrainingBatch, samples: Sequence[TrainingSample]) -> Normalizer:
        """Return the batch's normalizer, with the entropy below which no token is trained on if the options need it."""
        if not self.config.needs_entropies:
            return update.normalizer
        batches, empty = self._micro_batches(samples), self._empty_passes(samples)
        ranks = self.context.ranks
        return with_entropy_threshold(update.normalizer, batches, self.policy, self.config, ranks, empty_passes=empty)

    def _halve_micro_batches(self, samples: Sequence[TrainingSample], error: Exception) -> None:
        largest = max(sum(sample.length for sample in batch) for batch in self._micro_batches(samples))
        single = all(len(batch) == 1 for batch in self._micro_batches(samples))
        if single:
            raise Temporary(
                f"the device has no memory to train on a single rollout of {largest} tokens: lower maxNewTokens, or "
                "use gradientCheckpointing, lora or a device with more memory"
            ) from error
        self._tokens_per_micro_batch = max(1, min(self._tokens_per_micro_batch, largest) // 2)
        logger.warning(
            "out of memory while training: micro-batches of %d tokens from now on", self._tokens_per_micro_batch
        )

    def last_update(self) -> Mapping[GroupKey, Sequence[RolloutUse]]:
        return self._uses.rollouts

    def remote_uses(self) -> Mapping[PeerId, RemoteUse]:
        return self._uses.peers

    # ── state
    def weights(self) -> Mapping[str, Any]:
        return {**self._optimization.weights, **({} if self._critic is None else self._critic.weights)}

    def state_dict(self) -> Mapping[str, Any]:
        ranks = self.context.ranks
        with ranks.guarded("gathering the weights for a checkpoint"):
            optimization = self._optimization.state_dict(keep=ranks.rank == 0 or not self.policy.is_sharded)
        return {
            "policy_version": self._version,
            "rounds": self._rounds,
            "tokens_per_micro_batch": self._tokens_per_micro_batch,
            **origin_of(self.policy),
            "dtype": str(self.policy.dtype).removeprefix("torch."),
            "optimization": optimization,
            **({} if self._critic is None else {"critic": self._critic.state_dict()}),
            "ahead": self._ahead.state_dict(),
            "bounds": self._bounds.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_origin(state, self.policy)
        self._optimization.load_state_dict(state["optimization"])
        self._version, self._rounds = int(state["policy_version"]), int(state["rounds"])
        self._tokens_per_micro_batch = int(state["tokens_per_micro_batch"])
        self._ahead.load_state_dict(state.get("ahead", ()))
        self._bounds.load_state_dict(state.get("bounds", {}))
        load_critic(self._critic, state.get("critic"))
        self._weights_changed()

    @classmethod
    def doubts(cls, config: GRPOConfig, processes: int | None) -> Sequence[str]:
        return [*doubts_of(config, processes), *try_loss(config)]

    @classmethod
    def check_with(
        cls, config: GRPOConfig, context: ComponentContext, prompt: Prompt | None, *, load_model: bool = False
    ) -> Sequence[str]:
        if context.episodes is not None:
            check_options(config)
        return check_model_files(config, context, prompt, load=load_model) if context.model_uri else ()

    @classmethod
    def prepare_export(cls, config: GRPOConfig, state: Mapping[str, Any]) -> tuple[GRPOConfig, Mapping[str, Any]]:
        """Return a configuration in the type that trained, and the weights, without what only sampling and training
        use.
        """
        weights = {**state, "optimization": {**state["optimization"], "moments": {}}, "ahead": (), "critic": None}
        return config.for_export(state.get("dtype", config.dtype)), weights

    @property
    def has_adapters(self) -> bool:
        return self.policy.adapted is not None

    @classmethod
    def makes_adapters(cls, config: GRPOConfig) -> bool | None:
        return config.lora is not None

    def export(self, folder: Path, *, merge_adapters: bool = True) -> None:
        export_policy(self.policy, folder, merge_adapters=merge_adapters)

    def close(self) -> None:
        self._ahead.close()
        self._generation.sampler.close()
