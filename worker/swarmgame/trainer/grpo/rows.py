"""Rows: from a round's groups and rewards to what the loss is computed on.

Tokens and numbers only; no forward pass happens here. Invariants: a group that cannot be used (remote ids outside the
vocabulary, too long, not scored) is left out and counted, and raises nothing; a rollout that cannot move the weights
(advantage zero) is left out too, but stays in the denominators, so that the gradient is what it would have been.
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
class Row:
    """One rollout to learn from.

    Args:
        prompt, completion: ids; EOS, when there was one, is the completion's last.
        advantage: finite.
        truncated: whether the budget ran out.
        sampler: log-probabilities of our own policy when it sampled this; None for what another policy, or an older
            version of ours, sampled.
        sender: those of the policy that sampled it, as claimed, where its ids are ours too; those of our own policy as
            an older version or another engine computed them; else None.
        start: our policy's log-probabilities when training first saw the row; filled in then, for rows without
            `sampler`.
        remote: whether another peer sampled it.
        lagged: an older version of our own policy sampled it (`overlap`).
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    advantage: float
    truncated: bool
    sampler: tuple[float, ...] | None = None
    sender: tuple[float, ...] | None = None
    start: Tensor | None = None
    remote: bool = False
    lagged: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Update:
    """What one optimizer step is made of.

    Args:
        rows: those that can move the weights.
        normalizer: over all scored rollouts, the skipped ones included.
        counts: groups and tokens by what became of them, for metrics.
    """

    rows: tuple[Row, ...]
    normalizer: Normalizer
    counts: Mapping[str, int]


def updates(
    state: GameState,
    rewards: Rewards,
    policy: Policy,
    config: GRPOConfig,
    version: int | None = None,
    *,
    exact: bool = True,
) -> list[Update]:
    """The steps of a round: one over everything, or one a stage.

    Args:
        version: of the policy that learns; own rollouts of another version are lagged rows. None: there are none such.
        exact: whether our own rollouts have the log-probabilities of the training forward (see `Sampler.exact`).
    """
    keys = [*(key for key, _ in state.own_groups()), *state.external]
    if config.update == "none":
        return []
    if config.update == "per-round":
        return [_update(state, keys, rewards, policy, config, version, exact)]
    stages = range(len(state.stages))
    return [
        _update(state, [key for key in keys if key.stage == stage], rewards, policy, config, version, exact)
        for stage in stages
    ]


def micro_batches(rows: Sequence[Row], tokens: int, *, packed: bool = False) -> list[list[Row]]:
    """Cut rows into micro-batches within a budget of tokens, which a single row may exceed.

    Args:
        packed: rows of a prompt stay together, and the budget counts each prompt of a batch once and no padding.
            Otherwise rows of similar length stay together, and the budget is rows times the longest.
    """
    return _packed_batches(rows, tokens) if packed else _padded_batches(rows, tokens)


def _packed_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    ordered = sorted(rows, key=lambda row: (len(row.prompt), row.prompt, len(row.completion), row.completion))
    # As many batches as the budget requires, all of about one size: a small remainder would leave a device half idle.
    total = sum(
        row.length if start else len(row.completion)
        for row, start in zip(ordered, _first_of_prompt(ordered), strict=True)
    )
    share = -(-total // max(1, -(-total // tokens)))
    limit = min(tokens, share + max((row.length for row in rows), default=0))
    batches: list[list[Row]] = []
    filled = 0
    for row, start in zip(ordered, _first_of_prompt(ordered), strict=True):
        added = row.length if start else len(row.completion)
        if batches and filled + added <= limit:
            batches[-1].append(row)
            filled += added
        else:
            batches.append([row])
            filled = row.length
    return batches


def _first_of_prompt(ordered: Sequence[Row]) -> list[bool]:
    return [index == 0 or ordered[index - 1].prompt != row.prompt for index, row in enumerate(ordered)]


def _padded_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    batches: list[list[Row]] = []
    longest_prompt = longest_completion = 0
    for row in sorted(rows, key=lambda row: (row.length, row.prompt, row.completion)):
        prompt, completion = max(longest_prompt, len(row.prompt)), max(longest_completion, len(row.completion))
        if batches and (len(batches[-1]) + 1) * (prompt + completion) <= tokens:
            batches[-1].append(row)
            longest_prompt, longest_completion = prompt, completion
        else:
            batches.append([row])
            longest_prompt, longest_completion = len(row.prompt), len(row.completion)
    return batches


def engine_mismatch(batch: Sequence[Row], logprobs_BT: Tensor) -> Mean | None:
    """How far our log-probabilities are from those that an engine of another kind reported for our own rollouts: an
    estimate of the KL divergence from engine to learner, as `mismatch_kl` is for our own samplers. None where no row is
    of such an engine."""
    total, tokens = 0.0, 0
    for row, ours in zip(batch, logprobs_BT.detach(), strict=True):
        if row.sender is None or row.remote or row.lagged:
            continue
        drift = ours[: len(row.sender)].float().cpu() - torch.tensor(row.sender)
        total += float((drift.exp() - drift - 1).sum())
        tokens += len(row.sender)
    return Mean(total, float(tokens)) if tokens else None


def _update(
    state: GameState,
    keys: Sequence[GroupKey],
    rewards: Rewards,
    policy: Policy,
    config: GRPOConfig,
    version: int | None,
    exact_sampler: bool,
) -> Update:
    counts: Counter[str] = Counter()
    groups: list[tuple[list[Row], list[float]]] = []
    prompts: dict[Prompt, tuple[int, ...]] = {}
    for key in keys:
        made = _group(state, key, rewards.get(key), policy, config, prompts, counts, version, exact_sampler)
        if made is not None:
            groups.append(made)
    scored = [values for _, values in groups]
    advantages = (
        ragged_advantages(scored, scale=config.scale_rewards, epsilon=1e-4, baseline=config.baseline) if groups else []
    )
    rows, every, tokens = [], 0, 0
    # A KL term pulls on every rollout, and a quantile of entropies is one of all tokens.
    keep_all = config.beta > 0 or config.needs_entropies
    for (candidates, _), values in zip(groups, advantages, strict=True):
        flat = all(value == 0 for value in values)
        counts["groups_zero_advantage"] += flat
        counts["groups_trained"] += not flat
        for row, value in zip(candidates, values, strict=True):
            row.advantage = value
            every += 1
            tokens += 0 if config.mask_truncated_completions and row.truncated else len(row.completion)
            counts["rollouts_truncated"] += row.truncated
            counts["completion_tokens"] += len(row.completion)
            if value != 0 or keep_all:
                rows.append(row)
                counts["tokens_trained"] += len(row.completion)
    counts["rollouts"] = every
    return Update(tuple(rows), Normalizer(every, tokens, config.max_new_tokens), counts)


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
) -> tuple[list[Row], list[float]] | None:
    """The scored rollouts of one group, with their rewards; None when the group is of no use."""
    own = key.peer == state.peer and key.round == state.round.number
    try:
        contribution, group = state.contribution_of(key), state.group_of(key)
    except KeyError:
        counts["foreign_dropped"] += 1
        return None
    if rewards is None or len(rewards) != len(group.rollouts) or any(math.isinf(reward) for reward in rewards):
        if own and rewards is not None:
            raise ValueError(
                f"{key}: rewards {list(rewards)} for {len(group.rollouts)} rollouts; expected one a rollout, finite or NaN"
            )
        counts["groups_unscored" if own else "foreign_dropped"] += 1
        return None
    if own:
        lagged = version is not None and contribution.policy_version != version
        rows = [
            _own_row(group.prompt.token_ids, rollout, lagged=lagged, exact=exact_sampler) for rollout in group.rollouts
        ]
    else:
        exact = contribution.tokenizer == policy.hash
        made = _remote_rows(group, policy, config, prompts, exact=exact)
        if made is None:
            counts["foreign_dropped"] += 1
            return None
        rows = made
    kept = [
        (row, reward) for row, reward in zip(rows, rewards, strict=True) if not math.isnan(reward) and row.completion
    ]
    if scored_rollouts([reward for _, reward in kept]) < 2:
        counts["groups_unscored"] += 1
        return None
    if not own:
        counts["groups_external"] += 1
        counts["groups_retokenised"] += not exact
    return [row for row, _ in kept], [reward for _, reward in kept]


def _own_row(prompt: tuple[int, ...], rollout: Rollout, *, lagged: bool, exact: bool) -> Row:
    """A row of our own.

    A lagged one, or one with another engine's numbers, is treated as another policy's: clipping stays a bound on this
    round's step. Against the older version's log-probabilities it would bound this step and the one before together,
    and leave out tokens because of what the step before did.
    """
    completion, logprobs = tuple(rollout.token_ids), tuple(rollout.logprobs)
    truncated = rollout.finish_reason is FinishReason.LENGTH
    if lagged or not exact:
        return Row(prompt, completion, 0.0, truncated, sender=logprobs, lagged=lagged)
    return Row(prompt, completion, 0.0, truncated, sampler=logprobs)


def _remote_rows(
    group: Group, policy: Policy, config: GRPOConfig, prompts: dict[Prompt, tuple[int, ...]], *, exact: bool
) -> list[Row] | None:
    """Rows of another policy's group, checked; None when any rollout is not what an honest peer could have sent.

    Args:
        exact: the sender's ids are ours: they are used as they are. Otherwise the text is tokenised, and there is
            nothing to compare with.
    """
    prompt = Prompt(group.question_id, group.prompt.messages)
    if prompt not in prompts:
        prompts[prompt] = policy.encode(prompt)
    rows = []
    for rollout in group.rollouts:
        completion = (
            tuple(rollout.token_ids) if exact else policy.encode_completion(rollout.text, rollout.finish_reason)
        )
        if not completion or len(completion) > config.max_new_tokens or not policy.knows(completion):
            return None
        sender = tuple(rollout.logprobs) if exact else None
        if sender is not None and not all(math.isfinite(logprob) and logprob <= 1e-3 for logprob in sender):
            return None
        rows.append(
            Row(
                prompts[prompt],
                completion,
                0.0,
                rollout.finish_reason is FinishReason.LENGTH,
                sender=sender,
                remote=True,
            )
        )
    return rows
