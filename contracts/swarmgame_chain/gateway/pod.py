"""`swarmgame-gateway`: the gateway in a pod, configured by its environment; in mode Dev it also deploys the contract.

It waits for a chain that does not answer, with the HTTP server running, so `/status` tells why. The wrong chain or
contract ends it, with exit code 77 and a line in the termination log. In mode Dev, a chain of play money that starts
anew whenever its pod loses its state, the account is anvil's public one, and the contract is its first transaction, so
the contract's address is known beforehand. A second start finds what the first one deployed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from eth_utils.crypto import keccak
from pydantic import BeforeValidator, Field

from swarmgame_chain.deploy import FeeCaps, deploy, manage
from swarmgame_chain.errors import BadChainUsage, ChainError, ChainRefused, ChainUnreachable, RpcError
from swarmgame_chain.gateway.config import GatewayConfig
from swarmgame_chain.gateway.sender import GWEI
from swarmgame_chain.gateway.server import serve
from swarmgame_chain.gateway.service import Gateway
from swarmgame_chain.keys import Wallet, load_wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, SwarmConfig
from swarmgame_chain.rpc import NODE_ADDRESSES, NodeClient, RpcClient, is_node_address
from swarmgame_common import logs
from swarmgame_common.settings import (
    Digits,
    EnvironmentSettings,
    InvalidSettings,
    Port,
    SpaceSeparated,
    Variable,
    read_settings,
)
from swarmgame_common.termination import write_termination_message

log = logging.getLogger(__name__)
DEV_SECRET = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
"""The first account of anvil's public mnemonic: no secret, and worthless outside a private chain."""
DEV_CONFIG = SwarmConfig(round_duration=3_600, min_round_time=0)
RETRY_SECONDS = 10.0
CHAIN_ID = "a number from 1 to 9223372036854775808"
ADDRESS = "an address: 0x and 40 hexadecimal digits"


GWEI_RANGE = "gwei, above 0 and at most 1000000"
Gwei = Annotated[float, BeforeValidator(float), Field(gt=0, le=10**6, allow_inf_nan=False)]


class GatewayEnvironment(EnvironmentSettings):
    """The variables `SWARMGAME_CHAIN_*` and `SWARMGAME_GATEWAY_*`; see docs/guide/chain.md."""

    chain_mode: Annotated[Literal["Dev", "External"], Variable(expected="Dev or External")] = "External"
    """Dev: the gateway deploys the contract."""
    chain_id: Annotated[int | None, Digits, Field(ge=1, le=2**63), Variable(expected=CHAIN_ID)] = None
    """Required, except in mode Dev: 31337."""
    chain_contract: Annotated[str, Field(pattern="^0x[0-9a-fA-F]{40}$"), Variable(expected=ADDRESS)] = ""
    """Required, except in mode Dev: the contract of the account's first transaction."""
    chain_rpc: Annotated[str, Variable(secret=True)] = Field("", repr=False)
    """The node's address; never shown, since it may hold a password."""
    chain_rpc_file: Path | None = None
    """A file that holds the node's address."""
    chain_key_file: Path | None = None
    chain_keystore_file: Path | None = None
    chain_passphrase_file: Path | None = None
    gateway_confirmations: Annotated[
        int | None, Digits, Field(ge=1, le=256), Variable(expected="a number from 1 to 256")
    ] = None
    """Not set: 2, or 1 in mode Dev."""
    gateway_quorum: Annotated[
        float,
        BeforeValidator(float),
        Field(gt=0, le=1, allow_inf_nan=False),
        Variable(expected="a share above 0 and at most 1"),
    ] = 0.67
    gateway_interval: Annotated[
        float,
        BeforeValidator(float),
        Field(ge=0.01, le=60, allow_inf_nan=False),
        Variable(expected="seconds from 0.01 to 60"),
    ] = 0.25
    """Least seconds between two reads of the chain; an idle gateway reads it about once a block."""
    gateway_max_fee_gwei: Annotated[Gwei, Variable(expected=GWEI_RANGE)] = 500
    """Highest fee per unit of gas."""
    gateway_max_tip_gwei: Annotated[Gwei, Variable(expected=GWEI_RANGE)] = 30
    """Highest tip of a first offer; the node proposes one."""
    gateway_gas_per_hour: Annotated[int, Digits, Field(ge=0, le=10**12), Variable(expected="a number of gas")] = 0
    """Gas that transactions may use in an hour; 0 sets no limit."""
    gateway_registrations_per_minute: Annotated[
        int, Digits, Field(ge=1, le=10**6), Variable(expected="a number from 1 to 1000000")
    ] = 2_000
    """Registrations of unknown peers that are taken in a minute."""
    gateway_host: str = "0.0.0.0"
    gateway_port: Annotated[Port, Variable(expected="a number from 0 to 65535")] = 8645
    gateway_bootnodes: SpaceSeparated = ()
    """The bootnodes to put on chain, separated by spaces; none changes nothing."""

    def wallet(self) -> Wallet:
        """Return the account that pays."""
        if self.chain_mode == "Dev":
            return Wallet(DEV_SECRET)
        return load_wallet(self.chain_key_file, self.chain_keystore_file, self.chain_passphrase_file)

    def domain(self, wallet: Wallet) -> Domain:
        """Return the chain and the contract that messages are for."""
        dev = self.chain_mode == "Dev"
        chain_id = self.chain_id or (31337 if dev else None)
        contract = self.chain_contract or (first_contract(wallet.address) if dev else "")
        if chain_id is None:
            raise BadChainUsage(f"SWARMGAME_CHAIN_ID is not set; expected {CHAIN_ID}")
        if not contract:
            raise BadChainUsage(f"SWARMGAME_CHAIN_CONTRACT is not set; expected {ADDRESS}")
        return Domain(chain_id, contract)

    def rpc(self) -> str:
        """Return the node's address."""
        url, file = self.chain_rpc, self.chain_rpc_file
        try:
            url = url or (file.read_text(encoding="utf-8").strip() if file else "")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise BadChainUsage(f"the file that SWARMGAME_CHAIN_RPC_FILE names cannot be read: {reason}") from None
        if not is_node_address(url):
            raise BadChainUsage(
                f"no node: set SWARMGAME_CHAIN_RPC to {NODE_ADDRESSES}; or SWARMGAME_CHAIN_RPC_FILE to a file with it"
            )
        return url


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What the gateway in a pod works with.

    Args:
        dev: whether the gateway deploys the contract.
        rpc: the node's address; never shown, since it may hold a password.
        bootnodes: the bootnodes to put on chain; empty changes nothing.
    """

    dev: bool
    rpc: str = field(repr=False)
    domain: Domain
    wallet: Wallet
    config: GatewayConfig
    host: str
    port: int
    bootnodes: tuple[str, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> PodSettings:
        """Read the environment and the files that it names.

        Raises:
            BadChainUsage: a variable is missing or invalid; the message names it.
        """
        try:
            given = read_settings(GatewayEnvironment, environment, prefix="SWARMGAME_")
        except InvalidSettings as error:
            raise BadChainUsage(str(error)) from error
        dev, wallet = given.chain_mode == "Dev", given.wallet()
        return cls(
            dev=dev,
            rpc=given.rpc(),
            domain=given.domain(wallet),
            wallet=wallet,
            config=GatewayConfig(
                confirmations=given.gateway_confirmations or (1 if dev else 2),
                quorum=given.gateway_quorum,
                interval=given.gateway_interval,
                max_fee=round(given.gateway_max_fee_gwei * GWEI),
                max_tip=round(given.gateway_max_tip_gwei * GWEI),
                gas_per_hour=given.gateway_gas_per_hour,
                registrations_per_minute=given.gateway_registrations_per_minute,
            ),
            host=given.gateway_host,
            port=given.gateway_port,
            bootnodes=given.gateway_bootnodes,
        )


async def run(settings: PodSettings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Serve until `stop` is set; raises as `serve`.

    Raises:
        ChainRefused: also where the contract cannot be deployed on a Dev chain.
        ChainUnreachable: a Dev chain has started anew; the gateway must be restarted.
    """
    async with NodeClient(settings.rpc) as chain:

        async def prepare(gateway: Gateway) -> None:
            while True:
                try:
                    await make_ready(chain, settings)
                except (ChainUnreachable, RpcError) as error:
                    gateway.problem = str(error)
                    await asyncio.sleep(min(RETRY_SECONDS, 4 * settings.config.interval))
                else:
                    return

        gateway = Gateway(chain, settings.domain, settings.wallet, settings.config)
        try:
            await serve(gateway, settings.host, settings.port, stop, announce, prepare)
        except ChainRefused as error:
            if settings.dev and gateway.clock is not None:
                raise ChainUnreachable(f"the chain has been begun anew: {error}") from error
            raise


async def make_ready(chain: RpcClient, settings: PodSettings) -> None:
    """Deploy the contract on a Dev chain that has none, and put the bootnodes on chain where they differ. Idempotent.

    Raises:
        ChainRefused: it is another chain, or the account's first transaction, which the contract needs, is used up.
        ChainUnreachable, RpcError: the node does not answer; try again.
    """
    domain, coordinator = settings.domain, Coordinator(chain, settings.domain)
    if settings.dev:
        found = int(await chain.request("eth_chainId"), 16)
        if found != domain.chain_id:
            raise ChainRefused(f"the node is of chain {found}; expected chain {domain.chain_id}")
        if len(await chain.request("eth_getCode", domain.contract, "latest")) <= 2:
            await _deploy(chain, settings)
    await coordinator.check()
    if settings.bootnodes and await coordinator.bootnodes() != settings.bootnodes:
        try:
            caps = FeeCaps(settings.config.max_fee, settings.config.max_tip)
            await manage(chain, settings.wallet, domain.contract, "setBootnodes", list(settings.bootnodes), caps=caps)
        except ChainRefused as error:
            # Another account manages the contract; peers have the addresses from the manifest too.
            log.warning("the bootnodes are not put on chain: %s", error)


def first_contract(account: str) -> str:
    """Return the address of the contract that an account's first transaction creates."""
    return "0x" + keccak(b"\xd6\x94" + bytes.fromhex(account[2:]) + b"\x80")[12:].hex()


def main() -> None:
    """Run until SIGTERM; the exit codes are those of every command."""
    logs.configure()
    try:
        settings = PodSettings.from_environment(os.environ)
        asyncio.run(_serve(settings))
    except ChainError as error:
        print(f"swarmgame-gateway: {error}", file=sys.stderr)
        write_termination_message(str(error))
        sys.exit(error.exit_code)
    sys.exit(143)


async def _serve(settings: PodSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(settings, stop, lambda line: print(line, flush=True))


async def _deploy(chain: RpcClient, settings: PodSettings) -> None:
    wallet = settings.wallet
    sent = int(await chain.request("eth_getTransactionCount", wallet.address, "latest"), 16)
    if sent or int(settings.domain.contract, 16) != int(first_contract(wallet.address), 16):
        raise ChainRefused(
            f"there is no contract at {settings.domain.contract}, and it cannot be made there: that is for the first "
            f"transaction of {wallet.address}, which has sent {sent}; give the chain a new state"
        )
    caps = FeeCaps(settings.config.max_fee, settings.config.max_tip)
    made, _ = await deploy(chain, wallet, DEV_CONFIG, caps=caps)
    log.info("deployed the contract %s", made.contract)


if __name__ == "__main__":
    main()
