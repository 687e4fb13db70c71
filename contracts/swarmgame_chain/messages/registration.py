"""Registrations: a peer's proof of its id, signed by the libp2p key itself.

A later deadline replaces an earlier registration, which is how a peer changes its owner or its signer.
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Self

from eth_abi.abi import encode
from eth_utils.crypto import keccak
from pydantic import AfterValidator, Field

from swarmgame_chain.errors import BadMessage
from swarmgame_chain.messages.base import (
    DONE,
    SEND,
    WAIT,
    Address,
    ChainState,
    Decision,
    MessageBody,
    SignedMessage,
    hexadecimal,
    reject,
    to_bytes,
)
from swarmgame_chain.messages.signing import (
    Domain,
    account_of,
    address_of,
    is_rsa_signature,
    peer_id,
    public_key,
    recover,
    sign,
)

if TYPE_CHECKING:
    from swarmgame_chain.reader import PeerState, RoundClock, SwarmConfig

MAX_DEADLINE = 30 * 24 * 3600
"""Seconds that a deadline may be away; the contract takes no later one."""
_TYPE = keccak(text="RegisterPeer(address owner,address signer,uint256 deadline)")


def _provable(text: str) -> str:
    try:
        peer_id(to_bytes(text))
    except BadMessage as error:
        raise ValueError(str(error)) from None
    return text


class RegistrationBody(MessageBody):
    owner: Address
    signer: Address
    deadline: Annotated[int, Field(ge=0, lt=2**64)]
    key: Annotated[str, Field(max_length=514), AfterValidator(hexadecimal(64, 256)), AfterValidator(_provable)]
    signature: Annotated[str, Field(max_length=514), AfterValidator(hexadecimal(65, 256))]


@dataclass(frozen=True)
class Registration(SignedMessage):
    """A peer's proof of its id.

    Args:
        deadline: unix seconds until which it may be carried, 30 days away at most.
        key: 64 bytes of secp256k1 (x, y), or 256 bytes of an RSA modulus.
    """

    path = "registrations"
    function = "registerPeers"
    max_per_transaction = 120
    repeated = "RegistrationSuperseded"
    drop_order = 2
    proves_identity = True

    owner: str
    signer: str
    deadline: int
    key: bytes
    signature: bytes

    @cached_property
    def peer(self) -> str:  # type: ignore[override]
        """The peer id of the key.

        Raises:
            BadMessage: it is not a key that can be proven.
        """
        return peer_id(self.key)

    @classmethod
    def validate(cls, body: object) -> Self:
        fields = RegistrationBody.model_validate(body)
        return cls(fields.owner, fields.signer, fields.deadline, to_bytes(fields.key), to_bytes(fields.signature))

    def struct_hash(self) -> bytes:
        return keccak(
            encode(["bytes32", "address", "address", "uint256"], [_TYPE, self.owner, self.signer, self.deadline])
        )

    def refusal(self, config: SwarmConfig, clock: RoundClock) -> str:
        if int(self.owner, 16) == 0 or int(self.signer, 16) == 0:
            return "InvalidOwner"
        if self.deadline < clock.now:
            return "RegistrationExpired"
        # The last block of a chain that makes blocks on demand may be old.
        return "RegistrationTooLong" if self.deadline > max(clock.now, time.time()) + MAX_DEADLINE else ""

    def is_signed(self, domain: Domain, signers: Set[str]) -> bool:
        return proves(self, domain)

    def decide(self, newest: PeerState, settled: PeerState, state: ChainState) -> Decision:
        if self._is_recorded(newest):
            return DONE if self._is_recorded(settled) else WAIT
        if newest.proven and newest.deadline >= self.deadline:
            final = settled.proven and settled.deadline >= self.deadline
            return reject("RegistrationSuperseded") if final else WAIT
        return SEND if self.deadline >= state.now else reject("RegistrationExpired")

    def encode(self) -> tuple[object, ...]:
        return (self.owner, self.signer, self.deadline, self.key, self.signature)

    def gas(self) -> int:
        return 122_000 if len(self.key) == 64 else 230_000

    def size(self) -> int:
        return 416 if len(self.key) == 64 else 736

    def replaces(self, other: SignedMessage) -> bool:
        return isinstance(other, Registration) and self.deadline > other.deadline

    def _is_recorded(self, state: PeerState) -> bool:
        # With the same accounts, another deadline changes nothing.
        accounts = (int(state.owner, 16), int(state.signer, 16)) == (int(self.owner, 16), int(self.signer, 16))
        return state.proven and accounts


def sign_registration(
    domain: Domain, identity: bytes, *, deadline: int, owner: str = "", signer: str = ""
) -> Registration:
    """Return a registration signed by the peer's libp2p key.

    Args:
        identity: the key's 32 secret bytes.
        owner: the account that the peer belongs to; the key's own by default.
        signer: the account that signs the peer's reports; the key's own by default.
    """
    own = address_of(identity)
    unsigned = Registration(owner or own, signer or own, deadline, public_key(identity), b"")
    return replace(unsigned, signature=sign(identity, unsigned.digest(domain)))


def proves(registration: Registration, domain: Domain) -> bool:
    """Return whether the registration's key signed it."""
    digest = registration.digest(domain)
    if len(registration.key) == 256:
        return is_rsa_signature(registration.key, digest, registration.signature)
    return recover(digest, registration.signature) == account_of(registration.key)
