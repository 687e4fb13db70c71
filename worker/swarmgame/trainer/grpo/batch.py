"""Training batches: from a round's groups and rewards to the samples that the loss is computed on.

Tokens and numbers only; no forward pass. Invariants: a group that cannot be used (remote ids outside the vocabulary,
too long, not scored) is left out and counted, and raises nothing. A rollout that cannot change the weights (advantage
zero) is left out too, but counts in the denominators, so the gradient is the same as with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swarmgame.game.state import FinishReason, GameState, Group, GroupKey, Prompt, Rewards, Rollout
from swarmgame.trainer.claims import is_possible
from swarmgame.trainer.grpo.advantages import ragged_advantages, scored_rollouts
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.loss import Mean, Normalizer
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.remote_bounds import RemoteBounds
from swarmgame.trainer.grpo.samples import TrainingSample, spread, trained_of, turns_of

AdvantagesOf = Callable[[Sequence[tuple[Sequence[TrainingSample], Sequence[float]]]], list[list[float]]]
"""From samples and rewards of groups to advantages."""


@dataclass(frozen=True)
class TrainingBatch:
    """The samples of one optimizer step.

    Args:
        samples: those that can change the weights.
        normalizer: over all scored rollouts, including those that were left out.
        counts: numbers of groups and tokens by outcome, for metrics.
        advantages: one a rollout of every group that was scored; NaN for a rollout that was not.
    """

    samples: tuple[TrainingSample, ...]
    normalizer: Normalizer
    counts: Mapping[str, int]
    advantages: Mapping[GroupKey, Sequence[float]]


def training_batches(
    state: GameState,
    rewards: Rewards,
    policy: Policy,
    config: GRPOConfig,
    version: int | None = None,
    *,
    exact: bool = True,
    bounds: RemoteBounds | None = None,
    critic: AdvantagesOf | None = None,
) -> list[TrainingBatch]:
    """Return the batches of a round: one for the round, or one a stage.

    Args:
        version: of the policy in training; own rollouts of another version are lagged samples. None: there are none.
        exact: whether our own rollouts have the log-probabilities of the training forward (see `Sampler.exact`).
        bounds: limit the share of other peers; None: no limit.
        critic: gives advantages, to the samples too; None: rewards are compared.
    """
    keys = [*(key for key, _ in state.own_groups()), *state.external]
    if config.update == "none":
        return []
    if config.update == "per-round":
        return [_training_batch(state, keys, rewards, policy, config, version, exact, bounds, critic)]
    stages = range(len(state.stages))
    return [
        _training_batch(
            state,
            [key for key in keys if key.stage == stage],
            rewards,
            policy,
            config,
            version,
            exact,
            bounds,
            critic,
        )
        for stage in stages
    ]


def micro_batches(
    samples: Sequence[TrainingSample], tokens: int, *, packed: bool = False
) -> list[list[TrainingSample]]:
    """Cut samples into micro-batches within a budget of tokens, which a single sample may exceed.

    Args:
        packed: samples of a prompt stay together, and the budget counts each prompt of a batch once and no padding.
            Otherwise samples of similar length stay together, and the budget is samples times the longest.
    """
    return _packed_batches(samples, tokens) if packed else _padded_batches(samples, tokens)


def _packed_batches(samples: Sequence[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    ordered = sorted(
        samples, key=lambda sample: (len(sample.prompt), sample.prompt, len(sample.completion), sample.completion)
    )
    # As many batches as the budget requires, all of about one size: a small remainder would leave a device half idle.
    total = sum(
        sample.length if start else len(sample.completion)
        for sample, start in zip(ordered, _first_of_prompt(ordered), strict=True)
    )
    share = -(-total // max(1, -(-total // tokens)))
    limit = min(tokens, share + max((sample.length for sample in samples), default=0))
    batches: list[list[TrainingSample]] = []
    filled = 0
    for sample, start in zip(ordered, _first_of_prompt(ordered), strict=True):
        added = sample.length if start else len(sample.completion)
        if batches and filled + added <= limit:
            batches[-1].append(sample)
            filled += added
        else:
            batches.append([sample])
            filled = sample.length
    return batches


def _first_of_prompt(ordered: Sequence[TrainingSample]) -> list[bool]:
    return [index == 0 or ordered[index - 1].prompt != sample.prompt for index, sample in enumerate(ordered)]


def _padded_batches(samples: Sequence[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    batches: list[list[TrainingSample]] = []
    longest_prompt = longest_completion = 0
    for sample in sorted(samples, key=lambda sample: (sample.length, sample.prompt, sample.completion)):
        prompt, completion = max(longest_prompt, len(sample.prompt)), max(longest_completion, len(sample.completion))
        if batches and (len(batches[-1]) + 1) * (prompt + completion) <= tokens:
            batches[-1].append(sample)
            longest_prompt, longest_completion = prompt, completion
        else:
            batches.append([sample])
            longest_prompt, longest_completion = len(sample.prompt), len(sample.completion)
    return batches


def share_of_rank(samples: Sequence[TrainingSample], rank: int, size: int) -> list[TrainingSample]:
    """Return the samples of a rank: every n-th by length, so that all ranks have about the same work."""
    return sorted(samples, key=lambda sample: sample.length)[rank::size]


def engine_mismatch(batch: Sequence[TrainingSample], logprobs_BT: Tensor) -> Mean:
    """Return an estimate of the KL divergence from an external engine to the trainer, over our own rollouts, as
    `mismatch_kl` is for our own samplers.
    """
    total, tokens = 0.0, 0
    for sample, ours in zip(batch, logprobs_BT.detach(), strict=True):
        if sample.behavior_logprobs is None or sample.remote or sample.lagged:
            continue
        drift = ours[: len(sample.behavior_logprobs)].float().cpu() - torch.tensor(sample.behavior_logprobs)
        distance = drift.exp() - drift - 1
        if sample.trained is not None:
            distance = distance * torch.tensor(sample.trained)
        total += float(distance.sum())
        tokens += sample.tokens_trained
    return Mean(total, float(tokens))


def _training_batch(
    state: GameState,
    keys: Sequence[GroupKey],
    rewards: Rewards,
    policy: Policy,
    config: GRPOConfig,
    version: int | None,
    exact_sampler: bool,
    bounds: RemoteBounds | None,
    critic: AdvantagesOf | None,
) -> TrainingBatch:
    counts: Counter[str] = Counter()
    groups: list[tuple[list[TrainingSample], list[float]]] = []
    by_group: dict[GroupKey, list[float]] = {}
    prompts: dict[Prompt, tuple[int, ...]] = {}
    for key in keys:
        made = _group(state, key, rewards.get(key), policy, config, prompts, counts, version, exact_sampler)
        if made is not None:
            groups.append(made)
            by_group[key] = [math.nan] * len(state.group_of(key).rollouts)
    if critic is not None:
        advantages = critic(groups)
    else:
        own = [not candidates[0].remote for candidates, _ in groups]
        scored = [values for _, values in groups]
        advantages = ragged_advantages(
            scored, scale=config.scale_rewards, epsilon=1e-4, baseline=config.baseline, own=own
        )
    samples, every, tokens, own_tokens = [], 0, 0, 0
    keep_all = config.keeps_all_rollouts
    for (candidates, _), values in zip(groups, advantages, strict=True):
        flat = all(value == 0 for value in values)
        counts["groups_zero_advantage"] += flat
        counts["groups_trained"] += not flat
        for sample, value in zip(candidates, values, strict=True):
            if critic is None:
                sample.advantage = value
            if sample.group is not None:
                by_group[sample.group][sample.position] = value
            every += 1
            counted = 0 if config.mask_truncated_completions and sample.truncated else sample.tokens_trained
            tokens += counted
            own_tokens += 0 if sample.remote else counted
            counts["rollouts_truncated"] += sample.truncated
            counts["completion_tokens"] += sample.tokens_trained
            if value != 0 or keep_all:
                samples.append(sample)
                counts["tokens_trained"] += sample.tokens_trained
    if bounds is not None:
        bounds.limit([sample for candidates, _ in groups for sample in candidates], config)
        samples = [sample for sample in samples if sample.advantage != 0 or keep_all]
    counts["rollouts"] = every
    normalizer = Normalizer(every, tokens, config.max_new_tokens, own_tokens=own_tokens)
    return TrainingBatch(tuple(samples), normalizer, counts, by_group)


def _group(
    state: GameState,
    key: GroupKey,
    rewards: Sequence[float] | None,
    policy: Policy,
    config: GRPOConfig,
    prompts: dict[Prompt, tuple[int, ...]],
    counts: Counter[str],
    version: int | None,
    exact_sampler: bool,
) -> tuple[list[TrainingSample], list[float]] | None:
    """Return the scored samples of one group with their rewards; None when the group is not usable."""
    own = key.peer == state.peer and key.round == state.round.number
    try:
        contribution, group = state.contribution_of(key), state.group_of(key)
    except KeyError:
        counts["remote_dropped"] += 1
        return None
    if rewards is None or len(rewards) != len(group.rollouts) or any(math.isinf(reward) for reward in rewards):
        if own and rewards is not None:
            raise ValueError(
                f"{key}: rewards {list(rewards)} for {len(group.rollouts)} rollouts; "
                "expected one a rollout, finite or NaN"
            )
        counts["groups_unscored" if own else "remote_dropped"] += 1
        return None
    if own:
        lagged = version is not None and contribution.policy_version != version
        samples = [
            _own_sample(group.prompt.token_ids, rollout, lagged=lagged, exact=exact_sampler)
            for rollout in group.rollouts
        ]
    else:
        exact = contribution.tokenizer == policy.hash
        made = _remote_samples(group, policy, config, prompts, counts, exact=exact)
        if made is None:
            counts["remote_dropped"] += 1
            return None
        samples = made
    for position, sample in enumerate(samples):
        sample.group, sample.position = key, position
        if config.has_critic:
            sample.turns = turns_of(group.rollouts[position])
    kept = [
        (sample, reward)
        for sample, reward in zip(samples, rewards, strict=True)
        if not math.isnan(reward) and sample.completion
    ]
    if scored_rollouts([reward for _, reward in kept]) < 2:
        counts["groups_unscored"] += 1
        return None
    if not own:
        counts["groups_external"] += 1
        counts["groups_retokenised"] += not exact
    return [sample for sample, _ in kept], [reward for _, reward in kept]


def _own_sample(prompt: tuple[int, ...], rollout: Rollout, *, lagged: bool, exact: bool) -> TrainingSample:
    """Return a sample of our own.

    A lagged one, or one with another engine's numbers, is treated like another policy's, so that clipping bounds this
    round's step only. Against the older version's log-probabilities it would bound this step and the one before
    together, and leave out tokens because of the step before.
    """
    completion, trained = tuple(rollout.token_ids), trained_of(rollout)
    sample = TrainingSample(prompt, completion, 0.0, rollout.finish_reason is FinishReason.LENGTH, trained=trained)
    logprobs = spread(rollout.logprobs, trained)
    if lagged or not exact:
        sample.behavior_logprobs, sample.lagged = logprobs, lagged
    else:
        sample.sampler_logprobs = logprobs
    return sample


def _remote_samples(
    group: Group,
    policy: Policy,
    config: GRPOConfig,
    prompts: dict[Prompt, tuple[int, ...]],
    counts: Counter[str],
    *,
    exact: bool,
) -> list[TrainingSample] | None:
    """Return the checked samples of a remote group; None when any rollout cannot come from an honest peer.

    Args:
        exact: the sender's ids are ours: they are used as they are. Otherwise the text is tokenised, and there is
            nothing to compare with. A text that the ids do not give back is left out: its sample has no tokens.
    """
    prompt = Prompt(group.question_id, group.prompt.messages)
    if prompt not in prompts:
        prompts[prompt] = policy.encode(prompt)
    samples = []
    for rollout in group.rollouts:
        completion: tuple[int, ...] | None = tuple(rollout.token_ids)
        if not exact:
            # A transcript's ids depend on its policy's template: only a single text can be tokenised here.
            completion = None if rollout.segments else policy.completions.encode(rollout.text, rollout.finish_reason)
        if completion is None:
            counts["rollouts_not_reversible"] += 1
            samples.append(TrainingSample(prompts[prompt], (), 0.0, truncated=False, remote=True))
            continue
        trained = trained_of(rollout) if exact else None
        sample = TrainingSample(
            prompts[prompt],
            completion,
            0.0,
            rollout.finish_reason is FinishReason.LENGTH,
            trained=trained,
            behavior_logprobs=spread(rollout.logprobs, trained) if exact else None,
            remote=True,
        )
        # A transcript may be too long although its policy's turns are not.
        fits = sample.length <= max(len(sample.prompt), policy.longest_prompt) + config.max_new_tokens
        if (
            not fits
            or not 0 < sample.tokens_trained <= config.max_new_tokens
            or not policy.completions.knows(completion)
        ):
            return None
        if exact and not _is_plausible(tuple(rollout.logprobs), policy.vocabulary):
            return None
        samples.append(sample)
    return samples


def _is_plausible(logprobs: Sequence[float], vocabulary: int) -> bool:
    if not all(math.isfinite(logprob) and logprob <= 1e-3 for logprob in logprobs):
        return False
    return is_possible(sum(logprobs), len(logprobs), vocabulary)
