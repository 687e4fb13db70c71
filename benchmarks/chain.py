"""Measure what the chain costs: gas per call, and the time of 1,000 registrations and 1,000 reports through the
gateway, on anvil.

Wall-clock figures are of this machine; counts and gas are the contract's. Writes benchmarks/results/chain.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from hashlib import sha256
from pathlib import Path

from swarmgame_chain.abi import artifact
from swarmgame_chain.anvil import ETHER, Anvil
from swarmgame_chain.deploy import deploy, manage
from swarmgame_chain.gateway import Gateway, GatewayConfig
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import SignedMessage, sign_commit, sign_registration, sign_report
from swarmgame_chain.reader import SwarmConfig
from swarmgame_chain.rpc import NodeClient

PEERS = 1_000
RUNS = 5
FAR = int(time.time()) + 20 * 24 * 3600
WALLET = Wallet(sha256(b"benchmark").digest())
KEYS = [sha256(b"benchmark %d" % number).digest() for number in range(PEERS)]
RESULT = Path(__file__).resolve().parent / "results" / "chain.json"


async def carried(gateway: Gateway, messages: list[SignedMessage]) -> dict[str, float]:
    """Return the seconds until all are final, and the number of transactions."""
    before, start = gateway.sender.counts.sent, time.perf_counter()
    for first in range(0, len(messages), 250):
        await gateway.submit(messages[first : first + 250])
    while gateway.queue.on_their_way:
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - start
    ends = {str(state) for _, state, _ in gateway.queue.ended}
    if ends != {"final"}:
        raise SystemExit(f"not all messages are final: {gateway.queue.ended}")
    return {"seconds": seconds, "transactions": gateway.sender.counts.sent - before}


async def run_peers(url: str) -> dict[str, dict[str, float]]:
    """Run once on a new chain."""
    async with NodeClient(url) as chain:
        await chain.request("anvil_setBalance", WALLET.address, hex(1_000 * ETHER))
        domain, _ = await deploy(chain, WALLET, SwarmConfig(min_round_time=0))
        gateway = Gateway(chain, domain, WALLET, GatewayConfig(confirmations=1, interval=0.02, ends_rounds=False))
        task = asyncio.create_task(gateway.run())
        while not gateway.ready:
            await asyncio.sleep(0.01)
        registrations = [sign_registration(domain, key, deadline=FAR) for key in KEYS]
        reports = [
            sign_report(domain, key, peer=each.peer, round=0, reward=1)
            for key, each in zip(KEYS, registrations, strict=True)
        ]
        found = {
            "registrations": await carried(gateway, list(registrations)),
            "reports": await carried(gateway, list(reports)),
        }
        task.cancel()
        return found


async def gas(url: str) -> dict[str, float]:
    """Return the gas of each call, per peer where there are many; the usual case is the second round."""
    async with NodeClient(url) as chain:
        await chain.request("anvil_setBalance", WALLET.address, hex(1_000 * ETHER))
        found: dict[str, float] = {"code bytes": artifact()["size"]}
        for sealed in (False, True):
            domain, receipt = await deploy(chain, WALLET, SwarmConfig(min_round_time=0, sealed_reports=sealed))
            found["deployment"] = receipt.gas
            registrations = [sign_registration(domain, key, deadline=FAR) for key in KEYS[:50]]
            names = [each.peer for each in registrations]

            async def call(name: str, messages: list[SignedMessage], contract: str = domain.contract) -> float:
                return (await manage(chain, WALLET, contract, name, [each.encode() for each in messages])).gas / len(
                    messages
                )

            found["registration, 50 at once"] = await call("registerPeers", list(registrations))
            for round in range(3):
                when = "first" if round == 0 else "later"
                winners = tuple(names[40:48]) if round == 2 and not sealed else ()
                reports = [
                    sign_report(domain, key, peer=name, round=round, reward=1, winners=winners)
                    for key, name in zip(KEYS, names, strict=False)
                ]
                if sealed:
                    commits: list[SignedMessage] = [
                        sign_commit(domain, key, each) for key, each in zip(KEYS, reports, strict=False)
                    ]
                    found[f"commit, 50 at once, {when}"] = await call("commitReports", commits)
                    found["round advance"] = (await manage(chain, WALLET, domain.contract, "updateStageAndRound")).gas
                    found[f"reveal, 50 at once, {when}"] = await call("submitReports", list(reports))
                    continue
                if winners:
                    found["report with 8 winners, 20 at once"] = await call("submitReports", list(reports[:20]))
                else:
                    found[f"report, 50 at once, {when}"] = await call("submitReports", list(reports))
                await manage(chain, WALLET, domain.contract, "updateStageAndRound")
        return found


def main() -> None:
    runs = []
    for _ in range(RUNS):
        with Anvil() as anvil:
            runs.append(asyncio.run(run_peers(anvil.url)))
    with Anvil() as anvil:
        figures = asyncio.run(gas(anvil.url))
    result = {
        "peers": PEERS,
        "runs": RUNS,
        "cores": os.cpu_count(),
        "loadAverage": os.getloadavg()[0],
        "gas": {name: round(value) for name, value in figures.items()},
    } | {
        kind: {
            "transactions": max(run[kind]["transactions"] for run in runs),
            "secondsMedian": round(statistics.median(run[kind]["seconds"] for run in runs), 3),
            "secondsBest": round(min(run[kind]["seconds"] for run in runs), 3),
        }
        for kind in ("registrations", "reports")
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
