"""Parity at load: sampler and training give the log-probabilities that each row has alone.

Architectures differ in what they compute from padding, positions, masks and caches, and there are more of them than
this project can know. So every model is tried once when it is loaded, on two prompts of different length with two
completions each. What a row alone gives, read in one pass without padding or cache, is right by definition. A shortcut
that gives something else (the decoder that is written out, a cache, packed rows, prompts that are read once) is left
out, and the run warns of it; a model for which nothing is left is refused by name. Numbers agree when no token differs
by more than the bound of the weights' type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from swarmgame.errors import InvalidManifest, SwarmGameError
from swarmgame.game.components import Notice
from swarmgame.inference.decoding import Decoding
from swarmgame.inference.sampler import ModelSampler, Sampler, SamplingParams
from swarmgame.models.uri import PATH
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.shared_prompts import can_share
from swarmgame.trainer.grpo.step_stats import StepStats

PROMPT_TOKENS = (9, 5)
COMPLETION_TOKENS = (7, 4)
"""Of the two prompts and their completions. They differ, so that rows are padded and leave the batch early."""
SAMPLES = 2
BOUNDS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.25, 0.03), torch.float16: (0.04, 0.005)}
"""Differences of a token's log-probability, the largest and the mean, in nats, by the type that computes. Tokens that
are less likely than 1/e may differ by as much more as their log-probability is larger: it is a sum of numbers that were
rounded. In bfloat16, sampler and training of nine architectures differ by 0.04 and 0.01 at most."""
MISMATCH_BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest `mismatch_kl` of the first step, in nats a token."""

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Parity:
    """What the check of a model found.

    Args:
        decoding: how the sampler takes steps; None for an engine in another process.
        packed, share_prompts: whether training packs rows, and whether it reads a shared prompt once.
        left_out: the shortcuts that were switched off, as sentences.
    """

    decoding: Decoding | None
    packed: bool
    share_prompts: bool
    left_out: tuple[str, ...] = ()


def ensure_parity(policy: Policy, sampler: Sampler) -> Parity:
    """Switch off every shortcut that does not give the numbers of a row alone. A policy that is only exported is not
    tried.

    Raises:
        InvalidManifest: the model cannot be sampled or trained rightly; with its architecture and what differs.
    """
    if policy.config.only_exports:
        return Parity(None, policy.packed, policy.share_prompts)
    return _Check(policy).run(sampler)


class Notices:
    """What a person should know of a policy: the shortcuts that it goes without, and whether its first training step
    saw the log-probabilities that the sampler had reported.
    """

    def __init__(self, parity: Parity, dtype: torch.dtype) -> None:
        self.found = [Notice("shortcut-left-out", sentence) for sentence in parity.left_out]
        self._bound = MISMATCH_BOUNDS[dtype]
        self._has_compared = False

    def compare(self, step: StepStats) -> None:
        """Compare sampler and training in the first step, before which the weights are those that sampled."""
        if self._has_compared or "mismatch_kl" not in step.means:
            return
        self._has_compared = True
        mismatch = step.means["mismatch_kl"].value
        if mismatch > self._bound:
            text = (
                f"sampler and training differ on rollouts of the same weights: mismatch_kl is {mismatch:.2g} in the "
                f"first step, and at most {self._bound:g} is rounding"
            )
            self.found.append(Notice("sampler-mismatch", text))


@dataclass
class _Check:
    """One check.

    Args:
        prompts, completions: ids of all rows, and `expected` their log-probabilities alone.
    """

    policy: Policy
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    completions: list[tuple[int, ...]] = field(default_factory=list)
    expected: list[list[float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        return type(self.policy.model).__name__

    def run(self, sampler: Sampler) -> Parity:
        decoding, versions = None, self._versions()
        if isinstance(sampler, ModelSampler):
            decoding = self._settle_sampler(sampler)
        else:
            self._take(_test_prompts(self.policy), _random_completions(self.policy))
        self._settle_training()
        if self._versions() != versions:
            # Checkpoints and exports would hold other weights than those that computed.
            raise self._refusal("its forward pass changes its weights")
        policy = self.policy
        left_out = tuple(f"{self.architecture}: {sentence}" for sentence in self.left_out)
        return Parity(decoding, policy.packed, policy.share_prompts, left_out)

    def _versions(self) -> list[int]:
        """Return how often each weight was changed in place."""
        return [parameter._version for parameter in self.policy.model.parameters()]

    # ── sampling
    def _settle_sampler(self, sampler: ModelSampler) -> Decoding:
        """Find the quickest way of decoding that gives the right numbers, and leave the sampler at it."""
        eos_token_ids, sampler.eos_token_ids = sampler.eos_token_ids, ()  # so that every completion has its length
        try:
            return self._quickest_right(sampler)
        finally:
            sampler.eos_token_ids = eos_token_ids
            sampler.release()

    def _quickest_right(self, sampler: ModelSampler) -> Decoding:
        prompts = _test_prompts(self.policy)
        params = SamplingParams(max(COMPLETION_TOKENS), temperature=self.policy.config.temperature)
        problem = ""
        for decoding in Decoding:
            if decoding < sampler.quickest:
                continue
            sampler.decoding = decoding

            def found() -> Rows:
                groups = sampler.sample(prompts, SAMPLES, params, 0, budgets=COMPLETION_TOKENS)
                self._take(prompts, [[one.token_ids for one in group] for group in groups])
                return [one.logprobs for group in groups for one in group]

            now = self._problem(found)
            if not now:
                if problem:
                    self.left_out.append(f"{_SLOWER[decoding]}, because {problem}")
                return decoding
            problem = problem or now
        raise self._refusal(f"sampling it, also without a cache, does not work: {problem}")

    # ── training
    def _settle_training(self) -> None:
        policy = self.policy
        # Gradients are on, as in training. A shard's passes have no backward pass here, for which gathered weights
        # would wait.
        with policy.in_training(0), torch.set_grad_enabled(not policy.is_sharded):
            if policy.packed and (problem := self._problem(lambda: self._cut(policy.score_packed(*self._rows)))):
                if policy.is_sharded or policy.config.layout == "packed":
                    raise self._refusal(f"training on packed rows: {problem}; layout: padded may be right")
                policy.use_padded()
                self.left_out.append(f"training is on padded rows, because with packed ones {problem}")
            if policy.packed:
                return
            if problem := self._problem(lambda: self._padded("never")):
                raise self._refusal(f"the forward pass of training: {problem}")
            policy.share_prompts = policy.share_prompts and can_share(policy.trained)
            if policy.share_prompts and (problem := self._problem(lambda: self._padded("always"))):
                policy.share_prompts = False
                self.left_out.append(
                    "training reads a prompt again for each of its completions, which takes longer, because with "
                    f"prompts that are read once {problem}"
                )

    @property
    def _rows(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        return self.prompts, self.completions

    def _padded(self, share: Any) -> Rows:
        return self._cut(self.policy.score_padded(*self._rows, share_prompts=share))

    def _cut(self, logprobs_BT: torch.Tensor) -> Rows:
        rows = logprobs_BT.detach().float().cpu().tolist()
        return [row[: len(completion)] for row, completion in zip(rows, self.completions, strict=True)]

    # ── what is right
    def _take(self, prompts: Sequence[tuple[int, ...]], completions: Sequence[Sequence[tuple[int, ...]]]) -> None:
        """Take rows, and compute what each has alone."""
        pairs = [(prompt, one) for prompt, group in zip(prompts, completions, strict=True) for one in group]
        self.prompts, self.completions = [prompt for prompt, _ in pairs], [one for _, one in pairs]
        try:
            self.expected = [self.policy.score_alone(prompt, one) for prompt, one in pairs]
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._refusal(f"its forward pass failed: {_first_line(error)}") from error
        if not all(torch.isfinite(torch.tensor(row)).all() for row in self.expected):
            raise self._refusal("log-probabilities of its forward pass are not finite: its weights are damaged")

    def _problem(self, compute: Callable[[], Rows]) -> str:
        """Return what is wrong with some log-probabilities; empty where they are right."""
        try:
            found = compute()
        except (torch.cuda.OutOfMemoryError, SwarmGameError, InvalidManifest):
            raise
        except Exception as error:  # noqa: BLE001 - code of an architecture raises whatever it likes
            return f"it fails: {_first_line(error)}"
        pairs = [
            (ours, right)
            for row, expected in zip(found, self.expected, strict=True)
            for ours, right in zip(row, expected, strict=True)
        ]
        differences = [abs(ours - right) for ours, right in pairs]
        relative = [each / max(1.0, abs(right)) for each, (_, right) in zip(differences, pairs, strict=True)]
        largest, mean = BOUNDS[self.policy.dtype]
        if max(relative) <= largest and sum(relative) / len(relative) <= mean:  # both are false for NaN
            return ""
        return f"log-probabilities differ by up to {max(differences):.2g} from those of a row alone"

    def _refusal(self, reason: str) -> InvalidManifest:
        expected = f"a model that can be sampled and trained here. {self.architecture} cannot: {reason}"
        return InvalidManifest(PATH, self.policy.source.uri, expected)


_SLOWER = {
    Decoding.CACHED: "decode steps are those of the model itself, which are slower",
    Decoding.PLAIN_MASK: "each decode step makes its mask anew, which is slower",
    Decoding.UNPADDED: "prompts of different lengths are sampled one length after the other, which is slower",
    Decoding.RECOMPUTED: (
        "each decode step reads prompt and completion again, since the model's cache cannot be used; sampling takes "
        "several times longer"
    ),
}


def _test_prompts(policy: Policy) -> list[tuple[int, ...]]:
    return [_random_ids(policy, length, seed=length) for length in PROMPT_TOKENS]


def _random_completions(policy: Policy) -> list[list[tuple[int, ...]]]:
    return [
        [_random_ids(policy, length, seed=100 * length + sample) for sample in range(SAMPLES)]
        for length in COMPLETION_TOKENS
    ]


def _random_ids(policy: Policy, count: int, seed: int) -> tuple[int, ...]:
    """Return ordinary ids: a special one may change what a model attends to."""
    special = {*policy.tokenizer.all_special_ids, *policy.eos_token_ids, policy.pad_token_id}
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while len(ids) < count:
        drawn = torch.randint(policy.vocabulary, (4 * count,), generator=generator).tolist()
        ids += [each for each in drawn if each not in special] or ([0] if policy.vocabulary <= len(special) else [])
    return tuple(ids[:count])


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
