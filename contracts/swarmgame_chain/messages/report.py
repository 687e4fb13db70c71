"""Reports: a peer's mean reward of a round, and the peers whose groups it trained on most.

In a swarm with sealed reports, a report opens its commit in one of the next rounds. Whether a report that the contract
recorded is this one is read from its events and from the transaction that carried it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from eth_abi.abi import encode
from eth_utils.crypto import keccak
from pydantic import Field

from swarmgame_chain.abi import decode_call, decode_log, rejected_entries, topic
from swarmgame_chain.errors import BadMessage
from swarmgame_chain.messages.base import (
    COMPARE,
    DONE,
    OPENING_WINDOW,
    REPORT_WINDOW,
    SEND,
    WAIT,
    ChainState,
    Decision,
    MessageBody,
    PeerName,
    Round,
    RoundMessage,
    Signature,
    Word,
    reject,
    to_bytes,
)
from swarmgame_chain.messages.signing import Domain, sign

if TYPE_CHECKING:
    from swarmgame_chain.reader import Coordinator, PeerState, SwarmConfig
    from swarmgame_chain.rpc import RpcClient

MAX_VOTES = 8
MAX_BLOCKS_BACK = 9_000
"""Blocks that are searched for a report of which only its round is known; public endpoints refuse more."""
_TYPE = keccak(text="Report(string peerId,uint256 round,uint256 stage,int256 reward,bytes32 winners)")


class ReportBody(MessageBody):
    peer: PeerName
    round: Round
    reward: Annotated[int, Field(ge=-(2**255), lt=2**255)]
    winners: Annotated[list[PeerName], Field(max_length=MAX_VOTES, default_factory=list)]
    salt: Word = "0x" + "00" * 32
    signature: Signature


@dataclass(frozen=True)
class Report(RoundMessage):
    """A peer's report of a round. `reward` is an integer, in millionths."""

    path = "reports"
    function = "submitReports"
    max_per_transaction = 256
    repeated = "RewardAlreadySubmitted"

    peer: str
    round: int
    reward: int
    winners: tuple[str, ...]
    salt: bytes
    signature: bytes

    @property
    def votes(self) -> bytes:
        """The hash of the winners that is signed and sealed; 32 bytes."""
        return keccak(encode(["string[]"], [list(self.winners)]))

    @property
    def seal(self) -> bytes:
        """What is committed one round ahead; 32 bytes."""
        values = [self.peer, self.round, self.reward, self.votes, self.salt]
        return keccak(encode(["string", "uint256", "int256", "bytes32", "bytes32"], values))

    @classmethod
    def validate(cls, body: object) -> Self:
        fields = ReportBody.model_validate(body)
        return cls(
            fields.peer,
            fields.round,
            fields.reward,
            tuple(fields.winners),
            to_bytes(fields.salt),
            to_bytes(fields.signature),
        )

    def struct_hash(self) -> bytes:
        values = [_TYPE, keccak(text=self.peer), self.round, 0, self.reward, self.votes]
        return keccak(encode(["bytes32", "bytes32", "uint256", "uint256", "int256", "bytes32"], values))

    def decide_by_round(self, newest: PeerState, settled: PeerState, state: ChainState) -> Decision:
        sealed = state.config.sealed_reports
        if newest.has_reported(self.round):
            return COMPARE if settled.has_reported(self.round) else WAIT
        if self.round + sealed > state.round or state.round > self.last_round(state.config):
            return WAIT
        if sealed and newest.seal_of(self.round) != self.seal[:28]:
            # No seal is taken after the end of its round, so one that the settled state has not never comes.
            return reject("SealMismatch") if settled.round > self.round else WAIT
        if self.winners and newest.has_voted(self.round):
            return reject("WinnerAlreadyVoted") if settled.has_voted(self.round) else WAIT
        return SEND

    def encode(self) -> tuple[object, ...]:
        return (self.peer, self.round, self.reward, list(self.winners), self.salt, self.signature)

    def gas(self) -> int:
        # A peer's first report, with the first vote of every winner.
        return 49_000 + 28_000 * len(self.winners)

    def size(self) -> int:
        return 480 + 128 * len(self.winners)

    def last_round(self, config: SwarmConfig) -> int:
        return self.round + (OPENING_WINDOW if config.sealed_reports else REPORT_WINDOW - 1)

    def finished_round(self, config: SwarmConfig) -> int:
        # It may arrive before its commit, which the contract takes until the round ends.
        return -1 if config.sealed_reports else self.round

    async def outcome(self, coordinator: Coordinator, newest: PeerState, config: SwarmConfig, head: int) -> Decision:
        """Return DONE where the recorded report has the same reward and names the same winners.

        The events name only the winners that counted, so the transaction itself is read. A report that came through
        another contract, or from a client of 0.4.2, shows none: then the winners that counted must be all that this
        one names.
        """
        topics = [topic("RewardSubmitted"), "0x" + newest.owner[2:].lower().rjust(64, "0"), f"0x{self.round:064x}"]
        bounded = max(-config.max_reward, min(config.max_reward, self.reward))
        first, last = max(0, head - MAX_BLOCKS_BACK), head
        # Backwards, since most reports that are compared are recent, and some nodes search ten blocks at a time.
        while last >= first:
            start = max(first, last - coordinator.logs.span + 1)
            for log in await coordinator.logs.find(start, last, topics):
                event = decode_log(log, 0)
                if event is None or event.values["peerId"] != self.peer:
                    continue
                if event.values["reward"] != bounded:
                    return reject(self.repeated)
                winners = await self._recorded_winners(coordinator.chain, event.transaction)
                if winners is None:
                    return WAIT
                return DONE if winners == self.winners else reject(self.repeated)
            last = start - 1
        return WAIT

    async def _recorded_winners(self, chain: RpcClient, transaction: str) -> tuple[str, ...] | None:
        """Return the winners that a transaction names in this peer's report of this round; None where the node does not
        show the transaction.
        """
        carried = await chain.request("eth_getTransactionByHash", transaction)
        receipt: dict[str, Any] | None = await chain.request("eth_getTransactionReceipt", transaction)
        if carried is None or receipt is None:
            return None
        call = decode_call(self.function, to_bytes(carried["input"]))
        if call is not None:
            refused = rejected_entries(receipt)
            for index, (peer, round, _, winners, *_) in enumerate(call[0]):
                if (peer, round) == (self.peer, self.round) and index not in refused:
                    return tuple(winners)
        for log in receipt["logs"]:
            event = decode_log(log, 0)
            if event is not None and event.name == "WinnerSubmitted":
                values = event.values
                if (values["peerId"], values["roundNumber"]) == (self.peer, self.round):
                    return tuple(values["winners"])
        return ()


def sign_report(
    domain: Domain, signer: bytes, *, peer: str, round: int, reward: int, winners: tuple[str, ...] = ()
) -> Report:
    """Return a report of a round, with a new salt.

    Args:
        signer: 32 secret bytes of the key that the registration names.
        winners: at most 8 other peers.

    Raises:
        BadMessage: more than 8 winners, or one twice.
    """
    if len(winners) > MAX_VOTES or len(set(winners)) != len(winners):
        raise BadMessage(f"a report names {len(winners)} winners; expected at most {MAX_VOTES}, each once")
    salt = secrets.token_bytes(32)
    unsigned = Report(peer, round, reward, winners, salt, b"")
    return replace(unsigned, signature=sign(signer, unsigned.digest(domain)))
