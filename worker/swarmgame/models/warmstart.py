"""Warm start: supervised training of the builtin model on demonstrations, before reinforcement learning begins.

Cross-entropy on the completions of the data's own demonstrations. It stops at a target accuracy instead of a step
count: a policy that is always right has no training signal, one that is never right gets no reward. Accuracy is the
mean probability of a held-out completion with EOS at temperature 1, from one forward pass and so without sampling
noise. Models of Python packages are converted into the same cache.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from swarmgame.errors import writing
from swarmgame.game.components import ComponentContext
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.models.builtin import BuiltinOptions, build_model
from swarmgame.models.cache import ensure_folder, model_folder, save_model
from swarmgame.models.gguf_conversion import ensure_converted
from swarmgame.models.loading import Source
from swarmgame.models.tokenizer import character_tokenizer, tokenizer_hash
from swarmgame.models.uri import ModelUri, Scheme
from swarmgame.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Increase it whenever this module or `builtin` changes the weights that the same options give."""
BATCH = 16
HELD_OUT = 96
CHECK_FAR, CHECK_NEAR = 50, 5
"""Steps between evaluations on held-out demonstrations, far from the target and near it."""
CHUNK = 400
"""Demonstrations that are made at once, and sorted into batches of similar length."""
WARMUP_STEPS = 20
LEARNING_RATE = 2e-3
LONGEST = 4096
"""Demonstrations longer than this many ids are left out."""


@dataclass(frozen=True)
class WarmStart:
    """The result: the accuracy on held-out demonstrations after `steps`, and whether it reached the target."""

    accuracy: float
    steps: int
    reached: bool


def ensure_model(context: ComponentContext) -> Source:
    """Return the source of the context's model. Unless the cache has it, make and warm-start the builtin one, or
    convert that of a package. Idempotent.

    Raises:
        InvalidManifest: the address is invalid, or the package cannot be used.
        NotWritable: the disk is full, or the cache is read-only.
    """
    uri = ModelUri.parse(context.model_uri)
    if uri.scheme is Scheme.PACKAGE:
        return Source(context.model_uri, str(ensure_converted(context.model_uri, uri, context.cache)))
    source = source_of(context)
    if uri.scheme is Scheme.BUILTIN:
        options = BuiltinOptions.of(uri)
        ensure_folder(Path(source.name), lambda aside: _make(aside, options, context.demonstrations))
    return source


def source_of(context: ComponentContext) -> Source:
    """Return the source of the context's model, which may not be there yet. For a package it names no folder.

    Raises:
        InvalidManifest: the address is invalid.
    """
    uri = ModelUri.parse(context.model_uri)
    if uri.scheme is Scheme.PACKAGE:
        return Source(context.model_uri, "")
    if uri.scheme is not Scheme.BUILTIN:
        return Source(context.model_uri, uri.name, context.model_revision, context.model_token)
    demonstrations = context.demonstrations
    ingredients = [
        CODE_VERSION,
        BuiltinOptions.of(uri).model_dump(),
        tokenizer_hash(character_tokenizer()),
        demonstrations.fingerprint if demonstrations is not None else "",
    ]
    return Source(context.model_uri, str(model_folder(context.cache, "tiny", ingredients)))


def warm_start(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrations: Demonstrations, options: BuiltinOptions
) -> WarmStart:
    """Train in place until the target accuracy or the last step."""
    held_out = _encode(
        tokenizer, demonstrations.demonstrate(derive_seed(options.seed, "warm-start", "held-out"), HELD_OUT)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    accuracy = _accuracy(model, held_out)
    step, checked, trend = 0, 0, 0.0
    model.train()
    while accuracy < options.accuracy and step < options.steps:
        batches = _chunk(tokenizer, demonstrations, derive_seed(options.seed, "warm-start", step))
        if not batches:
            break
        for batch in batches[: options.steps - step]:
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, step / WARMUP_STEPS)
            logprobs, mask = _completion_logprobs(model, batch)
            optimizer.zero_grad(set_to_none=True)
            (-(logprobs * mask).sum() / mask.sum()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            # The accuracy on training batches costs nothing; it decides how often to evaluate on held-out ones.
            trend += 0.3 * (float((logprobs.detach() * mask).sum(1).exp().mean()) - trend)
            if step - checked >= (CHECK_NEAR if trend > 0.9 * options.accuracy else CHECK_FAR):
                accuracy, checked = _accuracy(model, held_out), step
                if accuracy >= options.accuracy:
                    break
    model.eval()
    if checked != step:
        accuracy = _accuracy(model, held_out)
    return WarmStart(accuracy, step, accuracy >= options.accuracy)


def _make(folder: Path, options: BuiltinOptions, demonstrations: Demonstrations | None) -> None:
    tokenizer = character_tokenizer()
    pad, bos, eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    model = build_model(options, vocabulary=len(tokenizer), pad=pad, bos=bos, eos=eos)
    outcome = WarmStart(float("nan"), 0, reached=False)
    if demonstrations is not None and options.accuracy > 0:
        log.info("warm start of the builtin model towards an accuracy of %.2f", options.accuracy)
        with one_thread():
            outcome = warm_start(model, tokenizer, demonstrations, options)
        level = logging.INFO if outcome.reached else logging.WARNING
        log.log(
            level,
            "warm start: accuracy %.3f after %d steps (target %.2f%s)",
            outcome.accuracy,
            outcome.steps,
            options.accuracy,
            "" if outcome.reached else ", NOT reached: easier data, a wider model or more `steps` would help",
        )
    save_model(model, tokenizer, folder)
    record = {
        "accuracy": outcome.accuracy if outcome.steps else None,
        "steps": outcome.steps,
        "reached": outcome.reached,
    }
    with writing(folder):
        (folder / "warmstart.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: sums then do not depend on the number of cores, and so small a model gains nothing by
    more (60 steps beside other work on two cores: 5 s with one thread, 23 s with two).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Pair = tuple[list[int], list[int]]


def _chunk(tokenizer: PreTrainedTokenizerBase, demonstrations: Demonstrations, seed: int) -> list[list[Pair]]:
    """Return some hundred demonstrations in batches of similar length (little padding), in random order."""
    chunk = sorted(_encode(tokenizer, demonstrations.demonstrate(seed, CHUNK)), key=lambda pair: sum(map(len, pair)))
    batches = [chunk[start : start + BATCH] for start in range(0, len(chunk), BATCH)]
    return [
        batches[index] for index in torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    ]


def _encode(tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration]) -> list[Pair]:
    pairs = [
        (
            tokenizer(demonstration.prompt.text)["input_ids"],
            [*tokenizer(demonstration.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
        )
        for demonstration in demonstrations
    ]
    return [pair for pair in pairs if sum(map(len, pair)) <= LONGEST]


def _completion_logprobs(model: PreTrainedModel, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of every next id [B, L-1], and a mask of the completions."""
    length = max(sum(map(len, pair)) for pair in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    mask = torch.zeros(len(pairs), length)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        mask[row, len(prompt) : end] = 1
    # Padding is on the right and attention is causal, so no attention mask is needed.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    logprobs = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return logprobs, mask[:, 1:]


@torch.no_grad()
def _accuracy(model: PreTrainedModel, held_out: Sequence[Pair]) -> float:
    if not held_out:
        return 0.0
    logprobs, mask = _completion_logprobs(model, held_out)
    return float((logprobs * mask).sum(1).exp().mean())
