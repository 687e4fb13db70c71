"""Read a coordinator contract: its peers, its round, its events.

Needs no key. A process calls `check` first: the chain's id, code at the address, and the contract's own domain must be
the expected ones. An `EventCursor` yields each event once, whatever the chain reorganises: an event that is gone comes
back as removed, one that moved to another block is not repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmgame_chain.abi import ContractEvent, decode_log, decode_result, encode_call, topic
from swarmgame_chain.errors import ChainRefused, RpcError
from swarmgame_chain.messages import Domain
from swarmgame_chain.rpc import Call, RpcClient, successes

REWIND = 12
"""Blocks before the cursor that are read again."""
SPAN = 2_000
"""Blocks in one search; public endpoints refuse more."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What the contract knows of a peer.

    Args:
        next_round: the first round that the peer may still report.
        sealed_round: the round of its last seal, plus one.
    """

    owner: str
    signer: str
    deadline: int
    proven: bool
    next_round: int
    next_vote: int
    sealed_round: int
    seal: bytes
    total_reward: int
    total_wins: int

    @property
    def known(self) -> bool:
        return int(self.owner, 16) != 0


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """The contract's configuration: seconds, the bound of a round's reward, and whether reports are sealed and peers
    must be proven.
    """

    round_duration: int = 600
    min_round_time: int = 5
    max_reward: int = 1_000_000_000
    sealed_reports: bool = False
    proven_only: bool = False

    def values(self) -> tuple[int, int, int, bool, bool]:
        return (self.round_duration, self.min_round_time, self.max_reward, self.sealed_reports, self.proven_only)


@dataclass(frozen=True, slots=True)
class RoundClock:
    """The contract's round, its deadline, and the last block's time and number. Times are unix seconds."""

    round: int
    deadline: int
    now: int
    block: int = 0


class Coordinator:
    """A coordinator contract.

    Args:
        chain: the node.
        domain: the expected chain, and the contract's address.
    """

    def __init__(self, chain: RpcClient, domain: Domain) -> None:
        self.chain = chain
        self.domain = domain

    async def check(self) -> None:
        """Check that the chain and the contract are the expected ones.

        Raises:
            ChainRefused: another chain, no code, or another contract; the message names it.
            ChainUnreachable: the node does not answer.
        """
        found = int(await self.chain.request("eth_chainId"), 16)
        if found != self.domain.chain_id:
            raise ChainRefused(f"the node is of chain {found}; expected chain {self.domain.chain_id}")
        code = await self.chain.request("eth_getCode", self.domain.contract, "latest")
        if len(code) <= 2:
            raise ChainRefused(
                f"there is no contract at {self.domain.contract} on chain {found}; expected a SwarmCoordinator"
            )
        try:
            separator = await self.call("domainSeparator")
        except RpcError as error:
            raise ChainRefused(
                f"the contract at {self.domain.contract} on chain {found} is no SwarmCoordinator"
            ) from error
        if separator != self.domain.separator:
            raise ChainRefused(
                f"the contract at {self.domain.contract} on chain {found} is another one, or made for another address"
            )

    async def call(self, name: str, *arguments: Any) -> Any:
        """Return a function's result, as of the last block.

        Raises:
            ChainUnreachable, RpcError: as `RpcClient.request`.
            ChainRefused: the answer is not a coordinator's.
        """
        method, parameters = _call(self.domain.contract, name, arguments)
        return decode_result(name, _bytes(await self.chain.request(method, *parameters)))

    async def call_all(self, name: str, arguments: Iterable[Sequence[Any]]) -> list[Any]:
        """One function for many arguments, in few requests."""
        answers = successes(
            await self.chain.request_all([_call(self.domain.contract, name, each) for each in arguments])
        )
        return [decode_result(name, _bytes(answer)) for answer in answers]

    async def config(self) -> SwarmConfig:
        """Return the contract's configuration."""
        names = ("roundDuration", "minRoundTime", "maxReward", "sealedReports", "provenOnly")
        values = [await self.call(name) for name in names]
        return SwarmConfig(*values)

    async def clock(self) -> RoundClock:
        """Return the round, its deadline, and the chain's time."""
        names = ("currentRound", "deadline")
        calls = [_call(self.domain.contract, name, ()) for name in names]
        answers = successes(await self.chain.request_all([*calls, ("eth_getBlockByNumber", ("latest", False))]))
        values = [decode_result(name, _bytes(answer)) for name, answer in zip(names, answers, strict=False)]
        return RoundClock(values[0], values[1], int(answers[2]["timestamp"], 16), int(answers[2]["number"], 16))

    async def round(self) -> int:
        """Return the current round."""
        return int(await self.call("currentRound"))

    async def bootnodes(self) -> tuple[str, ...]:
        """Return the multiaddresses that new peers connect to first."""
        return tuple(await self.call("getBootnodes"))

    async def peer(self, peer: str) -> PeerState:
        """Return what is known of one peer; `known` is False for an unknown one."""
        return (await self.peers([peer]))[0]

    async def peers(self, peers: Sequence[str]) -> list[PeerState]:
        """Return what is known of many peers, in order."""
        answers = successes(
            await self.chain.request_all([_call(self.domain.contract, "peer", (peer,)) for peer in peers])
        )
        return [peer_state(_bytes(answer)) for answer in answers]

    async def proven(self, peers: Sequence[str]) -> frozenset[str]:
        """Return which of these peers have proven their id; admission `Registered` lets only these in."""
        return frozenset(peer for peer, state in zip(peers, await self.peers(peers), strict=True) if state.proven)

    async def newest_and_settled(
        self, peers: Sequence[str], confirmations: int
    ) -> tuple[list[PeerState], list[PeerState]]:
        """Return what is known of peers in the newest block, and in the last one that counts as final."""
        newest = await self.peers(peers)
        if confirmations == 1:
            return newest, newest
        # Most messages are new to the chain; the older state matters only for peers that the contract knows.
        known = [index for index, state in enumerate(newest) if state.known]
        settled = list(newest)
        if known:
            head = int(await self.chain.request("eth_blockNumber"), 16)
            block = hex(max(0, head - confirmations + 1))
            calls = [_call(self.domain.contract, "peer", (peers[index],), block) for index in known]
            for index, answer in zip(known, await self.chain.request_all(calls), strict=True):
                # A node that has no such state, or a contract that did not exist yet: nothing is settled.
                settled[index] = (
                    _UNKNOWN_PEER if isinstance(answer, RpcError) or len(answer) <= 2 else peer_state(_bytes(answer))
                )
        return newest, settled


@dataclass
class EventCursor:
    """Yields each of the contract's events once.

    Args:
        block: the first block to read.
        names: the events to read; all of them by default.
    """

    coordinator: Coordinator
    block: int = 0
    names: tuple[str, ...] = ()
    _recent: dict[tuple[str, int], ContractEvent] = field(default_factory=dict)

    async def poll(self) -> tuple[list[ContractEvent], list[ContractEvent]]:
        """Return the events that are new since the last call, in the chain's order, and those that were removed.

        Raises:
            ChainUnreachable, RpcError: nothing was read; the next call starts where this one did.
        """
        head = int(await self.coordinator.chain.request("eth_blockNumber"), 16)
        # A chain that is shorter than it was has been reorganised, so that the cursor may lie beyond its head.
        first = max(0, min(self.block, head + 1) - REWIND)
        found: dict[tuple[str, int], ContractEvent] = {}
        for start in range(first, head + 1, SPAN):
            found |= await self._read(start, min(start + SPAN - 1, head))
        # Events before the blocks that are read again stay; deeper reorganisations are not noticed.
        removed = [event for key, event in self._recent.items() if event.block >= first and key not in found]
        new = [event for key, event in found.items() if key not in self._recent]
        self._recent = {key: event for key, event in found.items() if event.block > head - 2 * REWIND}
        self.block = head + 1
        return new, removed

    async def _read(self, first: int, last: int) -> dict[tuple[str, int], ContractEvent]:
        query: dict[str, Any] = {
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "address": [self.coordinator.domain.contract],
        }
        if self.names:
            query["topics"] = [[topic(name) for name in self.names]]
        positions: dict[str, int] = {}
        found: dict[tuple[str, int], ContractEvent] = {}
        for log in await self.coordinator.chain.request("eth_getLogs", query):
            transaction = log["transactionHash"]
            position = positions.get(transaction, 0)
            positions[transaction] = position + 1
            known = self._recent.get((transaction, position))
            event = known if known is not None and known.block_hash == log["blockHash"] else decode_log(log, position)
            if event is not None:
                found[transaction, position] = event
        return found


def peer_state(data: bytes) -> PeerState:
    """Decode the result of `peer()`, ten 32-byte values; by hand, since a gateway does it for every message.

    Raises:
        ChainRefused: it is not such a result.
    """
    if len(data) != 320:
        raise ChainRefused(f"peer() at this address answered {len(data)} bytes that are none of a SwarmCoordinator's")
    owner, signer, deadline, proven, next_round, next_vote, sealed_round, seal, reward, wins = (
        data[i : i + 32] for i in range(0, 320, 32)
    )
    return PeerState(
        owner="0x" + owner[12:].hex(),
        signer="0x" + signer[12:].hex(),
        deadline=int.from_bytes(deadline),
        proven=any(proven),
        next_round=int.from_bytes(next_round),
        next_vote=int.from_bytes(next_vote),
        sealed_round=int.from_bytes(sealed_round),
        seal=seal,
        total_reward=int.from_bytes(reward, signed=True),
        total_wins=int.from_bytes(wins),
    )


def _call(contract: str, name: str, arguments: Sequence[Any], block: str = "latest") -> Call:
    return ("eth_call", ({"to": contract, "data": "0x" + encode_call(name, *arguments).hex()}, block))


_UNKNOWN_PEER = PeerState("0x" + "00" * 20, "0x" + "00" * 20, 0, False, 0, 0, 0, bytes(32), 0, 0)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
