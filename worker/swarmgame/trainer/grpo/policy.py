"""The policy: a causal language model with its tokenizer. It encodes prompts and computes log-probabilities.

Invariants: training and sampling use the same weights (the model's own dropout is off); remote text is turned into ids
only here. Where the ranks of a peer shard the policy, `trained` holds the parts, and `model` is a complete copy in the
type that computes, which `refresh` brings up to date: generation, exports and a vLLM server take their weights from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Prompt
from swarmgame.inference.arguments import Arguments
from swarmgame.models.fingerprint import model_fingerprint
from swarmgame.models.limits import context_limit
from swarmgame.models.loading import load_model, load_tokenizer
from swarmgame.models.noise import training_mode
from swarmgame.models.tokenizer import tokenizer_hash
from swarmgame.models.warmstart import ensure_model
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.completions import CompletionTexts, end_of_turn
from swarmgame.trainer.grpo.config import GRPOConfig, Lora
from swarmgame.trainer.grpo.logprobs import EarlyEos, Sharing, completion_logprobs, selective_log_softmax
from swarmgame.trainer.grpo.packed_forward import PACKED, PackedForward, is_fast, supports_packing
from swarmgame.trainer.grpo.prompts import PromptEncoder, longest_prompt
from swarmgame.trainer.grpo.sharding import decoder_layers, shall_shard, shard
from swarmgame.trainer.shards import joined, own_part


class Policy:
    """Load the context's model (made and warm-started first, if builtin; converted, if of a package) onto its device.

    Raises:
        InvalidManifest: the model cannot be loaded, or the adapters do not fit it.
    """

    def __init__(self, config: GRPOConfig, context: ComponentContext) -> None:
        self.config = config
        self.context = context
        self.source = source = ensure_model(context)
        on_cpu = torch.device(context.device).type == "cpu"
        self.dtype = dtype = computing_type(config.dtype, torch.device(context.device))
        self.tokenizer = load_tokenizer(source)
        self._seed = derive_seed(context.seed, "adapters")
        on_host = context.ranks.size > 1 and config.sharding != "none"
        loaded: Any = load_model(source, dtype=dtype, device="cpu" if on_host else context.device)
        self.base = model_fingerprint(source, context.cache)
        """The fingerprint of the model's files."""
        self.is_sharded = shall_shard(config, context, loaded)
        """Whether each rank of the peer holds but a part of the trained weights."""
        self.trained: Any = loaded if self.is_sharded else loaded.to(context.device)
        self.model: Any = self.trained
        if self.is_sharded:
            self.model = load_model(source, dtype=dtype, device="cpu")
        self.hash = tokenizer_hash(self.tokenizer)
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self._end_of_turn = end_of_turn(self.tokenizer, **config.chat_template_kwargs)
        self.eos_token_ids = self._eos()
        pad = self.tokenizer.pad_token_id
        usable = pad is not None and pad < self.vocabulary
        self.pad_token_id = int(pad if usable else self.eos_token_ids[0] if self.eos_token_ids else 0)
        self.longest_prompt = longest_prompt(context_limit(self.model.config), config)
        self.completions = CompletionTexts(
            self.tokenizer,
            vocabulary=self.vocabulary,
            eos_token_ids=self.eos_token_ids,
            end=self._end_of_turn if self._end_of_turn is not None else next(iter(self.eos_token_ids), None),
            stop=config.stop,
        )
        self.encoder = PromptEncoder(
            self.tokenizer,
            source.uri,
            longest=self.longest_prompt,
            embeddings=self.vocabulary,
            eos_token_ids=self.eos_token_ids,
            filler=self._filler(),
            variables=config.chat_template_kwargs,
        )
        self.encoder.check()
        self._trained_adapted = self._with_adapters(self.trained)
        self.adapted: Any = self._with_adapters(self.model) if self.is_sharded else self._trained_adapted
        """peft's model, around the weights of `model`; None for a policy without adapters."""
        if self.is_sharded:
            self.model.requires_grad_(False).to("cpu" if config.has_external_engine else context.device)
        self._reference: Any = None
        if config.beta > 0 and self.adapted is None:
            self._reference = load_model(
                source, dtype=dtype, device="cpu" if self.is_sharded else context.device
            ).requires_grad_(False)
        if config.gradient_checkpointing:
            self.trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.adapted is not None:
                self.trained.enable_input_require_grads()
        device = torch.device(context.device)
        self.packed = _is_packed(self.trained, config, device)
        """Whether micro-batches are packed, so that their budget counts no padding."""
        if config.compile is True and not self.packed:
            _compile_layers(self.trained)
        compiled = self.packed and (config.compile is True or (config.compile == "auto" and not on_cpu))
        self._packed = PackedForward(self.trained, compile=compiled, device=device) if self.packed else None
        self._packed_reference = self._packed
        if self.packed and self._reference is not None:
            self._packed_reference = PackedForward(self._reference, compile=compiled, device=device)
        self.share_prompts = not self.is_sharded
        """Whether a prompt of several completions is read once, where that is quicker and rows are not packed."""
        if self.is_sharded:
            self._shard(device)

    def in_training(self, seed: int) -> AbstractContextManager[None]:
        """Return a block in which the policy is in the mode in which it is trained; `seed` is of its dropout."""
        return training_mode(self.trained, torch.device(self.context.device), seed)

    def use_padded(self) -> None:
        """Train on padded rows from now on. Not for a sharded policy, whose packed pass holds its weights."""
        self.packed, self._packed, self._packed_reference = False, None, None

    def _with_adapters(self, model: Any) -> Any:
        return None if self.config.lora is None else _adapters(model, self.config.lora, self._seed)

    def _shard(self, device: torch.device) -> None:
        adapters = self.adapted is not None
        for model, packed in ((self.trained, self._packed), (self._reference, self._packed_reference)):
            if model is None:
                continue
            if packed is not None:
                shard(packed, list(packed.layers), device, adapters=adapters)
            else:
                shard(model, decoder_layers(model), device, adapters=adapters)

    def _eos(self) -> tuple[int, ...]:
        found: list[int] = []
        generation = getattr(self.model, "generation_config", None)
        for ids in (self.tokenizer.eos_token_id, getattr(generation, "eos_token_id", None), self._end_of_turn):
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
        # An id beyond the embedding can never be sampled; on a device it would be an index out of bounds.
        return tuple(dict.fromkeys(int(token) for token in found if 0 <= int(token) < self.vocabulary))

    def _filler(self) -> int:
        """Return the id of a prompt without any."""
        begin = self.tokenizer.bos_token_id
        return int(begin) if begin is not None and begin < self.vocabulary else self.pad_token_id

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The trained parameters by name; tied weights once."""
        return {name: parameter for name, parameter in self.trained.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the trained weights into `model`, after an update. A collective call where they are sharded; elsewhere
        they are the same.
        """
        if not self.is_sharded:
            return
        copies = dict(self.model.named_parameters())
        for name, parameter in self.parameters.items():
            copies[name].copy_(joined(own_part(parameter).to(copies[name].dtype), parameter))

    # ── text and ids
    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt; see `PromptEncoder`."""
        return self.encoder(prompt)

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of ids without special tokens; None when an id is not in the vocabulary."""
        return self.completions.decode(token_ids)

    # ── probabilities
    @property
    def _early_eos(self) -> EarlyEos | None:
        least = self.config.min_new_tokens
        return EarlyEos(self.eos_token_ids, least) if least and self.eos_token_ids else None

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities with gradient, entropies, and mask, each [B, T].

        Args:
            states: the hidden states [N, H] of the scored positions, row by row, are added to it, with gradient.
        """
        if self._packed is not None:
            return self._packed.score(prompts, completions, self.config.temperature, self._early_eos, states)
        logprobs, entropies, mask = self._padded(self.trained, prompts, completions, with_entropy=True, states=states)
        assert entropies is not None
        return logprobs, entropies, mask

    def _padded(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        with_entropy: bool,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        return completion_logprobs(
            model,
            prompts,
            completions,
            self.config.temperature,
            with_entropy=with_entropy,
            pad_token_id=self.pad_token_id,
            share_prompts="worthwhile" if self.share_prompts else "never",
            early_eos=self._early_eos,
            states=states,
        )

    def score_packed(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """Return log-probabilities [B, T] of the packed pass, not compiled; only for a policy that is `packed`."""
        assert self._packed is not None
        with self._packed.without_compiling():
            return self._packed.score(prompts, completions, self.config.temperature)[0]

    def score_padded(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, share_prompts: Sharing
    ) -> Tensor:
        """Return log-probabilities [B, T] of the padded pass, with or without prompts that are read once."""
        logprobs, _, _ = completion_logprobs(
            self.trained,
            prompts,
            completions,
            self.config.temperature,
            with_entropy=False,
            pad_token_id=self.pad_token_id,
            share_prompts=share_prompts,
        )
        return logprobs

    @torch.no_grad()
    def score_alone(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Return the log-probabilities of one completion, read together with its prompt: without padding, positions,
        mask or cache. That is what every shortcut must give.
        """
        if self.model.device.type != torch.device(self.context.device).type:
            # The complete copy of a sharded policy that another engine samples from is on the host.
            return self.score_padded([prompt], [completion], share_prompts="never")[0].tolist()
        ids = torch.tensor([[*prompt, *completion]], device=self.model.device)
        logits_TV = self.model(input_ids=ids, **Arguments(self.model).uncached()).logits[0, len(prompt) - 1 : -1]
        return selective_log_softmax(logits_TV, ids[0, len(prompt) :], self.config.temperature)[0].tolist()

    @torch.no_grad()
    def score_reference(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """Return log-probabilities [B, T] under the model as it was loaded: the frozen copy, or the model without
        adapters.
        """
        with self._trained_adapted.disable_adapter() if self._trained_adapted is not None else nullcontext():
            if self._packed_reference is not None:
                return self._packed_reference.score(prompts, completions, self.config.temperature, self._early_eos)[0]
            model = self.trained if self._reference is None else self._reference
            return self._padded(model, prompts, completions, with_entropy=False)[0]

    def empty_pass(self, *, backward: bool = True, reference: bool = False) -> None:
        """Take part in a pass of the other ranks of a sharded policy, over one token whose gradients are zero."""
        token = [[self.pad_token_id]]
        logprobs, _, _ = self.score(token, token)
        if reference:
            self.score_reference(token, token)
        if backward:
            (logprobs.sum() * 0.0).backward()  # type: ignore[no-untyped-call]

    def save_weights(self, folder: Path) -> None:
        """Save the adapters, or else the model: safetensors and their configuration."""
        (self.adapted or self.model).save_pretrained(folder)


def computing_type(name: str, device: torch.device) -> torch.dtype:
    """Return the type of the weights that compute.

    Args:
        name: as configured; `auto` is bfloat16 on a CUDA device that computes in it, and float32 elsewhere.

    Raises:
        InvalidManifest: the device has no such type.
    """
    has_bfloat16 = True
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not has_bfloat16:
        from swarmgame.errors import InvalidManifest

        expected = f"auto or float32: {torch.cuda.get_device_name(device)} does not compute in bfloat16"
        raise InvalidManifest("spec.game.trainer.with.dtype", name, expected)
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_bfloat16 else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


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


def _is_packed(model: Any, config: GRPOConfig, device: torch.device) -> bool:
    if config.layout == "auto":
        return supports_packing(model) and is_fast(model, device)
    if config.layout == "packed" and not supports_packing(model):
        from swarmgame.errors import InvalidManifest

        served = ", ".join(sorted(PACKED))
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
