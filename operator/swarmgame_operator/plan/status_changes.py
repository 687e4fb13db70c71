"""Which changes of a status are written at once, and which wait for others.

A status patch costs the API server more than any other request of the operator, and the pods of a new game change its
counts many times a second. So a change of counts, times and texts alone waits a little for others. What scripts and
alerts wait for is written at once: a condition's status and reason, a new field, the generation that was observed.
Pure functions of status documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTS_SECONDS = 1.0
"""How long a change of counts alone waits for others."""
COUNTS: Mapping[str, tuple[str, ...]] = {
    "replicas": (),
    "peers": (),
    "unhealthyPeers": (),
    "progress": (),
    "checkpoint": (),
    "coordination": ("round", "lastObservedBlock"),
}
"""Fields of a status that may wait, and (not empty) which of the fields below."""


def only_counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether two documents differ in counts, times and texts alone. A field that is not named in `COUNTS` is
    none, so what is added to the status later is written at once.
    """
    return _without_counts(before) == _without_counts(after)


def _without_counts(status: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in status.items():
        if name not in COUNTS:
            found[name] = value
        elif COUNTS[name]:
            found[name] = {below: each for below, each in value.items() if below not in COUNTS[name]}
        else:
            found[name] = None
    found["conditions"] = [
        {name: value for name, value in each.items() if name != "message"} for each in status.get("conditions", ())
    ]
    return found
