"""Export of a policy: a folder that transformers' Auto classes (or peft, for adapters) load.

Adapters are merged into copies, layer by layer: the policy itself, which may go on training, does not change, and no
random number is used. Every folder has the tokenizer, its chat template and the generation configuration, with the
ids at which the policy stops. Invariant: AutoTokenizer of the folder gives the ids of the policy's own tokenizer.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from swarmgame.models.tokenizer import tokenizer_hash
from swarmgame.models.uri import Scheme

if TYPE_CHECKING:
    from swarmgame.trainer.grpo.policy import Policy

logger = logging.getLogger(__name__)

BASE = "base"
"""Folder beside the adapters with a base model that exists elsewhere only in a cache: a builtin one, or one converted
from a package."""


def export_policy(policy: Policy, folder: Path, *, merge_adapters: bool) -> None:
    """Write the policy into a folder.

    Args:
        merge_adapters: write one complete model; else peft's adapters. No effect on a policy without adapters.

    Raises:
        OSError: the folder cannot be written.
    """
    # A progress bar would break the live table of a run.
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    if policy.adapted is None:
        policy.model.save_pretrained(folder)
    elif merge_adapters:
        _save_merged(policy.model, folder)
    else:
        # Without the check of embedding layers, which requests the base model's configuration from the hub.
        policy.adapted.save_pretrained(folder, save_embedding_layers=False)
        _change_json(folder / "adapter_config.json", revision=policy.source.revision or None)
        policy.model.generation_config.save_pretrained(folder)
        if policy.source.uri.startswith((f"{Scheme.BUILTIN}://", f"{Scheme.PACKAGE}://")):
            _save(policy.model, _weights(policy.model, merge=False), folder / BASE)
            policy.tokenizer.save_pretrained(folder / BASE)
            _check_tokenizer(policy.tokenizer, folder / BASE)
    policy.tokenizer.save_pretrained(folder)
    if (folder / "config.json").is_file():
        _check_tokenizer(policy.tokenizer, folder)
    stops = list(policy.eos_token_ids)
    _change_json(
        folder / "generation_config.json",
        eos_token_id=stops[0] if len(stops) == 1 else stops or None,
        pad_token_id=policy.pad_token_id,
    )


def _save_merged(model: Any, folder: Path) -> None:
    merged = _weights(model, merge=True)
    _save(model, merged, folder)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    head_weight, embedding_weight = (merged.get(f"{names.get(id(part))}.weight") for part in (head, embedding))
    if not model.config.get_text_config().tie_word_embeddings or head_weight is None or embedding_weight is None:
        return
    if not torch.equal(head_weight, embedding_weight):
        # Adapters of one of two tied layers: they are no longer equal, and loading must not tie them again.
        _change_json(folder / "config.json", tie_word_embeddings=False)


def _save(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    model.save_pretrained(folder, state_dict=dict(weights))


@torch.no_grad()
def _weights(model: Any, *, merge: bool) -> dict[str, Tensor]:
    """Return the weights under the names of the model without adapters: merged copies on the CPU, or as they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    found: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        owner = next((name for name in layers if key.startswith(f"{name}.")), None)
        if owner is None:
            found[key] = tensor
            continue
        rest = key.removeprefix(f"{owner}.")
        if not rest.startswith("base_layer."):
            continue  # of the adapter
        name = f"{owner}.{rest.removeprefix('base_layer.')}"
        found[name] = tensor
        if merge and rest == "base_layer.weight":
            layer: Any = layers[owner]
            changes = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]
            found[name] = (tensor.float() + sum(change.float() for change in changes)).to(tensor.dtype).cpu()
    return found


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Compare the folder's AutoTokenizer with the policy's tokenizer, and correct the folder where they differ.

    transformers gives some architectures (qwen2) their own tokenizer, whatever was saved. With `auto_map` it takes
    the class that the folder names; no code of the folder is involved.
    """
    expected = tokenizer_hash(tokenizer)
    if tokenizer_hash(AutoTokenizer.from_pretrained(folder)) == expected:
        return
    if getattr(tokenizer, "is_fast", False):
        file = folder / "tokenizer_config.json"
        _change_json(file, tokenizer_class="PreTrainedTokenizerFast", auto_map={"AutoTokenizer": [None, None]})
    if tokenizer_hash(AutoTokenizer.from_pretrained(folder)) != expected:
        logger.warning(
            "AutoTokenizer of the export gives other ids than the policy's tokenizer, because transformers replaces "
            "tokenizers of %s: load it with %s.from_pretrained",
            json.loads((folder / "config.json").read_bytes()).get("model_type"),
            type(tokenizer).__name__,
        )


def _change_json(file: Path, **changes: Any) -> None:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**found, **changes}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
