"""Training batches: from a round's groups and rewards to the samples that the loss is computed on.

Tokens and numbers only; no forward pass. Invariants: a group that cannot be used (remote ids outside the vocabulary,
too long, not scored) is left out and counted, and raises nothing. A rollout that cannot change the weights (advantage
zero) is left out too, but counts in the denominators, so the gradient is the same as with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swarmgame.game.state import FinishReason, GameState, Group, GroupKey, Prompt, Rewards, Rollout
from swarmgame.trainer.grpo.advantages import ragged_advantages, scored_rollouts
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.loss import Mean, Normalizer
from swarmgame.trainer.grpo.policy import Policy


@dataclass(slots=True)
class TrainingSample:
    """One rollout to train on.

    Args:
        prompt, completion: ids; EOS, when there was one, is the completion's last.
        advantage: finite.
        truncated: whether the budget ran out.
        sampler_logprobs: of our policy in its current version, by our own sampler; None for every other sample.
        behavior_logprobs: of a different behavior policy: a remote one, as claimed, where its ids are ours too; an
            older version of ours; or ours as another engine computed them. Else None.
        initial_logprobs: of our policy when training first saw the sample; filled in then, for samples without
            `sampler_logprobs`.
        remote: whether another peer sampled it.
        lagged: an older version of our own policy sampled it (`overlap`).
        group, position: which rollout it is.
        weight: mean importance weight of its tokens, once training has seen it; 1 for our own.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    advantage: float
    truncated: bool
    sampler_logprobs: tuple[float, ...] | None = None
    behavior_logprobs: tuple[float, ...] | None = None
    initial_logprobs: Tensor | None = None
    remote: bool = False
    lagged: bool = False
    group: GroupKey | None = None
    position: int = 0
    weight: float | Tensor = 1.0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


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
) -> list[TrainingBatch]:
    """Return the batches of a round: one for the round, or one a stage.

    Args:
        version: of the policy in training; own rollouts of another version are lagged samples. None: there are none.
        exact: whether our own rollouts have the log-probabilities of the training forward (see `Sampler.exact`).
    """
    keys = [*(key for key, _ in state.own_groups()), *state.external]
    if config.update == "none":
        return []
    if config.update == "per-round":
        return [_training_batch(state, keys, rewards, policy, config, version, exact)]
    stages = range(len(state.stages))
    return [
        _training_batch(state, [key for key in keys if key.stage == stage], rewards, policy, config, version, exact)
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


def engine_mismatch(batch: Sequence[TrainingSample], logprobs_BT: Tensor) -> Mean | None:
    """Return an estimate of the KL divergence from an external engine to the trainer, over our own rollouts, as
    `mismatch_kl` is for our own samplers. None where no sample is of such an engine."""
    total, tokens = 0.0, 0
    for sample, ours in zip(batch, logprobs_BT.detach(), strict=True):
        if sample.behavior_logprobs is None or sample.remote or sample.lagged:
            continue
        drift = ours[: len(sample.behavior_logprobs)].float().cpu() - torch.tensor(sample.behavior_logprobs)
        total += float((drift.exp() - drift - 1).sum())
        tokens += len(sample.behavior_logprobs)
    return Mean(total, float(tokens)) if tokens else None


def _training_batch(
    state: GameState,
    keys: Sequence[GroupKey],
    rewards: Rewards,
    policy: Policy,
    config: GRPOConfig,
    version: int | None,
    exact_sampler: bool,
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
    scored = [values for _, values in groups]
    advantages = (
        ragged_advantages(scored, scale=config.scale_rewards, epsilon=1e-4, baseline=config.baseline) if groups else []
    )
    samples, every, tokens = [], 0, 0
    # A KL term has a gradient for every rollout, and a quantile of entropies is over all tokens.
    keep_all = config.beta > 0 or config.needs_entropies
    for (candidates, _), values in zip(groups, advantages, strict=True):
        flat = all(value == 0 for value in values)
        counts["groups_zero_advantage"] += flat
        counts["groups_trained"] += not flat
        for sample, value in zip(candidates, values, strict=True):
            sample.advantage = value
            if sample.group is not None:
                by_group[sample.group][sample.position] = value
            every += 1
            tokens += 0 if config.mask_truncated_completions and sample.truncated else len(sample.completion)
            counts["rollouts_truncated"] += sample.truncated
            counts["completion_tokens"] += len(sample.completion)
            if value != 0 or keep_all:
                samples.append(sample)
                counts["tokens_trained"] += len(sample.completion)
    counts["rollouts"] = every
    return TrainingBatch(tuple(samples), Normalizer(every, tokens, config.max_new_tokens), counts, by_group)


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
        made = _remote_samples(group, policy, config, prompts, exact=exact)
        if made is None:
            counts["remote_dropped"] += 1
            return None
        samples = made
    for position, sample in enumerate(samples):
        sample.group, sample.position = key, position
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
    completion, logprobs = tuple(rollout.token_ids), tuple(rollout.logprobs)
    truncated = rollout.finish_reason is FinishReason.LENGTH
    if lagged or not exact:
        return TrainingSample(prompt, completion, 0.0, truncated, behavior_logprobs=logprobs, lagged=lagged)
    return TrainingSample(prompt, completion, 0.0, truncated, sampler_logprobs=logprobs)


def _remote_samples(
    group: Group, policy: Policy, config: GRPOConfig, prompts: dict[Prompt, tuple[int, ...]], *, exact: bool
) -> list[TrainingSample] | None:
    """Return the checked samples of a remote group; None when any rollout cannot come from an honest peer.

    Args:
        exact: the sender's ids are ours: they are used as they are. Otherwise the text is tokenised, and there is
            nothing to compare with.
    """
    prompt = Prompt(group.question_id, group.prompt.messages)
    if prompt not in prompts:
        prompts[prompt] = policy.encode(prompt)
    samples = []
    for rollout in group.rollouts:
        completion = (
            tuple(rollout.token_ids) if exact else policy.encode_completion(rollout.text, rollout.finish_reason)
        )
        if not completion or len(completion) > config.max_new_tokens or not policy.knows(completion):
            return None
        behavior_logprobs = tuple(rollout.logprobs) if exact else None
        if behavior_logprobs is not None and not all(
            math.isfinite(logprob) and logprob <= 1e-3 for logprob in behavior_logprobs
        ):
            return None
        samples.append(
            TrainingSample(
                prompts[prompt],
                completion,
                0.0,
                rollout.finish_reason is FinishReason.LENGTH,
                behavior_logprobs=behavior_logprobs,
                remote=True,
            )
        )
    return samples
