"""Model addresses: `builtin://tiny`, `file:///path`, `hf://organisation/name`; and the hub's token.

Invariant: a wrong address raises `InvalidManifest` at `spec.model.uri`, never an error of a library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote, urlsplit

from swarmgame_api.errors import InvalidManifest

PATH = "spec.model.uri"
EXPECTED = "builtin://tiny, file:///path/of/a/folder or hf://organisation/name"
_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_NAME = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}")


class Scheme(StrEnum):
    """The source of weights: code, a folder, the hub."""

    BUILTIN = "builtin"
    FILE = "file"
    HUB = "hf"


@dataclass(frozen=True)
class ModelUri:
    """A parsed address.

    Args:
        scheme: the source.
        name: `tiny`, an absolute path, or `organisation/name`.
        options: of the builtin model: the query, not yet validated.
    """

    scheme: Scheme
    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, uri: str) -> ModelUri:
        """Parse an address.

        Raises:
            InvalidManifest: it is not one of the three kinds.
        """
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


def read_token(path: Path | None) -> str | None:
    """Return the hub's token from a file (a mounted Secret); None where there is none. Never log it."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest("spec.model.secretRef", str(path), "a readable file with the hub's token") from error
