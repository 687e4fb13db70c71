"""`spec.coordination`: the chain that registers peers and keeps their reports. Training never waits for it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from swarmgame_api.base import Model, Rule, Transition
from swarmgame_api.quantities import Address, ObjectName

_REFERENCES = ("chain_id", "contract_address", "rpc_secret_ref", "wallet_secret_ref")


class SecretReference(Model):
    """A Secret of the game's namespace."""

    name: ObjectName
    """Its name."""


class CoordinationSpec(Model):
    """Which chain, if any. Immutable once set."""

    mode: Literal["None", "Dev", "External"] = "None"
    """None: the swarm coordinates itself. Dev: brings a chain of its own, for development. External: yours."""
    chain_id: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None
    """External: the chain's id; a chain with another id is not used."""
    contract_address: Address | None = None
    """External: the coordinator contract."""
    rpc_secret_ref: SecretReference | None = None
    """External: the Secret with the RPC endpoint, under the key `url`."""
    wallet_secret_ref: SecretReference | None = None
    """External: the Secret with the funded key; mounted only in the gateway."""
    confirmations: Annotated[int, Field(ge=1, le=256)] = 2
    """Blocks after which a transaction counts as final."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.mode != 'External' || (has(self.chainId) && has(self.contractAddress)"
            " && has(self.rpcSecretRef) && has(self.walletSecretRef))",
            expected="chainId, contractAddress, rpcSecretRef and walletSecretRef with mode External",
            check=lambda chain: (
                chain.mode != "External" or all(getattr(chain, name) is not None for name in _REFERENCES)
            ),
        ),
        Rule(
            cel="self.mode == 'External' || !(has(self.chainId) || has(self.contractAddress)"
            " || has(self.rpcSecretRef) || has(self.walletSecretRef))",
            expected="mode External where chainId, contractAddress, rpcSecretRef or walletSecretRef are given",
            check=lambda chain: chain.mode == "External" or all(getattr(chain, name) is None for name in _REFERENCES),
            field="mode",
        ),
    )
    transitions: ClassVar[tuple[Transition, ...]] = (
        Transition(
            cel="oldSelf.mode == 'None' || self == oldSelf",
            expected="no change once a chain is set: what was reported there stays there",
            check=lambda old, new: old.mode == "None" or new == old,
        ),
    )
