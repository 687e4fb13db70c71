"""Reports: a peer's mean reward of a round, and the peers whose groups it trained on most.

In a swarm with sealed reports, a report opens the commit of the round before. Whether a report that the contract
recorded is this one is read from its events and from the transaction that carried it.
"""

from __future__ import annotations

import secrets
from collections.abc import Set
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
    MAX_ROUNDS_AHEAD,
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
    in_order = True

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
        if newest.next_round > self.round:
            return COMPARE if settled.next_round > self.round else WAIT
        opens = self.round + sealed
        if opens > state.round:
            return WAIT if opens <= state.round + MAX_ROUNDS_AHEAD else reject("InvalidRoundNumber")
        if sealed and opens < state.round:
            return reject("InvalidRoundNumber")
        if sealed and (newest.sealed_round != self.round + 1 or newest.seal != self.seal):
            return reject("SealMismatch")
        return reject("WinnerAlreadyVoted") if self.winners and newest.next_vote > self.round else SEND

    def follows(self, unsent: Set[int], newest: PeerState) -> bool:
        return any(newest.next_round <= round < self.round for round in unsent)

    def encode(self) -> tuple[object, ...]:
        return (self.peer, self.round, self.reward, list(self.winners), self.salt, self.signature)

    def gas(self) -> int:
        # A peer's first report, with the first vote of every winner.
        return 49_000 + 28_000 * len(self.winners)

    def size(self) -> int:
        return 480 + 128 * len(self.winners)

    @property
    def only_round(self) -> int:
        return self.round + 1

    async def outcome(self, coordinator: Coordinator, newest: PeerState, config: SwarmConfig) -> Decision:
        """Return DONE where the recorded report has the same reward and names the same winners.

        The events name only the winners that counted, so the transaction itself is read. A report that came through
        another contract, or from a client of 0.4.2, shows none: then the winners that counted must be all that this
        one names.
        """
        chain = coordinator.chain
        head = int(await chain.request("eth_blockNumber"), 16)
        query = {
            "fromBlock": hex(max(0, head - MAX_BLOCKS_BACK)),
            "toBlock": hex(head),
            "address": [coordinator.domain.contract],
            "topics": [
                topic("RewardSubmitted"),
                "0x" + newest.owner[2:].lower().rjust(64, "0"),
                f"0x{self.round:064x}",
            ],
        }
        bounded = max(-config.max_reward, min(config.max_reward, self.reward))
        for log in await chain.request("eth_getLogs", query):
            event = decode_log(log, 0)
            if event is not None and event.values["peerId"] == self.peer:
                same_reward = event.values["reward"] == bounded
                same = same_reward and await self._recorded_winners(chain, event.transaction) == self.winners
                return DONE if same else reject(self.repeated)
        return reject(self.repeated)

    async def _recorded_winners(self, chain: RpcClient, transaction: str) -> tuple[str, ...]:
        """Return the winners that a transaction names in this peer's report of this round."""
        carried = await chain.request("eth_getTransactionByHash", transaction)
        receipt: dict[str, Any] | None = await chain.request("eth_getTransactionReceipt", transaction)
        call = decode_call(self.function, to_bytes(carried["input"])) if carried else None
        if call is not None:
            refused = rejected_entries(receipt) if receipt else {}
            for index, (peer, round, _, winners, *_) in enumerate(call[0]):
                if (peer, round) == (self.peer, self.round) and index not in refused:
                    return tuple(winners)
        for log in receipt["logs"] if receipt else ():
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
