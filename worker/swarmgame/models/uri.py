"""Model addresses: `builtin://tiny`, `file:///path`, `hf://organisation/name`, and whether what they name could be
loaded.

`check` is cheap (no weights, no torch): it runs before anything starts, so that a wrong address costs the user seconds.
Invariant: whatever is wrong with an address is an `InvalidManifest` at `spec.model.uri` (or `spec.model.revision`),
never a traceback from a library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from swarmgame_api.errors import InvalidManifest

PATH = "spec.model.uri"
EXPECTED = "builtin://tiny, file:///path/of/a/folder or hf://organisation/name"
HUB_SECONDS = 3.0
_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_NAME = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}")


class Scheme(StrEnum):
    """Where weights come from: code, a folder, a hub."""

    BUILTIN = "builtin"
    FILE = "file"
    HUB = "hf"


@dataclass(frozen=True)
class ModelUri:
    """A parsed address.

    Args:
        scheme: where from.
        name: `tiny`, an absolute path, or `organisation/name`.
        options: of the builtin model: what stood behind the question mark, not yet validated.
    """

    scheme: Scheme
    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, uri: str) -> ModelUri:
        """Raises InvalidManifest when the address is not one of the three kinds."""
        parts = urlsplit(uri)
        if parts.scheme not in set(Scheme):
            raise InvalidManifest(PATH, uri, EXPECTED)
        scheme = Scheme(parts.scheme)
        name = unquote(f"{parts.netloc}{parts.path}")
        if parts.query and scheme is not Scheme.BUILTIN:
            raise InvalidManifest(PATH, uri, "no options: only builtin:// takes them")
        if scheme is Scheme.BUILTIN:
            options = parse_qsl(parts.query, keep_blank_values=True)
            if len(dict(options)) != len(options):
                raise InvalidManifest(PATH, uri, "each option once")
            return cls(scheme, name, MappingProxyType(dict(options)))
        if scheme is Scheme.FILE and (parts.netloc or not name.startswith("/")):
            raise InvalidManifest(PATH, uri, "an absolute path with three slashes: file:///path/of/a/folder")
        if scheme is Scheme.HUB and (not _HUB_NAME.fullmatch(name) or "--" in name or ".." in name):
            raise InvalidManifest(PATH, uri, "a name on the hub: hf://organisation/name")
        return cls(scheme, name)


def check(uri: str, revision: str = "", token: Path | None = None) -> ModelUri:
    """Whether the model could be loaded, without loading it; at most about 4 seconds.

    A hub that cannot be reached counts as offline: the model must then be in the local cache.

    Raises:
        InvalidManifest: it could not, and why.
    """
    parsed = ModelUri.parse(uri)
    if parsed.scheme is Scheme.BUILTIN:
        from swarmgame.models.builtin import BuiltinOptions

        BuiltinOptions.of(parsed)
        if revision:
            raise InvalidManifest("spec.model.revision", revision, "no revision: the builtin model has none")
    elif parsed.scheme is Scheme.FILE:
        _check_folder(uri, Path(parsed.name))
    else:
        _check_hub(uri, parsed.name, revision, token)
    return parsed


def read_token(path: Path | None) -> str | None:
    """The hub's token, from the file that a Secret is mounted as; None where there is none. Never log it."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest("spec.model.secretRef", str(path), "a readable file with the hub's token") from error


def _check_folder(uri: str, folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidManifest(PATH, uri, "an existing folder with a model as `save_pretrained` writes it")
    if not (folder / "config.json").is_file():
        raise InvalidManifest(PATH, uri, "a folder with a config.json, as `save_pretrained` writes it")
    if not _has(folder, ("*.safetensors", "*.bin", "*.index.json")):
        raise InvalidManifest(PATH, uri, "a folder with weights (*.safetensors), as `save_pretrained` writes it")
    if not _has(folder, ("tokenizer*", "vocab*", "*.model")):
        raise InvalidManifest(PATH, uri, "a folder with a tokenizer, as the tokenizer's `save_pretrained` writes it")


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _check_hub(uri: str, name: str, revision: str, token: Path | None) -> None:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str):
        return
    secret = read_token(token)
    if not hub_is_offline():
        found = _ask_hub(uri, name, revision, secret)
        if found:
            return
    raise InvalidManifest(
        PATH,
        uri,
        "a model that the hub can be asked for, or one in the local cache: it is not cached and the hub was not reached",
    )


def hub_is_offline() -> bool:
    """Whether the environment forbids asking the hub."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _ask_hub(uri: str, name: str, revision: str, token: str | None) -> bool:
    """True: it is there. False: the hub gave no answer in time."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    def ask() -> Any:
        return HfApi(token=token or False).model_info(name, revision=revision or None, timeout=HUB_SECONDS)

    pool = ThreadPoolExecutor(1, thread_name_prefix="hub-check")
    try:
        pool.submit(ask).result(timeout=HUB_SECONDS + 1)
    except RevisionNotFoundError as error:
        raise InvalidManifest("spec.model.revision", revision, f"a branch, tag or commit of {name}") from error
    except GatedRepoError as error:
        raise InvalidManifest(
            PATH, uri, "a model that you may read: this one is gated, so its licence must be accepted and a token given"
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidManifest(
            PATH, uri, "a model that exists on the hub (or a token that may read it, where it is private)"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError, FutureTimeout):
        return False
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return True
