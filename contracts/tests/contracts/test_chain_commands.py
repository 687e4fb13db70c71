"""Every command of docs/guide/chain.md runs as written; errors of the commands are one sentence; a Dev chain starts by
itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chain_crowd import CARRIER, ETHER, peer, secret

from swarmgame_chain.anvil import Anvil
from swarmgame_chain.dev import DevChain
from swarmgame_chain.reader import Coordinator
from swarmgame_chain.reporter import ChainReporter
from swarmgame_chain.rpc import NodeClient

pytestmark = pytest.mark.timeout(600)

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "chain.md"


def fund(url: str) -> None:
    async def request() -> None:
        async with NodeClient(url) as chain:
            await chain.request("anvil_setBalance", CARRIER.address, hex(1_000 * ETHER))

    asyncio.run(request())


def test_every_command_of_the_guide_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert sum(block.count("swarmgame ") for block in blocks) >= 6
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    (tmp_path / "gateway.key").write_text(CARRIER.secret.hex())
    shim = tmp_path / "bin" / "swarmgame"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m swarmgame_chain.cli "$@"\n')
    shim.chmod(0o755)
    with Anvil() as anvil:
        fund(anvil.url)
        script = "".join(blocks).replace("http://127.0.0.1:8545", anvil.url).replace("8546", str(port))
        environment = os.environ | {"PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "swarmgame_gateway_ready 1.0" in done.stdout
    assert re.search(r"round\s+1$", done.stdout, re.MULTILINE)
    assert CARRIER.secret.hex() not in done.stdout + done.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARMGAME_")}
    call = [sys.executable, "-m", "swarmgame_chain.cli", *arguments]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_an_error_is_one_sentence_and_an_exit_code(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(CARRIER.secret.hex())
    missing = "0x" + "99" * 20
    with Anvil() as anvil:
        at = ("--rpc", anvil.url, "--contract", missing, "--chain-id")
        cases = [
            (("chain", "status", *at, "1"), 77, "the node is of chain 31337; expected chain 1"),
            (("chain", "status", *at, "31337"), 77, f"there is no contract at {missing}"),
            (("gateway", *at, "31337", "--key-file", str(key), "--port", "0"), 77, "there is no contract at"),
            (("chain", "deploy", "--rpc", anvil.url, "--key-file", str(key)), 77, "cannot pay"),
            (("chain", "deploy", "--rpc", anvil.url), 64, "no key"),
            (("chain", "deploy", "--rpc", anvil.url, "--key-file", str(tmp_path / "none")), 64, "cannot be read"),
            (
                ("chain", "status", "--contract", "0x12", "--chain-id", "1", "--rpc", anvil.url),
                64,
                "expected an address",
            ),
            (("chain", "status", "--contract", missing, "--chain-id", "1"), 64, "no node"),
        ]
        for arguments, code, sentence in cases:
            done = command(*arguments)
            assert (done.returncode, sentence in done.stderr) == (code, True), (arguments, done)
            assert "Traceback" not in done.stderr
    done = command("chain", "status", "--contract", missing, "--chain-id", "1", "--rpc", anvil.url)
    assert (done.returncode, "does not answer" in done.stderr) == (75, True)


def test_a_dev_chain_starts_carries_the_reports_of_four_peers_and_is_found_again(tmp_path: Path) -> None:
    rounds = 3
    boot = ("/ip4/127.0.0.1/tcp/31000/p2p/" + peer(0),)
    contracts = set()
    for life in range(2):
        with DevChain(tmp_path / "chain", bootnodes=boot) as dev:
            contracts.add(dev.domain.contract)
            reporters = [ChainReporter(dev.rpc, dev.domain, secret(n), dev.gateway) for n in range(4)]
            assert [reporter.start() for reporter in reporters] == [boot] * 4
            start = life * rounds
            asyncio.run(reached(dev, start))
            assert all(reporter.wait_until_registered(60) for reporter in reporters)
            candidates = (peer(0), peer(3), peer(4))
            end = time.monotonic() + 240
            while sum(reporters[0].admits(each) for each in candidates) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            assert [reporters[0].admits(each) for each in candidates] == [True, True, False]
            for round in range(start, start + rounds):
                for reporter in reporters:
                    reporter.report(round, 0.25, tuple(peer(n) for n in range(4)))
            ends = [reporter.finish(60) for reporter in reporters]
            assert [(s.final, s.rejected_count, s.waiting) for s in ends] == [(1 + rounds, 0, 0)] * 4
            assert asyncio.run(reached(dev, start + rounds)) == [(life + 1) * rounds * 250_000] * 4
            listed = command(
                "chain", "peers", "--rpc", dev.rpc, "--contract", dev.domain.contract, "--chain-id", "31337", "--json"
            )
            assert [each["proven"] for each in json.loads(listed.stdout)] == [True] * 4
        # As a full disk or a kill leaves it; the next life goes on from the copy.
        state = tmp_path / "chain" / "state.json"
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    assert len(contracts) == 1
    assert (tmp_path / "chain" / "state.broken.json").exists()
    assert (tmp_path / "chain" / "gateway.key").stat().st_mode & 0o077 == 0


async def reached(dev: DevChain, round: int) -> list[int]:
    """Wait for a round of the chain; return the peers' total rewards."""
    async with NodeClient(dev.rpc) as chain, asyncio.timeout(240):
        coordinator = Coordinator(chain, dev.domain)
        while await coordinator.round() != round:
            await asyncio.sleep(0.05)
        return [state.total_reward for state in await coordinator.peers([peer(n) for n in range(4)])]
