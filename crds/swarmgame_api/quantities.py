"""The small types of the manifest: names, percentages, quantities, addresses, each with its bounds and a description.

Invariant: a pattern here is valid for pydantic (Rust), for CRD schemas (RE2) and for Python, and every string has a
maximum length, because the API server estimates the cost of a CEL rule from the bounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints


@dataclass(frozen=True)
class Expected:
    """Metadata of a type: the values that it takes, as the end of a sentence; for error messages and the reference."""

    text: str


@dataclass(frozen=True)
class VisibleToCel:
    """Metadata of a free-form mapping that a rule tests: CEL does not see free-form mappings, but it sees objects."""


@dataclass(frozen=True)
class Keyed:
    """Metadata of a list: this field identifies its entries, and the API server merges such lists entry by entry."""

    field: str


def integer_as_text(value: Any) -> Any:
    """Return an integer as a text, so that YAML's `cpu: 8` means `cpu: "8"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Percentage = Annotated[
    str,
    StringConstraints(pattern=r"^(100|[1-9][0-9]?)%$", max_length=4),
    Expected('a percentage from "1%" to "100%", in quotes'),
]

Quantity = Annotated[
    str,
    BeforeValidator(integer_as_text),
    StringConstraints(pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$", max_length=32),
    Expected('a Kubernetes quantity such as 2, "500m" or 8Gi'),
]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"

Name = Annotated[
    str,
    StringConstraints(pattern=rf"^{_LABEL}$", min_length=1, max_length=63),
    Expected("a name of at most 63 lower-case letters, digits and dashes that begins and ends with a letter or digit"),
]

OBJECT_NAME = "the name of a Kubernetes object: lower-case letters, digits, dashes and dots, at most 253"

ObjectName = Annotated[
    str,
    StringConstraints(pattern=rf"^{_LABEL}(\.{_LABEL})*$", min_length=1, max_length=253),
    Expected(OBJECT_NAME),
]

OptionalObjectName = Annotated[
    str,
    StringConstraints(pattern=rf"^({_LABEL}(\.{_LABEL})*)?$", max_length=253),
    Expected("the name of a Kubernetes object, or nothing"),
]

QualifiedName = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$", min_length=1, max_length=317
    ),
    Expected("a Kubernetes key such as app or example.dev/app"),
]

LabelValue = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$", max_length=63),
    Expected(
        "at most 63 letters, digits, dashes, underscores and dots, in quotes where YAML would read something else"
    ),
]

Labels = Annotated[dict[QualifiedName, LabelValue], Field(max_length=64)]

Annotations = Annotated[dict[QualifiedName, Annotated[str, StringConstraints(max_length=16_384)]], Field(max_length=64)]

Text = Annotated[str, StringConstraints(max_length=1024), Expected("a text of at most 1,024 characters")]

Image = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", min_length=1, max_length=512),
    Expected("a container image such as example.dev/team/worker:1.2 or …@sha256:…"),
]

OptionalImage = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/@-]*)?$", max_length=512),
    Expected("a container image such as example.dev/team/worker:1.2, or nothing"),
]

AbsolutePath = Annotated[
    str,
    StringConstraints(pattern=r"^/[A-Za-z0-9._/-]+$", min_length=2, max_length=255),
    Expected("an absolute path below /"),
]

Multiaddress = Annotated[
    str,
    StringConstraints(pattern=r"^(/[A-Za-z0-9.:_%-]+)+/p2p/[A-Za-z0-9]+$", min_length=1, max_length=512),
    Expected("a multiaddress that ends with the peer's id, such as /ip4/192.0.2.1/tcp/31000/p2p/16Uiu2HA…"),
]

PeerIdText = Annotated[
    str,
    StringConstraints(pattern=r"^[1-9A-HJ-NP-Za-km-z]{40,64}$", min_length=40, max_length=64),
    Expected("the id of a peer, such as 16Uiu2HA…, which its address ends with"),
]

Address = Annotated[
    str,
    StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$", min_length=42, max_length=42),
    Expected("a contract's address: 0x and 40 hexadecimal digits, in quotes"),
]

Time = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}Z$", max_length=32),
    Field(json_schema_extra={"format": "date-time"}),
    Expected("a time such as 2026-01-31T12:00:00Z"),
]

FreeForm = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=253)], JsonValue],
    Field(max_length=256),
    Expected("a mapping with any keys"),
]
"""A block that this schema preserves and does not validate."""

Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
"""A duration of at most a year."""


def percent(percentage: str) -> int:
    """Return `"67%"` as 67."""
    return int(percentage.removesuffix("%"))


def fraction(percentage: str) -> float:
    """Return `"67%"` as 0.67."""
    return percent(percentage) / 100


def is_object_name(text: str) -> bool:
    """Return whether a text is what `ObjectName` takes."""
    return len(text) <= 253 and re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", text) is not None


def has_possible_port(url: str) -> bool:
    """Return whether an address can be parsed, and names no port or one from 1 to 65535."""
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port is None or port > 0
