"""Advantages: how much better each rollout did than its group.

Pure functions of rewards; nothing here knows of models, peers or devices. A group whose rewards are all equal gets
exactly zero, so the trainer may skip it. Shapes: G groups, N rollouts a group; ragged groups are lists of lists
(`ragged_advantages`).

Source: GRPO (arXiv 2402.03300) eq. 3; Dr. GRPO (arXiv 2503.20783) for scale="none"; RLOO (arXiv 2402.14740) for
leave-one-out; REINFORCE++ (arXiv 2501.03262) for baseline="update" with scale="batch"; Williams 1992 for
baseline="none"; scale="batch" as in arXiv 2508.08221. The values of `Scale` are TRL's `scale_rewards`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


class Scale(StrEnum):
    """What centred rewards are divided by."""

    GROUP = "group"
    BATCH = "batch"
    NONE = "none"


def group_advantages(rewards_GN: Tensor, *, scale: Scale = Scale.GROUP, epsilon: float = 1e-6) -> Tensor:
    """Centre each group's rewards on its mean, and scale them.

    Args:
        rewards_GN: float, one row a group; NaN marks a rollout that was not scored, and stays NaN.
        scale: GROUP divides by the group's standard deviation (unbiased), BATCH by the batch's, NONE not at all.
        epsilon: added to the standard deviation. TRL's is 1e-4.

    Returns:
        Advantages of the same shape. Rows of equal rewards are exactly 0, not merely small.

    Raises:
        ValueError: if a group has fewer than two scored rollouts: its mean would be itself; or a reward is infinite.
    """
    counts = _checked_counts(rewards_GN)
    centred = _centred(rewards_GN)
    match scale:
        case Scale.NONE:
            return centred
        case Scale.GROUP:
            variance = torch.nansum(centred**2, dim=1, keepdim=True) / (counts - 1)
        case Scale.BATCH:
            scored = rewards_GN[~torch.isnan(rewards_GN)]
            variance = scored.var(correction=1) if scored.numel() else scored.new_zeros(())
    return centred / (variance.sqrt() + epsilon)


def leave_one_out(rewards_GN: Tensor) -> Tensor:
    """Each reward minus the mean of the others in its group (RLOO).

    Returns:
        Advantages of the same shape; NaN stays NaN, rows of equal rewards are exactly 0.

    Raises:
        ValueError: as `group_advantages`.
    """
    counts = _checked_counts(rewards_GN)
    return _centred(rewards_GN) * (counts / (counts - 1))


def update_advantages(
    rewards_GN: Tensor, own_G: Tensor, *, mean: bool, scale: Scale = Scale.BATCH, epsilon: float = 1e-6
) -> Tensor:
    """Compare rewards with the update's mean, or with nothing (REINFORCE).

    Args:
        own_G: bool, our own groups: mean and deviation are of these, so that rewards of other peers' rollouts do not
            move the advantages of ours. Of all groups where there is none.
        mean: whether there is a baseline.
        scale: BATCH or NONE.

    Returns:
        Advantages of the same shape; NaN stays NaN. With a baseline, own rewards that are all equal give exactly 0.

    Raises:
        ValueError: as `group_advantages`, or the scale is that of a group.
    """
    if scale is Scale.GROUP:
        raise ValueError("the scale is group; expected batch or none, since nothing is compared with its group")
    _checked_counts(rewards_GN)
    counted = rewards_GN[own_G] if bool(own_G.any()) else rewards_GN
    scored = counted[~torch.isnan(counted)]
    are_equal = bool(scored.min() == scored.max())
    compared = rewards_GN.clone()
    if mean:  # the mean of equal floats may be off by an ulp
        compared -= scored[0] if are_equal else scored.mean()
    # Equal rewards have no deviation, and those of other peers must not be divided by epsilon.
    return compared if scale is Scale.NONE or are_equal else compared / (scored.std(correction=1) + epsilon)


def ragged_advantages(
    rewards: Sequence[Sequence[float]],
    *,
    scale: Scale = Scale.GROUP,
    epsilon: float = 1e-6,
    baseline: str = "mean",
    own: Sequence[bool] = (),
) -> list[list[float]]:
    """The same for groups of different sizes.

    Args:
        rewards: one list a group.
        baseline: "mean" of the group, "leave-one-out", which is not scaled, "update" or "none".
        own: for each group, whether it is our own; empty: all are.

    Returns:
        One list a group, as long as its rewards.

    Raises:
        ValueError: as `group_advantages`, or for an unknown baseline.
    """
    if baseline not in ("mean", "leave-one-out", "update", "none"):
        raise ValueError(f"baseline is {baseline!r}; expected 'mean', 'leave-one-out', 'update' or 'none'")
    if not rewards:
        return []
    width = max(len(group) for group in rewards)
    padded = torch.tensor([[*group, *[math.nan] * (width - len(group))] for group in rewards], dtype=torch.float64)
    if baseline == "mean":
        advantages = group_advantages(padded, scale=scale, epsilon=epsilon)
    elif baseline == "leave-one-out":
        advantages = leave_one_out(padded)
    else:
        own_G = torch.tensor(list(own) or [True] * len(rewards))
        advantages = update_advantages(padded, own_G, mean=baseline == "update", scale=scale, epsilon=epsilon)
    return [row[: len(group)] for row, group in zip(advantages.tolist(), rewards, strict=True)]


def scored_rollouts(rewards: Sequence[float]) -> int:
    """How many rollouts of a group were scored; below two, a group has no advantages."""
    return sum(not math.isnan(reward) for reward in rewards)


def _checked_counts(rewards_GN: Tensor) -> Tensor:
    if bool(torch.isinf(rewards_GN).any()):
        raise ValueError("a reward is infinite; expected a finite number, or NaN for a rollout that was not scored")
    counts = (~torch.isnan(rewards_GN)).sum(dim=1, keepdim=True)
    short = (counts < 2).squeeze(1).nonzero().flatten().tolist()
    if short:
        raise ValueError(f"groups {short} have fewer than two scored rollouts: a group of one has no advantage")
    return counts


def _centred(rewards_GN: Tensor) -> Tensor:
    unscored = torch.isnan(rewards_GN)
    centred = rewards_GN - torch.nanmean(rewards_GN, dim=1, keepdim=True)
    # The mean of equal floats may be off by an ulp, which a tiny standard deviation would blow up to an advantage of
    # 1.
    lowest = rewards_GN.masked_fill(unscored, math.inf).amin(dim=1, keepdim=True)
    highest = rewards_GN.masked_fill(unscored, -math.inf).amax(dim=1, keepdim=True)
    return centred.masked_fill((lowest == highest) & ~unscored, 0.0)
