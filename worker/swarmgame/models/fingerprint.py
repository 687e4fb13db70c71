"""The fingerprint of a base model: 16 hexadecimal digits of the files that decide what is loaded.

Weights, configuration, tokenizer and chat template count; a model card does not, and neither does the release of
transformers that wrote the files. Equal files have equal fingerprints, whether they come from a folder or the hub. A
builtin model is known by what it is made from, since another processor makes other bits of the same recipe; a model of
a package by its GGUF file. Hashes of large files are kept in the cache, and the hub's cache names its files by theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path

from swarmgame.errors import InvalidManifest
from swarmgame.models.gguf_conversion import CODE_VERSION
from swarmgame.models.loading import Source
from swarmgame.models.package import find_weights
from swarmgame.models.uri import PATH, ModelUri, Scheme

logger = logging.getLogger(__name__)

DIGITS, _SHOWN = 16, 8
LARGE = 64 << 20
"""Hashes of files of at least this many bytes are kept in the cache: 64 MiB take 0.05 to 0.2 s."""
_DESCRIPTIONS = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "chat_template.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt",
    }
)  # fmt: skip
_DESCRIPTION_SUFFIXES = frozenset({".model", ".tiktoken"})
_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path", "_commit_hash")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def model_fingerprint(source: Source, cache: Path) -> str:
    """Return the fingerprint of a model that is on this machine.

    Args:
        source: as `ensure_model` returns it.
        cache: of the component context.

    Raises:
        InvalidManifest: the files are not there, or cannot be read.
    """
    uri = ModelUri.parse(source.uri)
    if uri.scheme is Scheme.BUILTIN:
        return _digest([Path(source.name).name])
    try:
        if uri.scheme is Scheme.PACKAGE:
            return _digest([CODE_VERSION, _content(find_weights(source.uri, uri).path, cache)])
        folder = Path(source.name) if uri.scheme is Scheme.FILE else _snapshot(source)
        return folder_fingerprint(folder, cache)
    except OSError as error:
        raise InvalidManifest(PATH, source.uri, f"a model whose files can be read: {error}") from error


def commit_of(source: Source) -> str:
    """Return the commit of the hub that a model comes from; empty for other models, and without a cached one."""
    if ModelUri.parse(source.uri).scheme is not Scheme.HUB:
        return ""
    try:
        return _snapshot(source).name
    except OSError:
        return ""


def folder_fingerprint(folder: Path, cache: Path) -> str:
    """Return the fingerprint of a folder as `save_pretrained` writes it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    described = [path for path in files if path.name in _DESCRIPTIONS or path.suffix in _DESCRIPTION_SUFFIXES]
    weights = [path for path in files if path.suffix == ".safetensors"]
    weights = weights or [path for path in files if path.suffix == ".bin"]
    return _digest(
        [
            *([path.name, _description(path)] for path in described),
            # Without their names: the same tensors may be in other files.
            *sorted(_content(path, cache) for path in weights),
        ]
    )


def other_base(saved: tuple[str, str], found: tuple[str, str], commit: str = "") -> str:
    """Return that a policy began with another base model, and what to do about it.

    Args:
        saved, found: address and fingerprint, when the policy began and now.
        commit: of the hub, when the policy began; empty for other models.
    """
    before, now = (f"{uri} with the fingerprint {digest[:_SHOWN]}" for uri, digest in (saved, found))
    if saved[0] != found[0]:
        cure = f"name {saved[0]} in spec.model.uri"
    elif saved[0].startswith(f"{Scheme.BUILTIN}://"):
        cure = "put the data and the release back with which it was warm-started"
    else:
        cure = f"set spec.model.revision to {commit}" if commit else "put the former files back"
    return f"the saved policy began with another base model: it was {before}, and is {now} now; {cure}"


def _snapshot(source: Source) -> Path:
    """Return the folder of the hub's cache with the files that are loaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.name, "config.json", revision=source.revision or None)
    if not isinstance(found, str):
        raise FileNotFoundError(f"the cache has no config.json of {source.uri}")
    return Path(found).parent


def _description(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            found = json.loads(data)
        except ValueError:
            return hashlib.sha256(data).hexdigest()
        if isinstance(found, dict):
            found = {key: value for key, value in found.items() if key not in _NOT_OF_THE_MODEL}
        data = json.dumps(found, sort_keys=True).encode()
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()


def _content(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file."""
    place = path.resolve()
    if place.parent.name == "blobs" and _SHA256.fullmatch(place.name):
        return place.name  # the hub's cache has checked it
    found = place.stat()
    if found.st_size < LARGE:
        return _sha256(place)
    known = cache / "fingerprints" / _digest([str(place), found.st_size, found.st_mtime_ns, found.st_ino])
    try:
        kept = known.read_text(encoding="ascii").strip()
        if _SHA256.fullmatch(kept):
            return kept
    except (OSError, UnicodeDecodeError) as error:
        logger.debug("no kept hash of %s: %s", place, error)
    made = _sha256(place)
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(made, encoding="ascii")
    except OSError as error:
        logger.debug("the hash of %s is not kept: %s", place, error)
    return made


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: list[object]) -> str:
    text = json.dumps(parts, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=DIGITS // 2, person=b"swarmgame-model").hexdigest()
