"""What is to be done with a message, from the contract's state alone.

This is the contract's own list of reasons, in Python, so that nothing is sent that would be refused, and so that a
gateway that remembers nothing still knows what has been done. Pure. Invariant: a message is DONE only by the state in
which it is settled, not by the newest one, which a reorganisation may take back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swarmgame_chain.messages import Commit, Domain, Registration, SignedMessage, recover
from swarmgame_chain.reader import PeerState, SwarmConfig

MAX_ROUNDS_AHEAD = 64
"""Rounds that a message may be ahead of the chain's: the swarm has gone on while the chain was away."""


class Action(Enum):
    """What to do."""

    SEND = "send"
    WAIT = "wait"
    DONE = "done"
    REJECT = "reject"
    COMPARE = "compare"
    """The chain has a report of this round: whether it is this one, only its events tell."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and the contract's word for a rejection."""

    do: Action
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChainState:
    """The contract's newest state, as far as it concerns messages.

    Args:
        now: the chain's time, unix seconds.
        awaits: whether a registration of the peer is on its way.
    """

    domain: Domain
    config: SwarmConfig
    round: int
    now: int
    awaits: bool = False


_SEND, _WAIT, _DONE = Decision(Action.SEND), Decision(Action.WAIT), Decision(Action.DONE)


def decide(message: SignedMessage, newest: PeerState, settled: PeerState, at: ChainState) -> Decision:
    """What to do with a message, given what the contract knows of its peer: now, and in the block that counts as final."""
    if isinstance(message, Registration):
        return _registration(message, newest, settled, at)
    if not newest.proven:
        return _WAIT if at.awaits or settled.proven else _no("UnknownPeer")
    decision = (
        _commit(message, newest, settled, at) if isinstance(message, Commit) else _report(message, newest, settled, at)
    )
    if decision.do is Action.SEND or (decision.do is Action.WAIT and not at.awaits):
        signer = recover(message.digest(at.domain), message.signature)
        if signer is None or int(signer, 16) != int(newest.signer, 16):
            return _WAIT if at.awaits else _no("InvalidSignature")
    return decision


def _no(reason: str) -> Decision:
    return Decision(Action.REJECT, reason)


def _holds(state: PeerState, m: Registration) -> bool:
    same = (int(state.owner, 16), int(state.signer, 16)) == (int(m.owner, 16), int(m.signer, 16))
    return state.proven and state.deadline == m.deadline and same


def _registration(m: Registration, newest: PeerState, settled: PeerState, at: ChainState) -> Decision:
    if _holds(newest, m):
        return _DONE if _holds(settled, m) else _WAIT
    if newest.proven and newest.deadline >= m.deadline:
        return _no("RegistrationSuperseded") if settled.proven and settled.deadline >= m.deadline else _WAIT
    return _SEND if m.deadline >= at.now else _no("RegistrationExpired")


def _commit(m: Commit, newest: PeerState, settled: PeerState, at: ChainState) -> Decision:
    if not at.config.sealed_reports:
        return _no("NotSealed")
    if newest.sealed_round > m.round:
        if settled.sealed_round <= m.round:
            return _WAIT
        # A seal of a later round has taken the place of this one's, which therefore was taken or came too late.
        return _DONE if settled.sealed_round == m.round + 1 and settled.seal == m.seal else _no("AlreadySealed")
    if m.round == at.round:
        return _SEND
    return _WAIT if at.round < m.round <= at.round + MAX_ROUNDS_AHEAD else _no("InvalidRoundNumber")


def _report(m: SignedMessage, newest: PeerState, settled: PeerState, at: ChainState) -> Decision:
    assert not isinstance(m, Registration | Commit)
    if newest.next_round > m.round:
        return Decision(Action.COMPARE) if settled.next_round > m.round else _WAIT
    opens = m.round + at.config.sealed_reports
    if opens > at.round:
        return _WAIT if opens <= at.round + MAX_ROUNDS_AHEAD else _no("InvalidRoundNumber")
    if at.config.sealed_reports:
        if opens < at.round:
            return _no("InvalidRoundNumber")
        if newest.sealed_round != m.round + 1 or newest.seal != m.seal:
            return _no("SealMismatch")
    return _no("WinnerAlreadyVoted") if m.winners and newest.next_vote > m.round else _SEND
