"""Loading of every model, the builtin one included, through transformers' Auto classes.

Invariant: no code that comes with a model is run (`trust_remote_code` stays off), and the hub's token is passed only
to the hub's client.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from swarmgame.errors import InvalidManifest, Temporary
from swarmgame.models.hub import connection_errors, quiet_retries, refuses_token, unreachable_errors
from swarmgame.models.noise import remove_noise
from swarmgame.models.tensors import check_tensors
from swarmgame.models.uri import EXPECTED_TOKEN, PATH, TOKEN_SOURCES, Scheme, read_token

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNREADABLE = (ValueError, KeyError, RuntimeError, ImportError, SafetensorError, UnpicklingError, StrictDataclassError)
"""What transformers raises for files that it cannot load: an unknown architecture, a torn file, a missing package."""
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
    except unreachable_errors(*UNREADABLE) as error:
        raise _explained(error, source, "tokenizer") from error


def load_model(source: Source, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Load the weights, on the device, in eval mode. Without noise: training must use the policy that sampled.

    Raises:
        InvalidManifest: there is no causal language model at the address that transformers can load, or its files lack
            tensors.
        Temporary: the hub did not answer.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    # Its progress bars would break the live table of a run.
    transformers_logging.disable_progress_bar()
    try:
        with quiet_retries():
            model, info = AutoModelForCausalLM.from_pretrained(
                source.name,
                revision=source.revision or "main",
                token=read_token(source.token),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except unreachable_errors(*UNREADABLE) as error:
        raise _explained(error, source, "model") from error
    stored = {parameter.dtype for parameter in model.parameters() if parameter.element_size() < 2}
    if stored:
        kinds = ", ".join(sorted(str(each).removeprefix("torch.") for each in stored))
        expected = f"weights that are not quantized, since quantized ones ({kinds}) cannot be trained"
        raise InvalidManifest(PATH, source.uri, expected)
    check_tensors(model, info, source.uri)
    remove_noise(model)
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
        token = read_token(source.token)
        return Path(
            snapshot_download(source.name, revision=source.revision or None, token=token, allow_patterns=list(patterns))
        )

    try:
        folder = download(*_SMALL_FILES, "*.safetensors")
        if not any(folder.glob("*.safetensors")):
            download("*.bin")
    except GatedRepoError as error:
        raise InvalidManifest(
            PATH,
            source.uri,
            f"a model that you may read: it is gated, so accept its licence and give a token ({TOKEN_SOURCES})",
        ) from error
    except RevisionNotFoundError as error:
        raise InvalidManifest(
            "spec.model.revision", source.revision, f"a branch, tag or commit of {source.name}"
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidManifest(
            PATH, source.uri, f"a model that exists on the hub, or a token that may read it ({TOKEN_SOURCES})"
        ) from error
    except unreachable_errors(ValueError) as error:
        if refuses_token(error):
            raise InvalidManifest(PATH, source.uri, EXPECTED_TOKEN) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Temporary(f"the model {source.uri} could not be fetched: {reason}") from error


def _explained(error: BaseException, source: Source, what: str) -> Exception:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # The first line of a check of the configuration names the check only.
    reason = lines[1].strip() if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if isinstance(error, connection_errors()) or "couldn't connect" in reason.lower():
        return Temporary(f"the {what} of {source.uri} could not be fetched: {reason}")
    return InvalidManifest(
        PATH, source.uri, f"a causal language model that transformers can load; its {what} could not be: {reason}"
    )
