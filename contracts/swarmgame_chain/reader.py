"""Reading a coordinator: who is in, which round it is, what happened.

Reads only; needs no key, and any process may have one. `check` is what everybody does first: the chain's id, code at
the address, and the contract's own domain must be what was asked for. Invariant: events come out of a cursor once,
whatever the chain reorganises: one that is gone comes back as `removed`, one that moved to another block does not come
twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmgame_chain.abi import ContractEvent, decode_log, decode_result, encode_call, error_name, topic
from swarmgame_chain.errors import ChainRefused, RpcError
from swarmgame_chain.messages import Domain
from swarmgame_chain.rpc import Call, RpcClient, successes

REWIND = 12
"""Blocks before its cursor that a reader asks for again."""
SPAN = 2_000
"""Blocks asked for at once; public endpoints refuse more."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What the contract knows of a peer. `next_round` is the first round that it may still report; `sealed_round` one
    more than its last seal's.
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
    """How the contract was made: seconds, the bound of a round's reward, and whether reports are sealed and peers must
    be proven.
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
    """The contract's round, when anyone may end it, the time of the last block, unix seconds, and its number."""

    round: int
    deadline: int
    now: int
    block: int = 0


class Coordinator:
    """A coordinator contract.

    Args:
        chain: the node.
        domain: which chain it must be, and at which address the contract is.
    """

    def __init__(self, chain: RpcClient, domain: Domain) -> None:
        self.chain = chain
        self.domain = domain

    async def check(self) -> None:
        """Whether this is what was asked for.

        Raises:
            ChainRefused: another chain, no code, or another contract; says which.
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
        """A function's result, as of the last block.

        Raises:
            ChainUnreachable, RpcError: as the node does.
            ChainRefused: the answer is none of a coordinator's.
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
        """How the contract was made."""
        names = ("roundDuration", "minRoundTime", "maxReward", "sealedReports", "provenOnly")
        values = [await self.call(name) for name in names]
        return SwarmConfig(*values)

    async def clock(self) -> RoundClock:
        """The round, its deadline, and the chain's time."""
        names = ("currentRound", "deadline")
        calls = [_call(self.domain.contract, name, ()) for name in names]
        answers = successes(await self.chain.request_all([*calls, ("eth_getBlockByNumber", ("latest", False))]))
        values = [decode_result(name, _bytes(answer)) for name, answer in zip(names, answers, strict=False)]
        return RoundClock(values[0], values[1], int(answers[2]["timestamp"], 16), int(answers[2]["number"], 16))

    async def round(self) -> int:
        """The current round."""
        return int(await self.call("currentRound"))

    async def bootnodes(self) -> tuple[str, ...]:
        """Where a newcomer knocks first: multiaddresses."""
        return tuple(await self.call("getBootnodes"))

    async def peer(self, peer: str) -> PeerState:
        """What is known of one peer; `known` is False where it is nothing."""
        return (await self.peers([peer]))[0]

    async def peers(self, peers: Sequence[str]) -> list[PeerState]:
        """What is known of many peers, in order."""
        answers = successes(
            await self.chain.request_all([_call(self.domain.contract, "peer", (peer,)) for peer in peers])
        )
        return [peer_state(_bytes(answer)) for answer in answers]

    async def proven(self, peers: Sequence[str]) -> frozenset[str]:
        """Which of these peers have proven their id: whom admission `Registered` lets in."""
        return frozenset(peer for peer, state in zip(peers, await self.peers(peers), strict=True) if state.proven)

    def why(self, error: RpcError) -> str:
        """The contract's own word for a call that it reverted, or the node's."""
        return error_name(error.data) if len(error.data) >= 4 else error.message


@dataclass
class EventCursor:
    """The contract's events, once each.

    Args:
        coordinator: whose.
        block: the first block to read.
        names: which events; all of them by default.
    """

    coordinator: Coordinator
    block: int = 0
    names: tuple[str, ...] = ()
    _recent: dict[tuple[str, int], ContractEvent] = field(default_factory=dict)

    async def poll(self) -> tuple[list[ContractEvent], list[ContractEvent]]:
        """What is new since the last call, in the chain's order, and what a reorganisation has removed.

        Raises:
            ChainUnreachable, RpcError: nothing was read; the next call starts where this one did.
        """
        head = int(await self.coordinator.chain.request("eth_blockNumber"), 16)
        # A chain that is shorter than it was has been reorganised, so that the cursor may lie beyond its head.
        first = max(0, min(self.block, head + 1) - REWIND)
        found: dict[tuple[str, int], ContractEvent] = {}
        for start in range(first, head + 1, SPAN):
            found |= await self._read(start, min(start + SPAN - 1, head))
        # What was read before the window begins stays as it is; reorganisations deeper than the window are not seen.
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
    """What `peer()` answered. Taken apart by hand, ten words, since a gateway does it for every message.

    Raises:
        ChainRefused: it is no such answer.
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


def _call(contract: str, name: str, arguments: Sequence[Any]) -> Call:
    return ("eth_call", ({"to": contract, "data": "0x" + encode_call(name, *arguments).hex()}, "latest"))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
