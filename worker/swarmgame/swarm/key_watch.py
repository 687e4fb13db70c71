"""The watch over our own key: whether another live process publishes with it.

Every process puts random bytes of its own into its heartbeats. Heartbeats with our key and other bytes are either the
last ones of this peer's process before, or those of a second process: a folder was copied with its key. A process that
has ended sends nothing new, so a second one is known by two later heartbeats. Clocks of machines differ, so only the
order of a sender's own heartbeats counts. Whichever was in the swarm first goes on, and warns; the later one ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmgame.swarm.messages import Heartbeat

CONFIRMED_BY = 2
"""Later heartbeats that show that a process lives: the first may be a last one that came late."""
_MOST = 16


@dataclass(slots=True)
class _Seen:
    expires: float
    at: float
    was_first: bool
    later: int = 0


class KeyWatch:
    """Observes the heartbeats with our key.

    Args:
        process: the bytes in our own heartbeats.
        spacing: seconds between heartbeats that count as two.
    """

    def __init__(self, process: bytes, spacing: float) -> None:
        self.process = process
        self.spacing = spacing
        self.must_end = ""
        """Why this process has to end, as sentences; empty while it may go on."""
        self._seen: dict[bytes, _Seen] = {}
        self._gone: set[bytes] = set()

    def observe(self, heartbeat: Heartbeat, now: float, *, joining: bool) -> str:
        """Add a heartbeat with our key.

        Args:
            joining: whether this process has not joined yet, so that the sender was there before.

        Returns:
            A warning, when it shows for the first time that another process has our key; else an empty text.
        """
        sender = heartbeat.process
        if sender == self.process or sender in self._gone:
            return ""
        if heartbeat.leaving:
            self._seen.pop(sender, None)
            if len(self._gone) < _MOST:
                self._gone.add(sender)
            return ""
        seen = self._seen.get(sender)
        if seen is None:
            if len(self._seen) < _MOST:
                self._seen[sender] = _Seen(heartbeat.expires, now, joining)
            return ""
        if heartbeat.expires <= seen.expires or now < seen.at + self.spacing:
            return ""
        seen.expires, seen.at = heartbeat.expires, now
        seen.later += 1
        if seen.later != CONFIRMED_BY:
            return ""
        where = f", at {' '.join(heartbeat.addresses)}" if heartbeat.addresses else ""
        found = f"another process runs with this peer's key, …{heartbeat.peer[-6:]}{where}"
        cause = (
            "the swarm takes both for one peer and drops what the second one publishes. Likely cause: a folder or a "
            "key file was copied"
        )
        if seen.was_first:
            self.must_end = (
                f"{found}, and was in the swarm first: {cause}. Give this peer a key of its own (--identity FILE, or "
                "another folder), or stop the other one"
            )
            return self.must_end
        return (
            f"{found}, and came later: {cause}. It should end by itself; else stop it, or give it a key of its own "
            "(--identity FILE)"
        )
