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

from eth_utils.crypto import keccak

from swarmgame_chain.deploy import deploy, manage
from swarmgame_chain.errors import BadChainUsage, ChainError, ChainRefused, ChainUnreachable, RpcError
from swarmgame_chain.gateway.server import serve
from swarmgame_chain.gateway.service import Gateway, GatewayConfig
from swarmgame_chain.keys import Wallet, load_wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, SwarmConfig
from swarmgame_chain.rpc import HttpRpcClient, RpcClient
from swarmgame_common import logs
from swarmgame_common.termination import write_termination_message

log = logging.getLogger(__name__)
DEV_SECRET = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
"""The first account of anvil's public mnemonic: no secret, and worthless outside a private chain."""
DEV_CONFIG = SwarmConfig(round_duration=3_600, min_round_time=0)
RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PodSettings:
    """The gateway's environment.

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
        """Read `SWARMGAME_CHAIN_*` and `SWARMGAME_GATEWAY_*`; see docs/guide/chain.md.

        Raises:
            BadChainUsage: one is missing or invalid; the message names it.
        """
        mode = environment.get("SWARMGAME_CHAIN_MODE", "External")
        if mode not in ("Dev", "External"):
            raise BadChainUsage(f"SWARMGAME_CHAIN_MODE is {mode!r}; expected Dev or External")
        dev = mode == "Dev"
        wallet = Wallet(DEV_SECRET) if dev else _wallet(environment)
        contract = environment.get("SWARMGAME_CHAIN_CONTRACT") or (first_contract(wallet.address) if dev else "")
        chain_id = _number(environment, "SWARMGAME_CHAIN_ID", 31337 if dev else None, 1, 2**63)
        config = GatewayConfig(
            confirmations=_number(environment, "SWARMGAME_GATEWAY_CONFIRMATIONS", 1 if dev else 2, 1, 256),
            quorum=_share(environment, "SWARMGAME_GATEWAY_QUORUM", 0.67),
        )
        host, port = (
            environment.get("SWARMGAME_GATEWAY_HOST") or "0.0.0.0",
            _number(environment, "SWARMGAME_GATEWAY_PORT", 8645, 0, 65_535),
        )
        bootnodes = tuple(environment.get("SWARMGAME_GATEWAY_BOOTNODES", "").split())
        return cls(dev, _rpc(environment), _domain(chain_id, contract), wallet, config, host, port, bootnodes)


async def run(settings: PodSettings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Serve until `stop` is set; raises as `serve`.

    Raises:
        ChainRefused: also where the contract cannot be deployed on a Dev chain.
        ChainUnreachable: a Dev chain has started anew; the gateway must be restarted.
    """
    async with HttpRpcClient(settings.rpc) as chain:

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
            await manage(chain, settings.wallet, domain.contract, "setBootnodes", list(settings.bootnodes))
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
    made, _ = await deploy(chain, wallet, DEV_CONFIG)
    log.info("deployed the contract %s", made.contract)


def _wallet(environment: Mapping[str, str]) -> Wallet:
    named = {
        name: Path(environment[variable]) if environment.get(variable) else None
        for name, variable in (
            ("key_file", "SWARMGAME_CHAIN_KEY_FILE"),
            ("keystore", "SWARMGAME_CHAIN_KEYSTORE_FILE"),
            ("passphrase_file", "SWARMGAME_CHAIN_PASSPHRASE_FILE"),
        )
    }
    return load_wallet(**named)


def _rpc(environment: Mapping[str, str]) -> str:
    file = environment.get("SWARMGAME_CHAIN_RPC_FILE")
    try:
        url = environment.get("SWARMGAME_CHAIN_RPC") or (Path(file).read_text(encoding="utf-8").strip() if file else "")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadChainUsage(f"the file that SWARMGAME_CHAIN_RPC_FILE names cannot be read: {reason}") from None
    if not url.startswith(("http://", "https://")):
        raise BadChainUsage(
            "no node: set SWARMGAME_CHAIN_RPC to http(s)://…, or SWARMGAME_CHAIN_RPC_FILE to a file that holds it"
        )
    return url


def _domain(chain_id: int, contract: str) -> Domain:
    try:
        if not contract.startswith("0x") or len(bytes.fromhex(contract[2:])) != 20:
            raise ValueError
    except ValueError:
        raise BadChainUsage(
            f"SWARMGAME_CHAIN_CONTRACT is {contract!r}; expected an address: 0x and 40 hexadecimal digits"
        ) from None
    return Domain(chain_id, contract)


def _number(environment: Mapping[str, str], name: str, default: int | None, least: int, most: int) -> int:
    text = environment.get(name) or ("" if default is None else str(default))
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise BadChainUsage(f"{name} is {text!r}; expected a number from {least} to {most}")
    return int(text)


def _share(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise BadChainUsage(f"{name} is {text!r}; expected a share above 0 and at most 1")
    return share


if __name__ == "__main__":
    main()
