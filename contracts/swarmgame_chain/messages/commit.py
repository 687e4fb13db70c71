"""Commits: the seal of a report, sent before the report's round ends; the report opens it in one of the next ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from swarmgame_chain.messages.base import (
    DONE,
    OPENING_WINDOW,
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
from swarmgame_chain.messages.report import Report
from swarmgame_chain.messages.signing import Domain, sign

if TYPE_CHECKING:
    from swarmgame_chain.reader import PeerState, RoundClock, SwarmConfig

_TYPE = keccak(text="Commit(string peerId,uint256 round,bytes32 seal)")


class CommitBody(MessageBody):
    peer: PeerName
    round: Round
    seal: Word
    signature: Signature


@dataclass(frozen=True)
class Commit(RoundMessage):
    """The seal of a report."""

    path = "commits"
    function = "commitReports"
    max_per_transaction = 256
    repeated = "AlreadySealed"
    drop_order = 1

    peer: str
    round: int
    seal: bytes
    signature: bytes

    @classmethod
    def validate(cls, body: object) -> Self:
        fields = CommitBody.model_validate(body)
        return cls(fields.peer, fields.round, to_bytes(fields.seal), to_bytes(fields.signature))

    def struct_hash(self) -> bytes:
        types = ["bytes32", "bytes32", "uint256", "bytes32"]
        return keccak(encode(types, [_TYPE, keccak(text=self.peer), self.round, self.seal]))

    def refusal(self, config: SwarmConfig, clock: RoundClock) -> str:
        return super().refusal(config, clock) if config.sealed_reports else "NotSealed"

    def is_recorded(self, newest: PeerState) -> bool:
        return newest.has_reported(self.round) or newest.seal_of(self.round) is not None

    def decide_by_round(self, newest: PeerState, settled: PeerState, state: ChainState) -> Decision:
        if not state.config.sealed_reports:
            return reject("NotSealed")
        if newest.has_reported(self.round):
            # Opened, and therefore taken.
            return DONE if settled.has_reported(self.round) else WAIT
        if newest.seal_of(self.round) is not None:
            seal = settled.seal_of(self.round)
            return WAIT if seal is None else DONE if seal == self.seal[:28] else reject("AlreadySealed")
        return SEND if state.round <= self.round < state.round + OPENING_WINDOW else WAIT

    def encode(self) -> tuple[object, ...]:
        return (self.peer, self.round, self.seal, self.signature)

    def gas(self) -> int:
        return 44_000

    def size(self) -> int:
        return 352

    def last_round(self, config: SwarmConfig) -> int:
        return self.round


def sign_commit(domain: Domain, signer: bytes, report: Report) -> Commit:
    """Return the commit of a report."""
    unsigned = Commit(report.peer, report.round, report.seal, b"")
    return replace(unsigned, signature=sign(signer, unsigned.digest(domain)))
