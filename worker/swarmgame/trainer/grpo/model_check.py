"""The check of a model's files before anything starts: whether the game's prompts and budget fit the model, and, for
one that is small, whether it can be sampled and trained.

Only files on this machine are read; nothing is downloaded, made or written. A model whose weights are not here yet, or
are large, is checked when a peer loads it; the check says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Prompt
from swarmgame.models.check import check_unquantized
from swarmgame.models.gguf_conversion import find_converted
from swarmgame.models.limits import context_limit
from swarmgame.models.loading import Source, load_tokenizer
from swarmgame.models.uri import PATH, ModelUri, Scheme
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.prompts import PromptEncoder, longest_prompt
from swarmgame.trainer.grpo.turn_template import TurnTemplate

LOADED_BYTES = 1 << 30
"""Weights up to this size are loaded: it takes seconds."""
_LATER = "whether they can be sampled and trained shows when a peer loads them"


def check_model_files(
    config: GRPOConfig, context: ComponentContext, prompt: Prompt | None, *, load: bool
) -> Sequence[str]:
    """Check the model of a game, as far as its files are here.

    Args:
        prompt: one of the game's; None where it has none.
        load: also load the weights, if they are small, and compare sampling and training with rows alone.

    Returns:
        Warnings, as sentences.

    Raises:
        InvalidManifest: the model cannot be used, or not with this game.
    """
    uri, folder = context.model_uri, _folder(context)
    if folder is None:
        return _unread(uri) if load else ()
    settings = _configuration(folder, uri)
    source = Source(uri, str(folder))
    tokenizer = load_tokenizer(source)
    encoder = PromptEncoder(
        tokenizer,
        uri,
        longest=longest_prompt(context_limit(settings), config),
        embeddings=int(settings.get_text_config().vocab_size),
        eos_token_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        filler=0,
        variables=config.chat_template_kwargs,
    )
    encoder.check()
    if prompt is not None and prompt.messages:
        encoder(prompt)
    if context.episodes is not None:
        TurnTemplate(tokenizer, uri, role=context.episodes.role, ends=(), variables=config.chat_template_kwargs)
    warnings = [notice.text for notice in encoder.notices()]
    size = _size(folder)
    if load and size > LOADED_BYTES:
        warnings.append(f"the weights of {uri} were not read, since they have {size / 2**30:.1f} GiB: {_LATER}")
    elif load:
        try:
            warnings += _parity(config, replace(context, model_uri=folder.absolute().as_uri(), model_revision=""))
        except InvalidManifest as error:
            # The user wrote another address.
            named = (replace(each, got=uri) if each.path == PATH else each for each in error.problems)
            raise InvalidManifest(problems=tuple(named)) from error
    return warnings


def _folder(context: ComponentContext) -> Path | None:
    """Return the folder of the model's files; None where they are made, or not here."""
    parsed = ModelUri.parse(context.model_uri)
    if parsed.scheme is Scheme.FILE:
        return Path(parsed.name)
    if parsed.scheme is Scheme.HUB:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(parsed.name, "config.json", revision=context.model_revision or None)
        return Path(found).parent if isinstance(found, str) else None
    return find_converted(context.model_uri, parsed, context.cache) if parsed.scheme is Scheme.PACKAGE else None


def _unread(uri: str) -> tuple[str, ...]:
    """Return a sentence where a model that will be read is not here yet; a builtin one is made by a recipe."""
    missing = {
        Scheme.HUB: "it is not in the local cache of the hub",
        Scheme.PACKAGE: "the file of its package was not converted yet",
    }.get(ModelUri.parse(uri).scheme)
    return (f"the weights of {uri} were not read, since {missing}: {_LATER}",) if missing else ()


def _configuration(folder: Path, uri: str) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidManifest(PATH, uri, f"a causal language model that transformers can load: {reason}") from error
    if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        expected = f"a causal language model: transformers has none of the type {settings.model_type}"
        raise InvalidManifest(PATH, uri, expected)
    check_unquantized(uri, settings.to_dict())
    return settings


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))


def _parity(config: GRPOConfig, context: ComponentContext) -> list[str]:
    from swarmgame.inference.engines import make_sampler
    from swarmgame.trainer.grpo.parity import ensure_parity
    from swarmgame.trainer.grpo.policy import Policy

    plain = {"sampler": "eager", "layout": "padded", "compile": False, "sharding": "none", "beta": 0.0}
    policy = Policy(config.model_copy(update=plain), context)
    sampler = make_sampler(policy, "eager", longest=policy.longest_prompt + config.max_new_tokens)
    return list(ensure_parity(policy, sampler).left_out)
