"""The policy: a causal language model with its tokenizer. It encodes prompts and computes log-probabilities.

Invariants: training and sampling use the same weights (the model's own dropout is off); remote text is turned into ids
only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import FinishReason, Prompt
from swarmgame.inference.llama import SUPPORTED
from swarmgame.models.loading import load_model, load_tokenizer
from swarmgame.models.tokenizer import tokenizer_hash
from swarmgame.models.warmstart import ensure_model
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.config import GRPOConfig, Lora
from swarmgame.trainer.grpo.logprobs import completion_logprobs
from swarmgame.trainer.grpo.packed_forward import PackedForward, is_fast, supports_packing


class Policy:
    """Load the context's model (made and warm-started first, if builtin) onto its device.

    Raises:
        InvalidManifest: the model cannot be loaded, or the adapters do not fit it.
    """

    def __init__(self, config: GRPOConfig, context: ComponentContext) -> None:
        self.config = config
        self.context = context
        self.source = source = ensure_model(context)
        on_cpu = torch.device(context.device).type == "cpu"
        name = config.dtype if config.dtype != "auto" else "float32" if on_cpu else "bfloat16"
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        self.dtype = dtype
        self.tokenizer = load_tokenizer(source)
        self.model: Any = load_model(source, dtype=dtype, device=context.device)
        self.hash = tokenizer_hash(self.tokenizer)
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.eos_token_ids = self._eos()
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = int(pad if pad is not None else self.eos_token_ids[0] if self.eos_token_ids else 0)
        self.adapted: Any = None
        """peft's model, around the same weights; None for a policy without adapters."""
        if config.lora is not None:
            self.adapted = _adapters(self.model, config.lora, derive_seed(context.seed, "adapters"))
        self._reference: Any = None
        if config.beta > 0 and self.adapted is None:
            self._reference = load_model(source, dtype=dtype, device=context.device).requires_grad_(False)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.adapted is not None:
                self.model.enable_input_require_grads()
        self.packed = _is_packed(self.model, config)
        """Whether micro-batches are packed, so that their budget counts no padding."""
        if config.compile is True and not self.packed:
            _compile_layers(self.model)
        compiled = self.packed and (config.compile is True or (config.compile == "auto" and not on_cpu))
        self._packed = PackedForward(self.model, compile=compiled) if self.packed else None
        self._packed_reference = self._packed
        if self.packed and self._reference is not None:
            self._packed_reference = PackedForward(self._reference, compile=compiled)

    def _eos(self) -> tuple[int, ...]:
        found: list[int] = []
        generation = getattr(self.model, "generation_config", None)
        for ids in (self.tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)):
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
        # An id beyond the embedding can never be sampled; on a device it would be an index out of bounds.
        return tuple(dict.fromkeys(int(token) for token in found if 0 <= int(token) < self.vocabulary))

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The trained parameters by name; tied weights once."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    # ── text and ids
    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt: through the chat template where there is one, else of `Prompt.text`. Never
        empty; a prompt that is too long loses its beginning.
        """
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            ids = self.tokenizer(prompt.text)["input_ids"]
        ids = list(ids) or [
            self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.pad_token_id
        ]
        return tuple(ids[-self.longest_prompt :])

    def encode_completion(self, text: str, reason: FinishReason) -> tuple[int, ...]:
        """Return the ids of a text by a policy with another tokenizer; with EOS only where the text had ended."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return (*ids, self.eos_token_ids[0]) if reason is FinishReason.STOP and self.eos_token_ids else ids

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of ids without special tokens; None when an id is not in the vocabulary."""
        if not self.knows(token_ids):
            return None
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Return whether all ids are in the vocabulary."""
        return all(0 <= token < self.vocabulary for token in token_ids)

    @property
    def longest_prompt(self) -> int:
        room = (
            int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))
            - self.config.max_new_tokens
        )
        return max(1, min(self.config.max_prompt_tokens, room))

    # ── probabilities
    def score(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities with gradient, entropies, and mask, each [B, T]."""
        if self._packed is not None:
            return self._packed.score(prompts, completions, self.config.temperature)
        logprobs, entropies, mask = completion_logprobs(
            self.model, prompts, completions, self.config.temperature, with_entropy=True, pad_token_id=self.pad_token_id
        )
        assert entropies is not None
        return logprobs, entropies, mask

    @torch.no_grad()
    def score_reference(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """Return log-probabilities [B, T] under the model as it was loaded: the frozen copy, or the model without
        adapters.
        """
        with self.adapted.disable_adapter() if self.adapted is not None else nullcontext():
            if self._packed_reference is not None:
                return self._packed_reference.score(prompts, completions, self.config.temperature)[0]
            model = self.model if self._reference is None else self._reference
            logprobs, _, _ = completion_logprobs(
                model, prompts, completions, self.config.temperature, with_entropy=False, pad_token_id=self.pad_token_id
            )
        return logprobs

    def save_weights(self, folder: Path) -> None:
        """Save the adapters, or else the model: safetensors and their configuration."""
        (self.adapted or self.model).save_pretrained(folder)


def _adapters(model: Any, lora: Lora, seed: int) -> Any:
    """Add adapters to the model in place, and freeze the rest. Return peft's wrapper, which can switch them off."""
    from peft import LoraConfig, get_peft_model

    from swarmgame.errors import InvalidManifest

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        bias="none",
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, settings)
        except ValueError as error:
            raise InvalidManifest(
                "spec.game.trainer.with.lora.targetModules", lora.target_modules, f"layers of this model: {error}"
            ) from error


def _is_packed(model: Any, config: GRPOConfig) -> bool:
    if config.layout == "auto":
        return supports_packing(model) and is_fast(model)
    if config.layout == "packed" and not supports_packing(model):
        from swarmgame.errors import InvalidManifest

        served = ", ".join(sorted(SUPPORTED))
        raise InvalidManifest(
            "spec.game.trainer.with.layout",
            "packed",
            f"padded or auto: {type(model).__name__} is not one of {served} with full attention",
        )
    return config.layout == "packed"


def _compile_layers(model: Any) -> None:
    """Compile each decoder layer separately: this takes seconds instead of minutes, and all layers share the result."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile(dynamic=True)
