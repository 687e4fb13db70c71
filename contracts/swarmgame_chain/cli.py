"""The commands `swarmgame chain deploy|status|peers|rewards|advance` and `swarmgame gateway`.

A key comes from a file, a keystore, or the file that an environment variable names; it is never an argument. What the
commands print is read from the chain. An error is one sentence and an exit code. Importing this module loads nothing
of Ethereum, so `--help` is fast.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from swarmgame_chain.errors import BadChainUsage, ChainError

if TYPE_CHECKING:
    from swarmgame_chain.messages import Domain
    from swarmgame_chain.reader import Coordinator
    from swarmgame_chain.rpc import NodeClient

_UINT32, _INT64 = 2**32 - 1, 2**63 - 1
"""The largest numbers of the contract's configuration."""
RPC_VARIABLE = "SWARMGAME_CHAIN_RPC_FILE"
app = typer.Typer(name="chain", help="A coordinator contract on your own chain.", no_args_is_help=True)

Rpc = Annotated[
    str,
    typer.Option(
        "--rpc",
        help="The node's address. One with credentials belongs in the file that SWARMGAME_CHAIN_RPC_FILE names.",
    ),
]
Contract = Annotated[str, typer.Option("--contract", help="The coordinator's address.")]
ChainId = Annotated[
    int, typer.Option("--chain-id", min=1, max=2**64 - 1, help="The chain's id; another chain is refused.")
]
KeyFile = Annotated[Path | None, typer.Option("--key-file", help="File with the key's 64 hexadecimal digits.")]
Keystore = Annotated[Path | None, typer.Option("--keystore", help="Encrypted key, as wallets export it.")]
Passphrase = Annotated[Path | None, typer.Option("--passphrase-file", help="File with the keystore's passphrase.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]


@app.command()
def deploy(
    rpc: Rpc = "",
    key_file: KeyFile = None,
    keystore: Keystore = None,
    passphrase_file: Passphrase = None,
    owner: Annotated[str, typer.Option(help="The account that gets all roles; the key's own by default.")] = "",
    round_seconds: Annotated[
        int, typer.Option(min=1, max=_UINT32, help="After this time anyone may end a round.")
    ] = 600,
    min_round_seconds: Annotated[int, typer.Option(min=0, max=_UINT32, help="A round lasts at least this long.")] = 5,
    max_reward: Annotated[
        int, typer.Option(min=1, max=_INT64, help="Bound of one round's reward, in millionths.")
    ] = 1_000_000_000,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Reports are committed first, and opened in one of the next 8 rounds.")
    ] = False,
    proven_only: Annotated[bool, typer.Option("--proven-only", help="Ids cannot be claimed without proof.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deploy a coordinator contract and print its address."""
    from swarmgame_chain.deploy import deploy as make
    from swarmgame_chain.keys import load_wallet
    from swarmgame_chain.reader import SwarmConfig

    async def work(chain: NodeClient) -> None:
        wallet = load_wallet(key_file, keystore, passphrase_file)
        config = SwarmConfig(round_seconds, min_round_seconds, max_reward, sealed, proven_only)
        domain, receipt = await make(chain, wallet, config, owner)
        _show(
            {
                "chainId": domain.chain_id,
                "contract": domain.contract,
                "transaction": receipt.transaction,
                "gas": receipt.gas,
            },
            as_json,
        )

    _with_chain(rpc, work)


@app.command()
def status(contract: Contract, chain_id: ChainId, rpc: Rpc = "", as_json: AsJson = False) -> None:
    """Show the round, its deadline, the bootnodes and the contract's configuration."""

    async def work(coordinator: Coordinator) -> None:
        config, clock = await coordinator.config(), await coordinator.clock()
        bootnodes = await coordinator.bootnodes()
        _show(
            {
                "chainId": coordinator.domain.chain_id,
                "contract": coordinator.domain.contract,
                "round": clock.round,
                "endsIn": clock.deadline - clock.now,
                "roundDuration": config.round_duration,
                "maxReward": config.max_reward,
                "sealedReports": config.sealed_reports,
                "provenOnly": config.proven_only,
                "bootnodes": list(bootnodes),
            },
            as_json,
        )

    _with_coordinator(rpc, contract, chain_id, work)


@app.command()
def peers(
    contract: Contract,
    chain_id: ChainId,
    rpc: Rpc = "",
    since: Annotated[int, typer.Option(min=0, help="The first block to read.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List the peers that registered, with owner, proof and wins."""

    async def work(coordinator: Coordinator) -> None:
        names = await _registered(coordinator, since)
        rows = [
            {
                "peer": name,
                "proven": state.proven,
                "owner": state.owner,
                "lastRound": state.last_reported,
                "wins": state.total_wins,
            }
            for name, state in zip(names, await coordinator.peers(names), strict=True)
        ]
        _show_rows(rows, as_json)

    _with_coordinator(rpc, contract, chain_id, work)


@app.command()
def rewards(
    contract: Contract,
    chain_id: ChainId,
    rpc: Rpc = "",
    since: Annotated[int, typer.Option(min=0, help="The first block to read.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List the sum of each peer's reported rewards, highest first."""

    async def work(coordinator: Coordinator) -> None:
        names = await _registered(coordinator, since)
        states = sorted(zip(names, await coordinator.peers(names), strict=True), key=lambda each: -each[1].total_reward)
        rows = [
            {"peer": name, "reward": state.total_reward / 1_000_000, "wins": state.total_wins} for name, state in states
        ]
        _show_rows(rows, as_json)

    _with_coordinator(rpc, contract, chain_id, work)


@app.command()
def advance(
    contract: Contract,
    chain_id: ChainId,
    rpc: Rpc = "",
    key_file: KeyFile = None,
    keystore: Keystore = None,
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """End the round: anyone after its deadline, a stage manager before."""
    from swarmgame_chain.deploy import manage
    from swarmgame_chain.keys import load_wallet

    async def work(coordinator: Coordinator) -> None:
        wallet = load_wallet(key_file, keystore, passphrase_file)
        receipt = await manage(coordinator.chain, wallet, contract, "updateStageAndRound")
        _show({"round": await coordinator.round(), "transaction": receipt.transaction, "gas": receipt.gas}, as_json)

    _with_coordinator(rpc, contract, chain_id, work)


def gateway(
    contract: Contract,
    chain_id: ChainId,
    rpc: Rpc = "",
    key_file: KeyFile = None,
    keystore: Keystore = None,
    passphrase_file: Passphrase = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8546,
    confirmations: Annotated[int, typer.Option(min=1, max=256, help="Blocks after which a transaction is final.")] = 2,
    quorum: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the live peers whose reports end a round.")
    ] = 0.67,
    ticks: Annotated[bool, typer.Option("--ticks/--no-ticks", help="Whether it ends rounds.")] = True,
    interval: Annotated[
        float, typer.Option(min=0.01, max=60.0, help="Least seconds between reads of the chain.")
    ] = 0.25,
    max_fee: Annotated[
        float, typer.Option("--max-fee-gwei", min=0.001, max=1e6, help="Highest fee per unit of gas.")
    ] = 500,
    max_tip: Annotated[
        float, typer.Option("--max-tip-gwei", min=0.001, max=1e6, help="Highest tip of a transaction's first offer.")
    ] = 30,
    gas_per_hour: Annotated[int, typer.Option(min=0, help="Gas that transactions may use in an hour; 0: any.")] = 0,
    registrations: Annotated[
        int, typer.Option("--registrations-per-minute", min=1, help="Registrations of unknown peers that are taken.")
    ] = 2_000,
) -> None:
    """Carry signed messages to the contract; the only process with a funded key."""
    from swarmgame_chain.gateway import Gateway, GatewayConfig
    from swarmgame_chain.gateway.server import serve
    from swarmgame_chain.keys import load_wallet

    async def work(chain: NodeClient) -> None:
        wallet = load_wallet(key_file, keystore, passphrase_file)
        config = GatewayConfig(
            confirmations=confirmations,
            quorum=quorum,
            ends_rounds=ticks,
            interval=interval,
            max_fee=round(max_fee * 10**9),
            max_tip=round(max_tip * 10**9),
            gas_per_hour=gas_per_hour,
            registrations_per_minute=registrations,
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        gateway = Gateway(chain, _domain(chain_id, contract), wallet, config)
        await serve(gateway, host, port, stop, announce=lambda line: print(line, flush=True))

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    _with_chain(rpc, work)


def _with_coordinator(rpc: str, contract: str, chain_id: int, work: Callable[[Coordinator], Awaitable[None]]) -> None:
    from swarmgame_chain.reader import Coordinator

    async def check_and_work(chain: NodeClient) -> None:
        coordinator = Coordinator(chain, _domain(chain_id, contract))
        await coordinator.check()
        await work(coordinator)

    _with_chain(rpc, check_and_work)


def _with_chain(rpc: str, work: Callable[[NodeClient], Coroutine[Any, Any, None]]) -> None:
    async def open_and_work() -> None:
        from swarmgame_chain.rpc import NodeClient

        async with NodeClient(_endpoint(rpc)) as chain:
            await work(chain)

    try:
        asyncio.run(open_and_work())
    except ModuleNotFoundError as error:
        Console(stderr=True).print(
            f"swarmgame: {error.name} is not installed: pip install 'swarmgame[chain]'", markup=False, soft_wrap=True
        )
        raise typer.Exit(78) from None
    except ChainError as error:
        Console(stderr=True).print(f"swarmgame: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from None


def _domain(chain_id: int, contract: str) -> Domain:
    from swarmgame_chain.messages import Domain
    from swarmgame_chain.rpc import is_address

    if not is_address(contract):
        raise BadChainUsage(f"the contract is {contract!r}; expected an address: 0x and 40 hexadecimal digits")
    return Domain(chain_id, contract)


def _endpoint(rpc: str) -> str:
    from swarmgame_chain.rpc import NODE_ADDRESSES, is_node_address

    named = os.environ.get(RPC_VARIABLE)
    try:
        url = rpc or (Path(named).read_text().strip() if named else "")
    except OSError as error:
        raise BadChainUsage(f"the file that {RPC_VARIABLE} names cannot be read: {error.strerror}") from None
    if not is_node_address(url):
        raise BadChainUsage(
            f"no node: give --rpc with {NODE_ADDRESSES}; or name a file that holds it in {RPC_VARIABLE}"
        )
    return url


async def _registered(coordinator: Coordinator, since: int) -> list[str]:
    from swarmgame_chain.reader import EventCursor

    events = await EventCursor(coordinator, max(since, 0), ("PeerRegistered", "PeerProven")).poll_all()
    return list(dict.fromkeys(event.values["peerId"] for event in events))


def _show(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name:>14}  {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _show_rows(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print("no peer has registered")
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if Console().is_terminal else 160).print(table)


if __name__ == "__main__":
    main = typer.Typer()
    main.add_typer(app)
    main.command("gateway")(gateway)
    main()
