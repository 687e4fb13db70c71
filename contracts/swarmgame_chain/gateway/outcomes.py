"""What the chain says of messages: peers' states now and settled, entries that a batch refused, reports that are there
already.

Reads only. Invariant: `settled` is the state in the last block that counts as final, so that nothing is called final
which a short reorganisation could undo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarmgame_chain.abi import decode_call, decode_log, encode_call, error_name, topic
from swarmgame_chain.errors import RpcError
from swarmgame_chain.messages import Report, SignedMessage
from swarmgame_chain.reader import Coordinator, PeerState, SwarmConfig, peer_state

LOOK_BACK = 9_000
"""Blocks that are searched for a report of which only its round is known; public endpoints refuse more."""


class Outcomes:
    """Questions about what became of messages."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def states(self, peers: Sequence[str], confirmations: int) -> tuple[list[PeerState], list[PeerState]]:
        """What is known of peers: in the newest block, and in the last one that counts as final."""
        newest = await self._coordinator.peers(peers)
        if confirmations == 1:
            return newest, newest
        # Most messages are new to the chain; only for peers of which it knows something the older state matters.
        known = [index for index, state in enumerate(newest) if state.known]
        settled = list(newest)
        if known:
            head = int(await self._coordinator.chain.request("eth_blockNumber"), 16)
            block = hex(max(0, head - confirmations + 1))
            calls = [self._peer(peers[index], block) for index in known]
            for index, answer in zip(known, await self._coordinator.chain.request_all(calls), strict=True):
                # A node that has no such state, or a contract that was not there yet: nothing is settled.
                settled[index] = (
                    _NOTHING
                    if isinstance(answer, RpcError) or len(answer) <= 2
                    else peer_state(bytes.fromhex(answer[2:]))
                )
        return newest, settled

    async def is_reported(self, message: SignedMessage, state: PeerState, config: SwarmConfig) -> bool:
        """Whether the report that the chain has of this round is this one: the same reward, and the same winners.

        The events name only the winners that counted, so that the transaction itself is read. One that came through
        another contract, or from a client of 0.4.2, shows no report: then the winners that counted must be all that
        this one names.
        """
        if not isinstance(message, Report):
            return False
        head = int(await self._coordinator.chain.request("eth_blockNumber"), 16)
        query = {
            "fromBlock": hex(max(0, head - LOOK_BACK)),
            "toBlock": hex(head),
            "address": [self._coordinator.domain.contract],
            "topics": [
                topic("RewardSubmitted"),
                "0x" + state.owner[2:].lower().rjust(64, "0"),
                hex_word(message.round),
            ],
        }
        bounded = max(-config.max_reward, min(config.max_reward, message.reward))
        for entry in await self._coordinator.chain.request("eth_getLogs", query):
            event = decode_log(entry, 0)
            if event is not None and event.values["peerId"] == message.peer:
                return (
                    bool(event.values["reward"] == bounded)
                    and await self._named(message, event.transaction) == message.winners
                )
        return False

    async def _named(self, message: Report, transaction: str) -> tuple[str, ...]:
        """The winners that a transaction names in a peer's report of a round."""
        chain = self._coordinator.chain
        carried, receipt = (
            await chain.request("eth_getTransactionByHash", transaction),
            await chain.request("eth_getTransactionReceipt", transaction),
        )
        call = decode_call("submitReports", bytes.fromhex(carried["input"][2:])) if carried else None
        if call is not None:
            refused = self.rejected(receipt) if receipt else {}
            for index, (peer, round, _, winners, *_) in enumerate(call[0]):
                if (peer, round) == (message.peer, message.round) and index not in refused:
                    return tuple(winners)
        for log in receipt["logs"] if receipt else ():
            event = decode_log(log, 0)
            if event is not None and event.name == "WinnerSubmitted":
                values = event.values
                if (values["peerId"], values["roundNumber"]) == (message.peer, message.round):
                    return tuple(values["winners"])
        return ()

    def rejected(self, receipt: Mapping[str, Any]) -> dict[int, str]:
        """Which entries of a mined batch the contract refused, and its word for why."""
        events = (decode_log(entry, 0) for entry in receipt["logs"])
        found = [event for event in events if event is not None and event.name == "EntryRejected"]
        return {event.values["index"]: error_name(event.values["reason"]) for event in found}

    def _peer(self, peer: str, block: str) -> tuple[str, Sequence[Any]]:
        return (
            "eth_call",
            ({"to": self._coordinator.domain.contract, "data": "0x" + encode_call("peer", peer).hex()}, block),
        )


def hex_word(number: int) -> str:
    """A number as a log's topic."""
    return f"0x{number:064x}"


_NOTHING = PeerState("0x" + "00" * 20, "0x" + "00" * 20, 0, False, 0, 0, 0, bytes(32), 0, 0)
