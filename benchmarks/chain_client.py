"""Compare clients of a node: web3.py's providers as they are used here, plain aiohttp, and web3.py's contract objects.

Each reads the state of 100 peers from a contract on anvil, in one batch, in turn. Also measures the processor time of a
gateway and of a peer's chain side from their start until they know the contract; `--before FOLDER` measures another
checkout in turn. Figures are of this machine; compare within a row. Writes benchmarks/results/chain_client.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp

from swarmgame_chain.abi import encode_call
from swarmgame_chain.anvil import ETHER, Anvil
from swarmgame_chain.contract import coordinator_contract
from swarmgame_chain.deploy import deploy
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import Domain, peer_id, public_key
from swarmgame_chain.reader import Coordinator, SwarmConfig, peer_state
from swarmgame_chain.rpc import NodeClient

CALLS = 100
TURNS = 40
OBJECT_TURNS = 3
STARTS = 3
WALLET = Wallet(sha256(b"benchmark").digest())
PEERS = [peer_id(public_key(sha256(b"benchmark %d" % number).digest())) for number in range(CALLS)]
RESULT = Path(__file__).resolve().parent / "results" / "chain_client.json"
GATEWAY = """
import asyncio, sys
import swarmgame_chain.gateway.pod
from swarmgame_chain import rpc
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator

async def read():
    make = getattr(rpc, "NodeClient", None) or rpc.HttpRpcClient
    async with make(sys.argv[1]) as chain:
        coordinator = Coordinator(chain, Domain(int(sys.argv[2]), sys.argv[3]))
        await coordinator.check()
        await coordinator.config()
        await coordinator.clock()

asyncio.run(read())
"""
PEER = """
import sys
from swarmgame_chain.messages import Domain
from swarmgame_chain.reporter import ChainReporter

reporter = ChainReporter(sys.argv[1], Domain(int(sys.argv[2]), sys.argv[3]), bytes(31) + bytes([7]), "http://127.0.0.1:9")
reporter.start()
reporter.stop()
"""


async def plain(session: aiohttp.ClientSession, url: str, contract: str) -> None:
    """Read the peers without web3.py."""
    body = [
        {
            "jsonrpc": "2.0",
            "id": n,
            "method": "eth_call",
            "params": [{"to": contract, "data": "0x" + encode_call("peer", peer).hex()}, "latest"],
        }
        for n, peer in enumerate(PEERS)
    ]
    async with session.post(url, json=body) as response:
        answers = json.loads(await response.read())
    by_id = {answer["id"]: answer["result"] for answer in answers}
    assert len([peer_state(bytes.fromhex(by_id[n][2:])) for n in range(CALLS)]) == CALLS


async def objects(contract: Any) -> None:
    """Read the peers through web3.py's batch of contract objects."""
    async with contract.w3.batch_requests() as batch:
        for peer in PEERS:
            batch.add(contract.functions.peer(peer))
        assert len(await batch.async_execute()) == CALLS


async def timed(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the milliseconds of processor time and of wall-clock time."""
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return 1_000 * (time.process_time() - cpu), 1_000 * (time.perf_counter() - wall)


async def compare(url: str) -> tuple[Domain, dict[str, dict[str, float]]]:
    """Return the contract and the median times of each client, taken in turn."""
    async with NodeClient(url) as chain, aiohttp.ClientSession() as session:
        await chain.request("anvil_setBalance", WALLET.address, hex(1_000 * ETHER))
        domain, _ = await deploy(chain, WALLET, SwarmConfig())
        coordinator = Coordinator(chain, domain)
        from web3 import AsyncHTTPProvider, AsyncWeb3

        web3 = AsyncWeb3(AsyncHTTPProvider(url))
        known = coordinator_contract(chain, domain.contract)
        contract = web3.eth.contract(address=known.address, abi=known.abi)
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "aiohttp": lambda: plain(session, url, domain.contract),
            "web3 providers": lambda: coordinator.peers(PEERS),
            "web3 contract objects": lambda: objects(contract),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(TURNS):
            for name, work in ways.items():
                if "objects" not in name or turn < OBJECT_TURNS:
                    times[name].append(await timed(work))
        await web3.provider.disconnect()
    return domain, {
        name: {
            "cpuMillisecondsMedian": round(statistics.median(cpu for cpu, _ in found), 2),
            "millisecondsMedian": round(statistics.median(wall for _, wall in found), 2),
        }
        for name, found in times.items()
    }


def start_up(program: str, url: str, domain: Domain, folder: Path | None) -> float:
    """Return the seconds of processor time of a process, of this checkout or of another one."""
    path = os.pathsep.join(str(folder / part) for part in ("crds", "contracts", "worker")) if folder else None
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", program, url, str(domain.chain_id), domain.contract],
        env=os.environ | ({"PYTHONPATH": path} if path else {}),
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, help="another checkout, whose start-up is measured in turn")
    before = parser.parse_args().before
    checkouts = {"now": None} | ({"before": before} if before else {})
    starts: dict[str, dict[str, list[float]]] = {name: {each: [] for each in checkouts} for name in ("gateway", "peer")}
    with Anvil() as anvil:
        domain, times = asyncio.run(compare(anvil.url))
        for _ in range(STARTS):
            for name, program in (("gateway", GATEWAY), ("peer", PEER)):
                for each, folder in checkouts.items():
                    starts[name][each].append(start_up(program, anvil.url, domain, folder))
    result = {
        "cores": os.cpu_count(),
        "loadAverage": os.getloadavg()[0],
        "calls": CALLS,
        "clients": times,
        "startUpCpuSecondsMedian": {
            name: {each: round(statistics.median(found), 3) for each, found in both.items()}
            for name, both in starts.items()
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
