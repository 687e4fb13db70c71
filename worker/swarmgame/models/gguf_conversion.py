"""Conversion of a GGUF file into a folder as `save_pretrained` writes it, once into the cache.

transformers reads the weights, back from their quantized blocks to float32, and the vocabulary. Two things it leaves
out are set here: how the text is split before the merges apply, for which the file has only a name, and the ids at
which generation stops. Source: `tokenizer.ggml.pre` and its regular expressions in llama.cpp, `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmgame.errors import InvalidManifest
from swarmgame.models.cache import ensure_folder, is_complete, model_folder, save_model
from swarmgame.models.package import PackageWeights, find_weights
from swarmgame.models.tensors import check_tensors
from swarmgame.models.uri import PATH, ModelUri

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Increase it whenever this module changes the model that the same file gives."""
READERS = ("transformers", "gguf")
"""Packages whose version may change the result."""

GPT2_SPLIT = frozenset({"gpt-2", "mpt", "olmo", "jais", "trillion"})
"""Names of the splitting that byte-level tokenizers have by default: GPT-2's regular expression."""
DIGITS_SPLIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Names of the same after every digit was split off."""
TRANSFORMERS_SPLIT = frozenset(
    {
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "lfm2", "tekken", "pixtral", "qwen2", "qwen35",
        "deepseek-r1-qwen", "gpt-4o", "llama4", "smaug-bpe", "dbrx",
    }
)  # fmt: skip
"""Names that transformers knows itself."""


def ensure_converted(uri: str, parsed: ModelUri, cache: Path) -> Path:
    """Return the folder of a package's model; convert it unless the cache has it.

    Raises:
        InvalidManifest: the package or its file cannot be used.
        NotWritable: the disk is full, or the cache is read-only.
    """
    weights = find_weights(uri, parsed)
    folder = _folder(weights, cache)
    ensure_folder(folder, partial(_convert, uri, weights))
    return folder


def find_converted(uri: str, parsed: ModelUri, cache: Path) -> Path | None:
    """Return the folder of a package's model; None where it was not converted yet.

    Raises:
        InvalidManifest: the package or its file cannot be used.
    """
    folder = _folder(find_weights(uri, parsed), cache)
    return folder if is_complete(folder) else None


def _folder(weights: PackageWeights, cache: Path) -> Path:
    with weights.path.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    ingredients = [CODE_VERSION, content, *(metadata.version(reader) for reader in READERS)]
    return model_folder(cache, re.sub(r"[-_.]+", "-", weights.package).lower(), ingredients)


def _convert(uri: str, weights: PackageWeights, folder: Path) -> None:
    log.info("converting %s of %s %s", weights.path.name, weights.package, weights.version)
    try:
        with _without_progress_bars():
            model, tokenizer = _read(weights.path, uri)
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        expected = f"a causal language model in a GGUF file that transformers can read; {weights.path.name}: {reason}"
        raise InvalidManifest(PATH, uri, expected) from error
    save_model(model, tokenizer, folder)


def _read(path: Path, uri: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

    split = _pre_tokenizer(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name, clean_up_tokenization_spaces=False, padding_side="left"
    )
    if split is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = split
    model, info = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_tensors(model, info, uri)
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def _pre_tokenizer(path: Path) -> Any:
    """Return how the text is split before the merges apply; None where transformers knows it.

    Raises:
        ValueError: it is not known. Other ids than those of the model's training would make it worse, and nothing
            would say why.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    reader = GGUFReader(path)
    kind, name = (
        field.contents() if (field := reader.get_field(f"tokenizer.ggml.{key}")) is not None else None
        for key in ("model", "pre")
    )
    if kind != "gpt2" or name in TRANSFORMERS_SPLIT:
        return None
    if name in DIGITS_SPLIT:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in GPT2_SPLIT:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    raise ValueError(f"its way to split text (tokenizer.ggml.pre: {name}) is not known")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide bars that transformers makes without its own switch; they would break the live table of a run."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    before = reader.tqdm
    reader.tqdm = partial(before, disable=True)
    try:
        yield
    finally:
        reader.tqdm = before
