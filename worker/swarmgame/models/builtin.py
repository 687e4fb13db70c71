"""The builtin model: a small Qwen2 decoder with random weights, so that a first game needs no download.

`swarmgame.models.warmstart` first trains it on the format and a little of the content of the game. Invariant: the same
options give the same weights on every machine with the same libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from swarmgame.models.uri import PATH, ModelUri
from swarmgame_api.errors import InvalidManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BuiltinOptions(BaseModel):
    """The options in the query of `builtin://tiny?layers=2&hidden=64`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    layers: Annotated[int, Field(ge=1, le=32)] = 2
    """Decoder layers."""
    hidden: Annotated[int, Field(ge=16, le=2048, multiple_of=8)] = 64
    """Width; the MLP is four times as wide."""
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    """Attention heads; the width must be a multiple of twice their number."""
    accuracy: Annotated[float, Field(ge=0, lt=1)] = 0.22
    """Accuracy on held-out demonstrations at which the warm start stops; 0 leaves the weights random."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 1200
    """Most steps of the warm start; if the accuracy is not reached by then, a warning is logged."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Seed of the initial weights and of the order of demonstrations."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> BuiltinOptions:
        if self.hidden % (2 * self.heads):
            raise ValueError("hidden must be a multiple of twice the number of heads")
        return self

    @classmethod
    def of(cls, uri: ModelUri) -> BuiltinOptions:
        """Return the options of an address.

        Raises:
            InvalidManifest: an option is unknown or has a wrong value.
        """
        if uri.name != "tiny":
            raise InvalidManifest(PATH, f"builtin://{uri.name}", "builtin://tiny: there is no other builtin model")
        try:
            return cls.model_validate(dict(uri.options))
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(map(str, first["loc"])) or "?"
            expected = f"valid options of builtin://tiny ({', '.join(cls.model_fields)}); {option}: {first['msg']}"
            raise InvalidManifest(PATH, first["input"], expected) from error


def build_model(options: BuiltinOptions, *, vocabulary: int, pad: int, bos: int, eos: int) -> PreTrainedModel:
    """Return a new decoder in float32 on the CPU, of about 135,000 parameters by default. Torch's random state does
    not change.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=options.hidden**-0.5,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model: PreTrainedModel = Qwen2ForCausalLM(config)
    return model.to(torch.float32).eval()
