"""The check of a model address: whether the model could be loaded.

It is cheap (no weights, no torch) and runs before anything starts, so that a wrong address costs the user seconds.
Invariant: a problem raises `InvalidManifest` at `spec.model.uri` (or `spec.model.revision`), never an error of a
library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from swarmgame.models.builtin import BuiltinOptions
from swarmgame.models.hub import HUB_SECONDS, refuses_token, unreachable_errors
from swarmgame.models.package import find_weights
from swarmgame.models.uri import EXPECTED_TOKEN, PATH, TOKEN_SOURCES, ModelUri, Scheme, read_token
from swarmgame_api.errors import InvalidManifest

READ_AS_FLOATS = frozenset({"gguf", "mxfp4", "fp8"})
"""Quantizations that transformers reads back to floating numbers where the device has no kernels for them."""


def check_model(uri: str, revision: str = "", token: Path | None = None) -> ModelUri:
    """Check that a model could be loaded, without loading it, in at most about 4 seconds.

    A hub that cannot be reached counts as offline: the model must then be in the local cache.

    Raises:
        InvalidManifest: the model could not be loaded.
    """
    parsed = ModelUri.parse(uri)
    if parsed.scheme is Scheme.BUILTIN:
        BuiltinOptions.of(parsed)
        if revision:
            raise InvalidManifest("spec.model.revision", revision, "no revision: the builtin model has none")
    elif parsed.scheme is Scheme.FILE:
        _check_folder(uri, Path(parsed.name))
    elif parsed.scheme is Scheme.PACKAGE:
        find_weights(uri, parsed)
        if revision:
            raise InvalidManifest("spec.model.revision", revision, "no revision: a package has the installed version")
    else:
        _check_hub(uri, parsed.name, revision, token)
    return parsed


def _check_folder(uri: str, folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidManifest(PATH, uri, "an existing folder with a model as `save_pretrained` writes it")
    if not (folder / "config.json").is_file():
        raise InvalidManifest(PATH, uri, "a folder with a config.json, as `save_pretrained` writes it")
    check_unquantized(uri, _configuration(uri, folder))
    if not _has(folder, ("*.safetensors", "*.bin", "*.index.json")):
        raise InvalidManifest(PATH, uri, "a folder with weights (*.safetensors), as `save_pretrained` writes it")
    if not _has(folder, ("tokenizer*", "vocab*", "*.model")):
        raise InvalidManifest(PATH, uri, "a folder with a tokenizer, as the tokenizer's `save_pretrained` writes it")


def _configuration(uri: str, folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidManifest(PATH, uri, f"a folder with a config.json that is JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidManifest(PATH, uri, "a folder with a config.json that describes a model")
    return found


def check_unquantized(uri: str, configuration: Mapping[str, Any]) -> None:
    """Check that weights are not stored in a type that cannot be trained.

    Raises:
        InvalidManifest: they are.
    """
    quantization = configuration.get("quantization_config")
    method = quantization.get("quant_method", "") if isinstance(quantization, Mapping) else ""
    if method and method not in READ_AS_FLOATS:
        expected = (
            f"weights that are not quantized, since quantized ones ({method}) cannot be trained: take the model from "
            "which they were made"
        )
        raise InvalidManifest(PATH, uri, expected)


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _check_hub(uri: str, name: str, revision: str, token: Path | None) -> None:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str):
        return
    secret = read_token(token)
    if not hub_is_offline():
        found = _request_hub(uri, name, revision, secret)
        if found:
            return
    raise InvalidManifest(
        PATH,
        uri,
        "a model on the hub or in the local cache: it is not cached and the hub was not reached",
    )


def hub_is_offline() -> bool:
    """Return whether the environment forbids requests to the hub."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _request_hub(uri: str, name: str, revision: str, token: str | None) -> bool:
    """Return True when the hub has the model, False when it did not answer in time."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def request() -> Any:
        return HfApi(token=token).model_info(name, revision=revision or None, timeout=HUB_SECONDS)

    pool = ThreadPoolExecutor(1, thread_name_prefix="hub-check")
    try:
        pool.submit(request).result(timeout=HUB_SECONDS + 1)
    except RevisionNotFoundError as error:
        raise InvalidManifest("spec.model.revision", revision, f"a branch, tag or commit of {name}") from error
    except GatedRepoError as error:
        raise InvalidManifest(
            PATH,
            uri,
            "a model that you may read: this one is gated, so its licence must be accepted and a token given "
            f"({TOKEN_SOURCES})",
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidManifest(
            PATH,
            uri,
            f"a model that exists on the hub, or a token that may read it, where it is private ({TOKEN_SOURCES})",
        ) from error
    except unreachable_errors(FutureTimeout) as error:
        if refuses_token(error):
            raise InvalidManifest(PATH, uri, EXPECTED_TOKEN) from error
        return False
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return True
