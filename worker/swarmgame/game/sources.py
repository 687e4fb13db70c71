"""The sources of a game: fingerprints of what decides its questions, its scores and its first policy.

Peers announce them, so that one with another game is named when it meets the swarm, instead of being dropped group by
group. Rounds, data, code and rewards must be equal: without them a peer cannot make the questions of another one, or
scores their answers otherwise. Models may differ: a peer encodes the text of another tokenizer anew, and weighs the
rollouts of another policy.

Pure. A fingerprint is 16 hexadecimal digits; an empty one is not known, and differs from none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

DIGITS = 16
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Sources:
    """The fingerprints of one peer.

    Args:
        rounds: of what a round is: stages, exchange, roles, environment.
        data: of the data's class, of its settings but those that each peer chooses itself, of the rows that it has
            read, and of the versions of its libraries.
        code: of the game's own modules that data, rewards and environment use.
        rewards: of the rewards' class and settings.
        model: of the base model's files; empty for a policy without one.
    """

    rounds: str = ""
    data: str = ""
    code: str = ""
    rewards: str = ""
    model: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def of_json(cls, found: object) -> Sources:
        """Return what `as_json` made; fields that are absent are not known."""
        if not isinstance(found, Mapping):
            return cls()
        return cls(**{name: found[name] for name in NAMES if isinstance(found.get(name), str)})

    def packed(self) -> list[bytes]:
        """Return the fingerprints as bytes, in the order of the fields; empty ones are not known."""
        return [bytes.fromhex(getattr(self, name)) for name in NAMES]

    @classmethod
    def of_packed(cls, packed: Sequence[bytes]) -> Sources:
        return cls(*(value.hex() for value in packed[: len(NAMES)]))


NAMES = tuple(field.name for field in fields(Sources))
MAY_DIFFER = frozenset({"model"})
CURES: Mapping[str, str] = {
    "rounds": "take their spec.game.stages, exchange, roles and environment",
    "data": "take their spec.game.data, the same rows and the same versions of its libraries",
    "code": "take their modules beside game.yaml",
    "rewards": "take their spec.game.rewards",
    "model": "if you meant the same one, compare spec.model.uri and spec.model.revision",
}


class Difference(NamedTuple):
    """A source that two peers do not share."""

    name: str
    theirs: str
    ours: str

    def __str__(self) -> str:
        verb = "differ" if self.name in ("rounds", "rewards") else "differs"
        return f"your {self.name} {verb}: theirs {self.theirs}, yours {self.ours}"

    @property
    def cure(self) -> str:
        return CURES[self.name]


def differences(ours: Sources, theirs: Sources) -> tuple[Difference, ...]:
    """Return the sources that differ, shortened for messages; those that one peer does not know are left out."""
    return tuple(_differing(ours, theirs))


def forbidden(found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return the differences with which two peers cannot share."""
    return tuple(each for each in found if each.name not in MAY_DIFFER)


def fingerprint(*parts: Any) -> str:
    """Return the fingerprint of JSON-like values; other values count as their text."""
    text = json.dumps(parts, sort_keys=True, default=str).encode()
    return hashlib.blake2b(text, digest_size=DIGITS // 2, person=b"swarmgame-source").hexdigest()


def _differing(ours: Sources, theirs: Sources) -> Iterator[Difference]:
    for name in NAMES:
        left, right = getattr(theirs, name), getattr(ours, name)
        if left and right and left != right:
            yield Difference(name, left[:_SHOWN], right[:_SHOWN])
