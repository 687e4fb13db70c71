"""What a kind of signed message defines, from the JSON body to the check of its outcome on chain.

A subclass of `SignedMessage` is a frozen dataclass with `validate` (from JSON), `refusal` and `is_signed` (admission),
`decide` (what to do, given the contract's state), `encode`, `gas` and `size` (its entry in a transaction) and
`outcome` (whether what the contract has recorded is this message). The gateway knows messages only through these.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from swarmgame_chain.messages.signing import MAX_PEER_ID, Domain, recover

if TYPE_CHECKING:
    from swarmgame_chain.reader import Coordinator, PeerState, RoundClock, SwarmConfig

MAX_ROUNDS_AHEAD = 128
"""Rounds that a message may be ahead of the chain's, as many as end in one step. Later ones wait at their peer."""
REPORT_WINDOW = 256
"""Rounds whose reports the contract takes, the current one among them."""
OPENING_WINDOW = 8
"""Rounds after a commit in which its report may be opened, and rounds for which a commit may come early."""
TOO_EARLY = "TooEarly"
"""Why a gateway does not take a message yet. No error of the contract: the peer submits the message again."""


class Action(Enum):
    """What the gateway does with a message."""

    SEND = "send"
    WAIT = "wait"
    DONE = "done"
    REJECT = "reject"
    COMPARE = "compare"
    """The contract has recorded something for this round; `outcome` tells whether it is this message."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and the contract's name of the reason for a rejection."""

    action: Action
    reason: str = ""


SEND, WAIT, DONE, COMPARE = (Decision(action) for action in (Action.SEND, Action.WAIT, Action.DONE, Action.COMPARE))


def reject(reason: str) -> Decision:
    """Return a rejection; `reason` is the name of one of the contract's errors."""
    return Decision(Action.REJECT, reason)


@dataclass(frozen=True, slots=True)
class ChainState:
    """The contract's newest state, as far as decisions need it.

    Args:
        now: the chain's time, unix seconds.
        registration_pending: whether a registration of the message's peer is on its way.
    """

    domain: Domain
    config: SwarmConfig
    round: int
    now: int
    registration_pending: bool = False


class SignedMessage(ABC):
    """A message that a peer signs and anyone may carry to the contract."""

    path: ClassVar[str]
    """The route that takes it, `/v1/PATH`; also its label in metrics."""
    function: ClassVar[str]
    """The contract's function that takes a batch of them."""
    max_per_transaction: ClassVar[int]
    repeated: ClassVar[str]
    """The contract's error for a second message about the same thing."""
    drop_order: ClassVar[int] = 0
    """When the queue is full, waiting messages of the lowest number are dropped first."""
    proves_identity: ClassVar[bool] = False
    """Whether its own key signs it, so that the peer need not be known. Such messages are rate-limited."""

    peer: str
    signature: bytes

    @classmethod
    @abstractmethod
    def validate(cls, body: object) -> Self:
        """Return the message that a JSON object holds.

        Raises:
            pydantic.ValidationError: it is not such a message.
        """

    @abstractmethod
    def struct_hash(self) -> bytes:
        """Return the EIP-712 hash of the fields that are signed; 32 bytes, equal to the contract's."""

    @abstractmethod
    def refusal(self, config: SwarmConfig, clock: RoundClock) -> str:
        """Return why the message is refused, its signature aside: the contract's error, or nothing."""

    @abstractmethod
    def is_signed(self, domain: Domain, signers: Set[str]) -> bool:
        """Return whether the signature is valid. `signers`: the peer's accounts, in lower case."""

    @abstractmethod
    def decide(self, newest: PeerState, settled: PeerState, state: ChainState) -> Decision:
        """Return what to do with the message.

        Args:
            newest: what the contract knows of the peer in the newest block.
            settled: the same in the last final block. Only this state makes a message DONE, since a reorganisation may
                undo the newest one.
        """

    @abstractmethod
    def encode(self) -> tuple[object, ...]:
        """Return its entry in the arguments of `function`."""

    @abstractmethod
    def gas(self) -> int:
        """Return an upper bound of the gas of its entry: the most expensive case that was measured."""

    @abstractmethod
    def size(self) -> int:
        """Return an upper bound of the bytes of its entry."""

    async def outcome(self, coordinator: Coordinator, newest: PeerState, config: SwarmConfig, head: int) -> Decision:
        """Return DONE where the contract recorded this very message, and a rejection where it recorded another one.

        WAIT where the node does not show what the contract recorded. Called after a decision to COMPARE.

        Args:
            head: the number of the block that the decision was made in.
        """
        return reject(self.repeated)

    def replaces(self, other: SignedMessage) -> bool:
        """Return whether the message takes the place of another one about the same thing that still waits."""
        return False

    @property
    def about_round(self) -> int:
        """The round that the message is about; -1 where it is about none."""
        return -1

    def last_round(self, config: SwarmConfig) -> int | None:
        """Return the last round of the chain in which the contract takes the message; None where any will do."""
        return None

    def finished_round(self, config: SwarmConfig) -> int:
        """Return the round that the message says its peer has finished, with all that has to come in it; -1 if none."""
        return self.about_round

    @lru_cache(maxsize=24_576)  # noqa: B019  messages are small and the cache is bounded
    def digest(self, domain: Domain) -> bytes:
        """Return what is signed; 32 bytes."""
        return domain.digest(self.struct_hash())

    def id(self, domain: Domain) -> str:
        """Return the message's identifier, 32 hexadecimal digits; two different messages have two."""
        kind = type(self).__name__.encode()
        parts = (kind, self.peer.encode(), self.digest(domain), self.signature)
        return hashlib.sha256(b"|".join(parts)).hexdigest()[:32]


class RoundMessage(SignedMessage):
    """A message of a proven peer about one round, signed with the key that the peer's registration names."""

    round: int

    @property
    def about_round(self) -> int:
        return self.round

    def refusal(self, config: SwarmConfig, clock: RoundClock) -> str:
        last = self.last_round(config)
        if last is not None and last + REPORT_WINDOW + MAX_ROUNDS_AHEAD < clock.round:
            # Not as soon as it is late: the contract may have it, and a reorganisation may take rounds back.
            return "InvalidRoundNumber"
        return TOO_EARLY if self.round > clock.round + MAX_ROUNDS_AHEAD else ""

    def is_signed(self, domain: Domain, signers: Set[str]) -> bool:
        signer = recover(self.digest(domain), self.signature)
        return signer is not None and signer.lower() in signers

    def decide(self, newest: PeerState, settled: PeerState, state: ChainState) -> Decision:
        if not newest.proven:
            return WAIT if state.registration_pending or settled.proven else reject("UnknownPeer")
        if self.round < newest.first_round:
            return reject("InvalidRoundNumber") if settled.proven and self.round < settled.first_round else WAIT
        last = self.last_round(state.config)
        if last is not None and settled.round > last and not self.is_recorded(newest):
            return reject("InvalidRoundNumber")
        decision = self.decide_by_round(newest, settled, state)
        unsettled = decision == SEND or (decision == WAIT and not state.registration_pending)
        if unsettled and not self.is_signed(state.domain, {newest.signer.lower()}):
            return WAIT if state.registration_pending else reject("InvalidSignature")
        return decision

    def is_recorded(self, newest: PeerState) -> bool:
        """Return whether the contract has something of the peer for this round."""
        return newest.has_reported(self.round)

    @abstractmethod
    def decide_by_round(self, newest: PeerState, settled: PeerState, state: ChainState) -> Decision:
        """Return what to do with a message of a proven peer, leaving its signature aside."""


def hexadecimal(*sizes: int) -> Callable[[str], str]:
    """Return a check for text of 0x and as many bytes as one of `sizes`."""

    # Not bytes.fromhex, which skips blanks.
    form = re.compile("|".join(f"0x[0-9a-fA-F]{{{2 * size}}}" for size in sizes))

    def check(text: str) -> str:
        if form.fullmatch(text) is None:
            raise ValueError(f"expected 0x and {' or '.join(str(2 * size) for size in sizes)} hexadecimal digits")
        return text

    return check


def to_bytes(text: str) -> bytes:
    """Return the bytes of 0x and hexadecimal digits."""
    return bytes.fromhex(text[2:])


Address = Annotated[str, Field(max_length=42), AfterValidator(hexadecimal(20))]
Signature = Annotated[str, Field(max_length=132), AfterValidator(hexadecimal(65))]
Word = Annotated[str, Field(max_length=66), AfterValidator(hexadecimal(32))]
PeerName = Annotated[str, Field(min_length=1, max_length=MAX_PEER_ID, pattern=r"^[1-9A-HJ-NP-Za-km-z]+$")]
Round = Annotated[int, Field(ge=0, lt=2**32 - 1)]


class MessageBody(BaseModel):
    """The JSON body of a message: binary fields are 0x and hexadecimal digits."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
