"""Loading of every model, the builtin one included, through transformers' Auto classes.

Invariant: no code that comes with a model is run (`trust_remote_code` stays off), and the hub's token is passed only
to the hub's client.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmgame.errors import InvalidManifest, Temporary
from swarmgame.models.hub import connection_errors, quiet_retries, unreachable_errors
from swarmgame.models.uri import PATH, Scheme, read_token

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""The files beside the weights: configuration and tokenizer."""


@dataclass(frozen=True)
class Source:
    """The place from which transformers loads a model.

    Args:
        uri: as in the manifest, for messages.
        name: a folder, or a name on the hub.
        revision: of the hub; empty for the default branch.
        token: path of a file with the hub's token.
    """

    uri: str
    name: str
    revision: str = ""
    token: Path | None = None


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer.

    Raises:
        InvalidManifest, Temporary: as `load_model`.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        arguments = {"revision": source.revision or "main", "token": read_token(source.token)}
        # transformers 5 gives every qwen2 model the pre-tokenizer of Qwen2, even if it was saved with another one: the
        # ids differ, and spaces are lost.
        plain = get_tokenizer_config(source.name, **arguments).get("tokenizer_class") in (
            "TokenizersBackend",
            "PreTrainedTokenizerFast",
        )
        return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(source.name, **arguments)
    except unreachable_errors(ValueError, KeyError) as error:
        raise _explained(error, source, "tokenizer") from error


def load_model(source: Source, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Load the weights, on the device, in eval mode. Without dropout: training must use the policy that sampled.

    Raises:
        InvalidManifest: there is no causal language model at the address that transformers can load.
        Temporary: the hub did not answer.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    # Its progress bars would break the live table of a run.
    transformers_logging.disable_progress_bar()
    try:
        with quiet_retries():
            model = AutoModelForCausalLM.from_pretrained(
                source.name, revision=source.revision or "main", token=read_token(source.token), dtype=dtype
            )
    except unreachable_errors(ValueError, KeyError) as error:
        raise _explained(error, source, "model") from error
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def fetch(source: Source) -> None:
    """Download a model from the hub into the local cache, without loading it. Do nothing for a model that is cached or
    not of the hub.

    Raises:
        InvalidManifest: the hub has no such model, or does not allow reading it.
        Temporary: the hub did not answer, and the model is not in the cache.
    """
    if not source.uri.startswith(f"{Scheme.HUB}://"):
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def download(*patterns: str) -> Path:
        token = read_token(source.token) or False
        return Path(
            snapshot_download(source.name, revision=source.revision or None, token=token, allow_patterns=list(patterns))
        )

    try:
        folder = download(*_SMALL_FILES, "*.safetensors")
        if not any(folder.glob("*.safetensors")):
            download("*.bin")
    except GatedRepoError as error:
        raise InvalidManifest(
            PATH, source.uri, "a model that you may read: it is gated, so accept its licence and give a token"
        ) from error
    except RevisionNotFoundError as error:
        raise InvalidManifest(
            "spec.model.revision", source.revision, f"a branch, tag or commit of {source.name}"
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidManifest(
            PATH, source.uri, "a model that exists on the hub (or a token that may read it)"
        ) from error
    except unreachable_errors(ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Temporary(f"the model {source.uri} could not be fetched: {reason}") from error


def _explained(error: BaseException, source: Source, what: str) -> Exception:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, connection_errors()) or "couldn't connect" in reason.lower():
        return Temporary(f"the {what} of {source.uri} could not be fetched: {reason}")
    return InvalidManifest(
        PATH, source.uri, f"a causal language model that transformers can load; its {what} could not be: {reason}"
    )
