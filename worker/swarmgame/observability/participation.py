"""How many rounds each peer of a run played, and why it did not play the others.

Reads `metrics.jsonl` and `skipped.jsonl`; shows and writes nothing. Two different things are counted: rounds that a
peer left out, and rounds that it played but that others closed without its contribution. What a warning of the run has
shown already is counted, and not repeated in a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmgame.game.report import SkipCause
from swarmgame.observability.diagnostics.files import RunWarning
from swarmgame.observability.diagnostics.rules import MISSING_MEMBERS, SKIPPED_ROUNDS
from swarmgame.observability.peer_progress import PeerProgress, Tail

CAUSES: Mapping[str, str] = {
    SkipCause.LATE: "before it entered the swarm, or was restarted without a checkpoint",
    SkipCause.AWAY: "while it was stopped or restarted",
    SkipCause.SLOW: "because it was slower than the others, which went on without it",
}


@dataclass(frozen=True)
class Participation:
    """The part of one peer in the rounds of a run.

    Args:
        index: of the peer.
        played: rounds that it finished.
        skipped: rounds that it left out, by cause.
        left_out: rounds that it finished, and that at least one other peer closed without its contribution.
        warned_slow: whether a warning of this peer has shown that it skips rounds because it is slow.
        warned_late: whether a warning of any peer has shown that stages close without some members.
    """

    index: int
    played: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0
    warned_slow: bool = False
    warned_late: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "played": self.played,
            "skipped": dict(self.skipped),
            "left_out": self.left_out,
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """What people should know, and no warning has shown; nothing for a peer that took part in every round."""
        found = []
        skipped = {
            cause: count
            for cause, count in sorted(self.skipped.items())
            if not (cause == SkipCause.SLOW and self.warned_slow)
        }
        if skipped:
            causes = [
                f"{_rounds(count) if len(skipped) > 1 else ''} {CAUSES.get(cause, cause)}".strip()
                for cause, count in skipped.items()
            ]
            found.append(f"peer {self.index} skipped {_rounds(sum(skipped.values()))}: {', '.join(causes)}")
        if self.left_out and not self.warned_late:
            found.append(
                f"peer {self.index} was too late in {_rounds(self.left_out)} that it played: others closed a stage "
                "without its contribution; a higher progression.quorum waits for it"
            )
        return tuple(found)


def participation(peers: Sequence[PeerProgress], warnings: Sequence[RunWarning] = ()) -> tuple[Participation, ...]:
    """Return the part of each peer, from all of its lines.

    Args:
        warnings: of the run.
    """
    missing = _missing(peers)
    slow = {index for warning in warnings if warning.diagnostic.code == SKIPPED_ROUNDS for index in warning.peers}
    late = any(warning.diagnostic.code == MISSING_MEMBERS for warning in warnings)
    return tuple(
        Participation(
            index=peer.index,
            played=peer.finished,
            skipped=_skipped(Tail(peer.directory.skipped).read()),
            left_out=len(missing.get(peer.peer_id, frozenset()) & peer.rounds.keys()),
            warned_slow=peer.index in slow,
            warned_late=late,
        )
        for peer in peers
    )


def _missing(peers: Iterable[PeerProgress]) -> dict[str, set[int]]:
    """Return the rounds that some peer closed without another one, by the id of that one."""
    found: dict[str, set[int]] = {}
    for peer in peers:
        for played, line in peer.rounds.items():
            for other in line.get("missing") or ():
                found.setdefault(str(other), set()).add(played)
    return found


def _skipped(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for line in lines:
        if isinstance(line.get("count"), int) and isinstance(line.get("cause"), str):
            total[line["cause"]] += line["count"]
    return dict(sorted(total.items()))


def _rounds(count: int) -> str:
    return f"{count} round{'' if count == 1 else 's'}"
