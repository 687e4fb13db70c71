"""Rollouts whose log-probabilities are not finite: named, with the layer where it began, counted and left out.

In sampling they are left out before anything is published. In training they are looked for only after a step whose
gradient was not finite, so a round without them costs nothing.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence

import torch

from swarmgame.errors import BadData
from swarmgame.game.components import Notice
from swarmgame.game.ranks import Ranks
from swarmgame.game.state import Group, Rollout
from swarmgame.inference.arguments import Arguments
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.denominators import denominators
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.samples import TrainingSample
from swarmgame.trainer.not_finite import first_module

logger = logging.getLogger(__name__)


class FaultyRollouts:
    """Leaves out rollouts whose numbers are not finite, and counts them until `taken`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._count = self._total = 0
        self._first = ""

    def taken(self) -> int:
        """Return how many there were since the last call."""
        count, self._count = self._count, 0
        return count

    def notices(self) -> Sequence[Notice]:
        """Return a notice with the first of them, if there were any."""
        first = self._first or "found by another process of this peer, whose log names it"
        text = f"rollouts have numbers that are not finite, and are left out; the first: {first}"
        return (Notice("rollouts-not-finite", text, self._total),) if self._total else ()

    def add(self, count: int) -> None:
        """Count rollouts that were left out, by all ranks together."""
        self._count += count
        self._total += count

    # ── sampling
    def without(self, groups: Sequence[Group], round: int) -> list[Group]:
        """Return groups that were just sampled, without such rollouts.

        Raises:
            BadData: none is left: the weights are unusable.
        """
        found = [[at for at, each in enumerate(group.rollouts) if not _is_finite(each)] for group in groups]
        count = sum(map(len, found))
        if not count:
            return list(groups)
        group, places = next(pair for pair in zip(groups, found, strict=True) if pair[1])
        layer = self._layer(group.prompt.token_ids, tuple(group.rollouts[places[0]].token_ids))
        total = sum(len(group.rollouts) for group in groups)
        first = f"rollout {places[0]} of question {group.question_id} in round {round}, {layer}"
        text = f"{count} of {total} rollouts have a log-probability that is not finite: {first}"
        self.add(count)
        self._first = self._first or first
        if count == total:
            raise BadData(
                f"{text}. Such a policy cannot answer. Likely cause: weights that are damaged, or overflow in their "
                "type. Check the model's files, use dtype float32, or begin with another model"
            )
        logger.warning("%s. They are left out (rollouts_not_finite)", text)
        return [
            Group(group.prompt, tuple(each for each in group.rollouts if _is_finite(each))) if bad else group
            for group, bad in zip(groups, found, strict=True)
        ]

    # ── training
    def leave_out(
        self,
        samples: list[TrainingSample],
        batches: Sequence[Sequence[TrainingSample]],
        config: GRPOConfig,
        ranks: Ranks,
        *,
        empty_passes: int,
    ) -> bool:
        """Take such samples out of the list, and count them; return whether a rank had one, and others are left. A
        collective call.

        Args:
            batches: the samples as micro-batches.
            empty_passes: as of `among`.
        """
        faulty = self.among(batches, config, empty_passes=empty_passes)
        samples[:] = [sample for sample in samples if all(sample is not each for each in faulty)]
        counts = [json.loads(each) for each in ranks.gather(json.dumps([len(faulty), len(samples)]).encode())]
        dropped, left = map(sum, zip(*counts, strict=True))
        self.add(dropped)
        return bool(dropped and left)

    @torch.no_grad()
    def among(
        self, batches: Sequence[Sequence[TrainingSample]], config: GRPOConfig, *, empty_passes: int
    ) -> list[TrainingSample]:
        """Return the samples with numbers that are not finite: log-probabilities, or a ratio that overflows. They are
        not counted: each rank knows its own alone.

        Args:
            batches: micro-batches of this rank.
            empty_passes: to take part in those of the other ranks of a sharded policy.
        """
        found = [sample for batch in batches for sample in self._faulty(batch, config)]
        for _ in range(empty_passes):
            self._policy.empty_pass(backward=False, reference=config.beta > 0)
        for sample in found:
            # Nothing of what it claims counts for or against its author.
            sample.weight, sample.ratios, sample.behavior_logprobs = torch.zeros(()), 0.0, None
        if found:
            sample = found[0]
            place = f"rollout {sample.position}"
            if sample.group is not None:
                place += f" of {sample.group.peer}, question {sample.group.question_id}"
            layer = self._layer(sample.prompt, sample.completion)
            self._first = self._first or f"{place}, {layer}"
            logger.warning(
                "%s cannot be trained on, and is left out with %d others (rollouts_not_finite): its log-probability "
                "or its ratio is not finite, %s",
                place,
                len(found) - 1,
                layer,
            )
        return found

    def _faulty(self, batch: Sequence[TrainingSample], config: GRPOConfig) -> list[TrainingSample]:
        policy = self._policy
        prompts, completions = [sample.prompt for sample in batch], [sample.completion for sample in batch]
        for sample in batch:  # what the failed step remembered of rows that were spoilt
            if sample.initial_logprobs is not None and not bool(sample.initial_logprobs.isfinite().all()):
                sample.initial_logprobs = None
        logprobs, _, mask = policy.score(prompts, completions)
        old = denominators(batch, logprobs, mask, config).old_BT
        wrong = ~((logprobs - old).exp().isfinite() & logprobs.isfinite())
        if config.beta > 0:
            wrong |= ~(policy.score_reference(prompts, completions) - logprobs).exp().isfinite()
        rows = (wrong & mask).any(dim=1).tolist()
        suspects = [sample for sample, bad in zip(batch, rows, strict=True) if bad]
        if len(suspects) < 2 or policy.is_sharded:  # the ranks of a sharded policy must make equally many passes
            return suspects
        # In one packed sequence a row may spoil its neighbours, so each is looked at alone.
        return [sample for sample in suspects if self._faulty([sample], config)]

    def _layer(self, prompt: Sequence[int], completion: Sequence[int]) -> str:
        model = self._policy.model
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        was_training = model.training
        model.eval()
        try:
            return first_module(model, {"input_ids": ids, **Arguments(model).uncached()})
        finally:
            model.train(was_training)


def _is_finite(rollout: Rollout) -> bool:
    return math.isfinite(sum(rollout.logprobs))
