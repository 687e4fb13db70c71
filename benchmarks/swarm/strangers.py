"""Peers that nobody trusts, for the soak: one process floods a swarm in every way that is known, again and again.

    python strangers.py RUN SECONDS ADDRESS… [--only FLOOD]

Each flood lasts some seconds: free keys that greet and stay silent, claims of round 10⁹, announcements of invented keys
whose bodies are withheld, messages that cannot be parsed, large values in the DHT, a garbage directory. With `--only`
one flood goes on until the end, and the first line says when it begins; `stages` (contributions to stages that the game
does not have, small on the wire and large in memory) and `large_values` are sent only so. One JSON line at the end
counts what was sent, and how many calls were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from swarmgame.game.state import Contribution, Group, Prompt, QuestionRef, Rollout
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import Identity, split_address
from swarmgame.swarm.messages import make_announcement, make_heartbeat, make_index
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transport import Handlers, Oversized, Unreachable
from swarmgame.swarm.transports.libp2p import Libp2pTransport

KEYS, FLOOD_SECONDS, CALL_SECONDS, AT_ONCE = 100, 10.0, 5.0, 16
WEEK = 7 * 86_400
FAR = 10**9
STAGES, GROUPS, CHARACTERS = 40, 8, 250_000
"""Of the flood of stages: a contribution takes twice as many characters, its expanded body included."""


class Strangers:
    """One connection that speaks for many invented keys."""

    def __init__(self, run: str, addresses: Sequence[str], folder: Path) -> None:
        self.run = run
        key = Identity.load_or_create(folder / "stranger.key")
        network = NetworkOptions(folder / "stranger.key", "127.0.0.1", initial_peers=tuple(addresses))
        self.own = key
        self.peers = [split_address(address)[1] for address in addresses]
        self.transport = Libp2pTransport(run, key.peer, network)
        self.keys = [Identity.generate() for _ in range(KEYS)]
        self.round = 0
        self.sent: Counter[str] = Counter()

    async def flood(self, seconds: float, only: str = "") -> None:
        await self.transport.start(Handlers(call=lambda sender, message: b"", body=lambda name: None))
        await self.transport.connect_initial_peers()
        if only:
            print(json.dumps({"flood": only}), flush=True)
        floods: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (
            self.silent_keys,
            self.claims,
            self.withheld,
            self.malformed,
            self.values,
            self.directory,
        )
        if only:
            floods = (getattr(self, only),)
        ends = time.monotonic() + seconds
        turn = 0
        while time.monotonic() < ends:
            until = min(ends, time.monotonic() + FLOOD_SECONDS)
            while time.monotonic() < until:
                await floods[turn % len(floods)]()
                await asyncio.sleep(0.2)
            turn += 1
        await self.transport.close()

    async def silent_keys(self) -> None:
        """Greet with heartbeats of free keys."""
        await self._calls([b"H" + self._heartbeat(key, 0) for key in self.keys[:AT_ONCE]])
        self.keys = [*self.keys[AT_ONCE:], *(Identity.generate() for _ in range(AT_ONCE))]

    async def claims(self) -> None:
        """Claim a round that no peer has reached, also with our own key."""
        await self._calls([b"H" + self._heartbeat(key, FAR) for key in (self.own, *self.keys[:AT_ONCE])])

    async def withheld(self) -> None:
        """Announce large bodies of the present rounds, and serve none."""
        self.round += 1
        messages = []
        for key in self.keys[:AT_ONCE]:
            rows = [[os.urandom(32), 16 << 20, 1, 1, 0.5, 100] for _ in range(4)]
            index = msgpack.packb([0, rows], use_single_float=True)
            expires = int(time.time() + WEEK)
            made = make_announcement(self.run, key.peer, self.round, 0, index, expires, key.sign)
            messages.append(b"A" + msgpack.packb([made.message, []]))
        await self._calls(messages)

    async def stages(self) -> None:
        """Contribute to many stages of the present round."""
        self.round = await self._present(self.round)
        messages = []
        for stage in range(STAGES):
            made = large_contribution(self.own.peer, self.round + 1, stage)
            shards = encode(made, self.run)
            announcement = make_announcement(
                self.run, made.peer, made.round, stage, make_index(made, shards), int(time.time() + WEEK), self.own.sign
            )
            messages.append(b"A" + msgpack.packb([announcement.message, [shard.data for shard in shards]]))
        await self._calls([b"H" + self._heartbeat(self.own, self.round)])
        await self._calls(messages)
        while await self._present(self.round) == self.round:
            await asyncio.sleep(0.1)

    async def _present(self, last: int) -> int:
        """Return the last round that the first peer has contributed to; it serves the last few."""
        found = None
        for round in range(last, last + 100):
            if await self._is_published(round):
                found = round
            elif found is not None:
                break
        return last if found is None else found

    async def _is_published(self, round: int) -> bool:
        request = b"Q" + round.to_bytes(8, "big") + (0).to_bytes(4, "big")
        try:
            return bool(await self.transport.call(self.peers[0], request, CALL_SECONDS))
        except (Unreachable, Oversized):
            return False

    async def large_values(self) -> None:
        """Store values of 1 MiB, a few in each turn."""
        await self._store(lambda: DHTID.generate(source=os.urandom(8).hex()), os.urandom(1 << 20), times=8)

    async def malformed(self) -> None:
        """Send what cannot be parsed."""
        junk = (b"A" + os.urandom(60_000), b"H" + b"\xdd\xff\xff\xff\xff" * 1000, b"A\x92\xc4\x01x" + b"\x91" * 60_000)
        await self._calls([*junk, b"Q" + os.urandom(12), b""])

    async def values(self) -> None:
        """Store large values that never expire."""
        await self._store(lambda: DHTID.generate(source=os.urandom(8).hex()), os.urandom(64 << 10))

    async def directory(self) -> None:
        """Fill the directory of members with garbage."""
        await self._store(lambda: DHTID.generate(source=self.transport._directory), os.urandom(400))

    async def _store(self, key: Callable[[], DHTID], value: bytes, times: int = 4) -> None:
        node = self.transport._node
        assert node is not None
        packed, expires = node.protocol.serializer.dumps(value), time.time() + 1e9

        async def put(peer: str) -> None:
            places = [os.urandom(8).hex()]
            found = await node.protocol.call_store(PeerID.from_base58(peer), [key()], [packed], expires, subkeys=places)
            self._count("values", answered=found is not None)

        await asyncio.gather(*(put(peer) for peer in self.peers for _ in range(times)), return_exceptions=True)

    def _heartbeat(self, key: Identity, round: int) -> bytes:
        return make_heartbeat(self.run, key.peer, round, 0, time.time() + 75.0, key.sign).message

    async def _calls(self, messages: Sequence[bytes]) -> None:
        async def call(peer: str, message: bytes) -> None:
            try:
                await self.transport.call(peer, message, CALL_SECONDS)
            except (Unreachable, Oversized):
                self._count("calls", answered=False)
            else:
                self._count("calls", answered=True)

        await asyncio.gather(*(call(peer, message) for peer in self.peers for message in messages))

    def _count(self, what: str, *, answered: bool) -> None:
        self.sent[what] += 1
        self.sent[f"{what}_answered"] += answered


def large_contribution(peer: str, round: int, stage: int) -> Contribution:
    """Return a contribution whose texts are one letter and the number of their group."""
    references = [QuestionRef("sums", "", 1000 * round + stage, index) for index in range(GROUPS)]
    groups = tuple(
        Group(Prompt(each.id), (Rollout(f"{each.index}" + "a" * CHARACTERS, (), ()),)) for each in references
    )
    return Contribution(peer, round, stage, groups, {each.id: each for each in references}, "bytes", 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("seconds", type=float)
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--only", choices=["stages", "large_values"], default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        strangers = Strangers(options.run, options.addresses, Path(folder))
        asyncio.run(strangers.flood(options.seconds, options.only))
    print(json.dumps(strangers.sent))


if __name__ == "__main__":
    main()
