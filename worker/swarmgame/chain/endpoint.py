"""Where a game's chain is: its node, its gateway, its contract. Nothing here connects to any of them.

A node's address may hold a password, so it comes from the environment, or from a file that the environment names.
Importing this loads none of the chain's packages but its errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from swarmgame.errors import BadUsage, ExitCode, InvalidManifest, Refused, SwarmGameError, Temporary
from swarmgame_api.manifest import SwarmGame
from swarmgame_chain.errors import ChainError
from swarmgame_chain.rpc import NODE_ADDRESSES, is_address, is_node_address

RPC, RPC_FILE, GATEWAY, CHAIN_ID, CONTRACT = (
    f"SWARMGAME_CHAIN_{name}" for name in ("RPC", "RPC_FILE", "GATEWAY", "ID", "CONTRACT")
)


@dataclass(frozen=True, slots=True)
class ChainEndpoint:
    """The addresses of a swarm's chain; an unknown one is empty.

    Args:
        rpc: the node's address; never shown, since it may hold a password.
        gateway: the gateway's address.
        chain_id: 0 where it is not known.
        contract: the coordinator's address.
    """

    rpc: str = field(default="", repr=False)
    gateway: str = ""
    chain_id: int = 0
    contract: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ChainEndpoint:
        """Read `SWARMGAME_CHAIN_*`.

        Raises:
            BadUsage: a value is invalid, or the file cannot be read.
        """
        rpc, file = environment.get(RPC, ""), environment.get(RPC_FILE, "")
        if not rpc and file:
            try:
                rpc = Path(file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise BadUsage(f"the file that {RPC_FILE} names cannot be read: {error.strerror}") from None
        number = environment.get(CHAIN_ID, "") or "0"
        if not number.isdecimal():
            raise BadUsage(f"{CHAIN_ID} is {number!r}; expected the chain's id, a number")
        return cls(rpc, environment.get(GATEWAY, ""), int(number), environment.get(CONTRACT, ""))

    def environment(self) -> dict[str, str]:
        """Return the environment variables that give a child process the same endpoint."""
        return {RPC: self.rpc, GATEWAY: self.gateway, CHAIN_ID: str(self.chain_id), CONTRACT: self.contract}


def resolve_endpoint(manifest: SwarmGame, given: ChainEndpoint | None = None) -> ChainEndpoint | None:
    """Return where the chain of a game is; None where the game has none.

    Args:
        given: the command line's values; what is missing comes from the environment, and for an External chain from
            the manifest.

    Raises:
        BadUsage: the game has a chain and a value is missing, or differs from the manifest's.
    """
    coordination = manifest.spec.coordination
    if coordination.mode == "None":
        return None
    given, environment = given or ChainEndpoint(), ChainEndpoint.from_environment(os.environ)
    found = ChainEndpoint(
        given.rpc or environment.rpc,
        (given.gateway or environment.gateway).rstrip("/"),
        given.chain_id or environment.chain_id or coordination.chain_id or 0,
        given.contract or environment.contract or coordination.contract_address or "",
    )
    for name, found_value, expected in (
        ("the chain's id", found.chain_id, coordination.chain_id),
        ("the contract", found.contract.lower(), (coordination.contract_address or "").lower()),
    ):
        if expected and found_value != expected:
            raise BadUsage(f"{name} was given as {found_value}; the manifest's spec.coordination has {expected}")
    values = {RPC: found.rpc, GATEWAY: found.gateway, CHAIN_ID: found.chain_id, CONTRACT: found.contract}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise BadUsage(
            f"spec.coordination.mode is {coordination.mode}, but the chain's address is not known: set "
            f"{', '.join(missing)} (`swarmgame run --coordination dev` brings a chain of its own; "
            "--set coordination.mode=None plays without)"
        )
    if not is_node_address(found.rpc):
        raise BadUsage(f"{RPC} is no address of a node; expected {NODE_ADDRESSES}")
    if not found.gateway.startswith(("http://", "https://")):
        raise BadUsage(f"{GATEWAY} is no address; expected http://… or https://…")
    if not is_address(found.contract):
        raise BadUsage(f"{CONTRACT} is {found.contract!r}; expected an address: 0x and 40 hexadecimal digits")
    return found


@contextmanager
def chain_errors(mode: str) -> Iterator[None]:
    """Translate the chain's errors, keeping exit codes, and name a package that is missing in one sentence."""
    try:
        yield
    except ChainError as error:
        raise to_worker_error(error) from error
    except ModuleNotFoundError as error:
        advice = f"None here, or the chain's packages: pip install 'swarmgame[chain]' ({error.name} is missing)"
        raise InvalidManifest("spec.coordination.mode", mode, advice) from error


def to_worker_error(error: ChainError) -> SwarmGameError:
    """Return the error of `swarmgame.errors` for one of the chain."""
    kind = {ExitCode.BAD_USAGE: BadUsage, ExitCode.REFUSED: Refused}.get(ExitCode(error.exit_code), Temporary)
    return kind(str(error))
