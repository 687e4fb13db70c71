"""Read a coordinator contract: its peers, its round, its events.

Needs no key. A process calls `check` first: the chain's id, code at the address, and the contract's own domain must be
the expected ones. An `EventCursor` yields each event once, whatever the chain reorganises: an event that is gone comes
back as removed, one that moved to another block is not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmgame_chain.abi import ContractEvent, decode_log, decode_result, encode_call, topic
from swarmgame_chain.errors import ChainRefused, NoCoordinator, RpcError
from swarmgame_chain.head import Block, newest_block
from swarmgame_chain.logs import LogSearch
from swarmgame_chain.messages import Domain
from swarmgame_chain.rpc import Call, RpcClient, successes

REWIND = 12
"""Blocks before the cursor that are read again."""
MAX_NUMBER = 2**64
"""Bound of rounds, times and counts; the contract keeps them in fewer bits."""
SEALS = 16
"""Seals that the contract keeps of a peer in a swarm with sealed reports."""
_PEER_WORDS = 13
"""32-byte words of `peer()` without its seals."""
MAX_BLOCKS = 200_000
"""Blocks that one call of a cursor reads."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What the contract knows of a peer.

    Args:
        first_round: the first round that the peer may report.
        round: the current round of the block that this was read from.
        reported: bit i says whether the peer has reported the round `round` - i, for the last 256 rounds.
        voted: the same of its votes.
        seals: the last seals, 32 bytes each: the first 28 of the seal, then its round, plus one.
    """

    owner: str
    signer: str
    deadline: int
    proven: bool
    first_round: int
    round: int
    reported: int
    voted: int
    total_reward: int
    total_wins: int
    seals: tuple[bytes, ...] = ()

    @property
    def known(self) -> bool:
        return int(self.owner, 16) != 0

    @property
    def last_reported(self) -> int:
        """The newest round that the peer has reported; -1 without one in the last 256."""
        return self.round - ((self.reported & -self.reported).bit_length() - 1) if self.reported else -1

    def has_reported(self, round: int) -> bool:
        """Return whether the contract has the peer's report of a round; False for one that is too old or to come."""
        return self.round >= round and bool(self.reported >> (self.round - round) & 1)

    def has_voted(self, round: int) -> bool:
        """Return whether the contract has the peer's votes of a round."""
        return self.round >= round and bool(self.voted >> (self.round - round) & 1)

    def seal_of(self, round: int) -> bytes | None:
        """Return the first 28 bytes of the seal that was committed for a round; None without one."""
        mark = (round + 1).to_bytes(4)
        return next((seal[:28] for seal in self.seals if seal[28:] == mark), None)


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
        self.logs = LogSearch(chain, domain.contract)

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
        except (RpcError, NoCoordinator) as error:
            if isinstance(error, RpcError) and not error.is_revert:
                raise
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
            NoCoordinator: the answer is not a coordinator's.
        """
        method, parameters = _call(self.domain.contract, name, arguments)
        return decode_result(name, _bytes(await self.chain.request(method, *parameters)))

    async def config(self) -> SwarmConfig:
        """Return the contract's configuration."""
        names = ("roundDuration", "minRoundTime", "maxReward", "sealedReports", "provenOnly")
        values = [await self.call(name) for name in names]
        return SwarmConfig(*values)

    async def clock(self, block: Block | None = None) -> RoundClock:
        """Return the round, its deadline, and the chain's time.

        Args:
            block: as of this block; by default the newest one.
        """
        block = block or await newest_block(self.chain)
        names = ("currentRound", "deadline")
        calls = [_call(self.domain.contract, name, (), block.tag) for name in names]
        answers = successes(await self.chain.request_all(calls))
        round, deadline = (decode_result(name, _bytes(answer)) for name, answer in zip(names, answers, strict=True))
        if max(round, deadline) > MAX_NUMBER:
            raise NoCoordinator(f"the contract answers round {round:#x} and deadline {deadline:#x}")
        return RoundClock(round, deadline, block.time, block.number)

    async def round(self) -> int:
        """Return the current round."""
        return int(await self.call("currentRound"))

    async def bootnodes(self) -> tuple[str, ...]:
        """Return the multiaddresses that new peers connect to first."""
        return tuple(await self.call("getBootnodes"))

    async def peer(self, peer: str) -> PeerState:
        """Return what is known of one peer; `known` is False for an unknown one."""
        return (await self.peers([peer]))[0]

    async def peers(self, peers: Sequence[str], block: str = "latest") -> list[PeerState]:
        """Return what is known of many peers, in order; each is read once, however often it is named."""
        distinct = list(dict.fromkeys(peers))
        calls = [_call(self.domain.contract, "peer", (peer,), block) for peer in distinct]
        answers = successes(await self.chain.request_all(calls))
        known = {peer: peer_state(_bytes(answer)) for peer, answer in zip(distinct, answers, strict=True)}
        return [known[peer] for peer in peers]

    async def proven(self, peers: Sequence[str]) -> frozenset[str]:
        """Return which of these peers have proven their id; admission `Registered` lets only these in."""
        return frozenset(peer for peer, state in zip(peers, await self.peers(peers), strict=True) if state.proven)

    async def newest_and_settled(
        self, peers: Sequence[str], confirmations: int, head: Block
    ) -> tuple[list[PeerState], list[PeerState]]:
        """Return what is known of peers in a block, the newest one, and in the last one that counts as final."""
        newest = await self.peers(peers, head.tag)
        if confirmations == 1:
            return newest, newest
        settled = dict(zip(peers, newest, strict=True))
        # Most messages are new to the chain; the older state matters only for peers that the contract knows.
        known = [peer for peer, state in settled.items() if state.known]
        if known:
            block = hex(max(0, head.number - confirmations + 1))
            calls = [_call(self.domain.contract, "peer", (peer,), block) for peer in known]
            for peer, answer in zip(known, await self.chain.request_all(calls), strict=True):
                # A node that has no such state, or a contract that did not exist yet: nothing is settled.
                settled[peer] = (
                    _UNKNOWN_PEER if isinstance(answer, RpcError) or len(answer) <= 2 else peer_state(_bytes(answer))
                )
        return newest, [settled[peer] for peer in peers]


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
    is_behind: bool = False
    """Whether the last call did not reach the newest block."""
    _recent: dict[tuple[str, int], ContractEvent] = field(default_factory=dict)

    async def poll(self, head: int | None = None) -> tuple[list[ContractEvent], list[ContractEvent]]:
        """Return the events that are new since the last call, in the chain's order, and those that were removed.

        Args:
            head: the newest block, where the caller has read it.

        Raises:
            ChainUnreachable, RpcError: nothing was read; the next call starts where this one did.
        """
        if head is None:
            head = int(await self.coordinator.chain.request("eth_blockNumber"), 16)
        # A chain that is shorter than it was has been reorganised, so that the cursor may lie beyond its head.
        first = max(0, min(self.block, head + 1) - REWIND)
        last = min(head, first + MAX_BLOCKS - 1)
        found = await self._read(first, last)
        # Events before the blocks that are read again stay; deeper reorganisations are not noticed.
        removed = [event for key, event in self._recent.items() if event.block >= first and key not in found]
        new = [event for key, event in found.items() if key not in self._recent]
        self._recent = {key: event for key, event in found.items() if event.block > last - 2 * REWIND}
        self.block, self.is_behind = last + 1, last < head
        return new, removed

    async def poll_all(self) -> list[ContractEvent]:
        """Return all events up to the newest block."""
        new, _ = await self.poll()
        while self.is_behind:
            more, _ = await self.poll()
            new += more
        return new

    async def _read(self, first: int, last: int) -> dict[tuple[str, int], ContractEvent]:
        positions: dict[str, int] = {}
        found: dict[tuple[str, int], ContractEvent] = {}
        topics = [[topic(name) for name in self.names]] if self.names else []
        for log in await self.coordinator.logs.find(first, last, topics):
            transaction = log["transactionHash"]
            position = positions.get(transaction, 0)
            positions[transaction] = position + 1
            known = self._recent.get((transaction, position))
            event = known if known is not None and known.block_hash == log["blockHash"] else decode_log(log, position)
            if event is not None:
                found[transaction, position] = event
        return found


def peer_state(data: bytes) -> PeerState:
    """Decode the result of `peer()`; by hand, since a gateway does it for every message.

    It is one dynamic tuple: the offset of the tuple, ten values, the offset of the seals, their number, and the seals.

    Raises:
        NoCoordinator: it is not such a result.
    """
    words = [data[i : i + 32] for i in range(0, len(data), 32)]
    if len(data) not in (_PEER_WORDS * 32, (_PEER_WORDS + SEALS) * 32) or [
        int.from_bytes(words[i]) for i in (0, 11, 12)
    ] != [
        32,
        352,
        len(words) - _PEER_WORDS,
    ]:
        raise NoCoordinator(f"peer() answers {len(data)} bytes that are none of a SwarmCoordinator's")
    owner, signer, deadline, proven, first_round, round, reported, voted, reward, wins = words[1:11]
    state = PeerState(
        owner="0x" + owner[12:].hex(),
        signer="0x" + signer[12:].hex(),
        deadline=int.from_bytes(deadline),
        proven=any(proven),
        first_round=int.from_bytes(first_round),
        round=int.from_bytes(round),
        reported=int.from_bytes(reported),
        voted=int.from_bytes(voted),
        total_reward=int.from_bytes(reward, signed=True),
        total_wins=int.from_bytes(wins),
        seals=tuple(words[_PEER_WORDS:]),
    )
    if max(state.deadline, state.first_round, state.round, state.total_wins) > MAX_NUMBER:
        raise NoCoordinator("peer() answers numbers of more than 64 bits, which no SwarmCoordinator has")
    return state


def _call(contract: str, name: str, arguments: Sequence[Any], block: str = "latest") -> Call:
    return ("eth_call", ({"to": contract, "data": "0x" + encode_call(name, *arguments).hex()}, block))


_UNKNOWN_PEER = PeerState("0x" + "00" * 20, "0x" + "00" * 20, 0, False, 0, 0, 0, 0, 0, 0)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
