"""Swarms with a chain: the chain records what the peers played, also with sealed reports on an External chain, several
ranks per peer, and a gateway that is killed. Needs Node's toolchain (`make toolchain`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from running import EXAMPLES, descendants, kill, metrics, process_to_end, running, wait_until

from swarmgame.launch.local_peers import free_ports
from swarmgame.swarm.identity import Identity, dial_address
from swarmgame_chain.anvil import ETHER, Anvil
from swarmgame_chain.dev import DevChain
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, EventCursor, PeerState
from swarmgame_chain.rpc import NodeClient

pytestmark = pytest.mark.timeout(420)
GAME = EXAMPLES / "03-digits" / "game.yaml"
ROUNDS = 5


async def recorded(rpc: str, domain: Domain, peers: list[str]) -> tuple[int, list[PeerState], list[tuple[str, int]]]:
    """Return the chain's round, its states of the peers, and the sorted (peer, round) of all reports."""
    async with NodeClient(rpc) as chain:
        coordinator = Coordinator(chain, domain)
        events, _ = await EventCursor(coordinator, 0, ("RewardSubmitted",)).poll()
        reports = sorted((event.values["peerId"], event.values["roundNumber"]) for event in events)
        return await coordinator.round(), await coordinator.peers(peers), reports


@contextmanager
def process(*arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SWARMGAME_")}
    with log.open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "swarmgame", *arguments],
            env=plain | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        for pid in (*descendants(started.pid), started.pid):
            kill(pid)
        started.wait()


def test_four_peers_are_proven_and_each_reports_each_round(tmp_path: Path) -> None:
    """With admission Registered, a peer trains on others' groups only once the chain has proven them.

    The quorum is 100 %: at a lower one, a slow peer joins the round of the others and reports none of those before.
    """
    chosen = ("--coordination=dev", "--set=communication.admission=Registered", "--set=game.progression.quorum=100%")
    done = process_to_end("run", GAME, f"--rounds={ROUNDS}", *chosen, "--runs", tmp_path)
    run = tmp_path / "digits"
    assert f"chain: round {ROUNDS}, 4 peers proven, {4 * ROUNDS} reports final" in done.stderr
    assert any(row["external"] for index in range(4) for row in metrics(run, index))

    peers = [Identity.load(run / "peers" / str(index) / "peer.key").peer for index in range(4)]
    with DevChain(run / "chain") as dev:  # the same chain, found again
        round, states, reports = asyncio.run(recorded(dev.rpc, dev.domain, peers))
    assert round == ROUNDS == len(metrics(run, 0))
    assert [state.proven for state in states] == [True] * 4
    assert reports == sorted((peer, number) for peer in peers for number in range(ROUNDS))
    for index, state in enumerate(states):
        assert state.total_reward == pytest.approx(sum(1e6 * row["reward"] for row in metrics(run, index)), abs=ROUNDS)
    assert sum(state.total_wins for state in states) > 0

    summary = json.loads((run / "summary.json").read_text())["chain"]
    assert (summary["round"], summary["proven"], summary["reports"]) == (ROUNDS, 4, 4 * ROUNDS)
    assert "<h2>Chain</h2>" in (run / "report.html").read_text()
    assert not (run / "chain" / "gateway.key").stat().st_mode & 0o077


def test_a_swarm_without_a_chain_shows_none(tmp_path: Path) -> None:
    done = process_to_end("run", GAME, "--rounds=1", "--peers=2", "--coordination=none", "--runs", tmp_path)
    run = tmp_path / "digits"
    assert "chain:" not in done.stderr
    assert "chain" not in json.loads((run / "summary.json").read_text())
    assert not (run / "chain").exists()


def test_peers_of_an_external_sealed_contract_commit_and_open_every_report(tmp_path: Path) -> None:
    """Deployed by `swarmgame chain deploy --sealed`, carried by `swarmgame gateway`, played by `swarmgame peer`, each
    given the addresses of the others. The peers reach the node through the gateway's proxy only."""
    rounds, wallet = 4, Wallet(sha256(b"an owner of an external chain").digest())
    key = tmp_path / "wallet.key"
    key.write_text(wallet.secret.hex())
    with Anvil() as anvil:

        async def fund() -> None:
            async with NodeClient(anvil.url) as chain:
                await chain.request("anvil_setBalance", wallet.address, hex(100 * ETHER))

        asyncio.run(fund())
        options = ("--rpc", anvil.url, "--key-file", key, "--sealed", "--min-round-seconds=0", "--json")
        made = json.loads(process_to_end("chain", "deploy", *options).stdout)
        domain = Domain(made["chainId"], made["contract"])
        carrying, *ports = free_ports(3)
        gateway = f"http://127.0.0.1:{carrying}"
        arguments = (
            "gateway",
            "--rpc",
            anvil.url,
            "--contract",
            domain.contract,
            "--chain-id",
            str(domain.chain_id),
            "--key-file",
            str(key),
        )
        tuned = ("--port", str(carrying), "--confirmations=1", "--quorum=1", "--interval=0.1")
        keys = [tmp_path / f"{index}.key" for index in range(2)]
        peers = [Identity.load_or_create(each).peer for each in keys]
        environment = {
            "SWARMGAME_CHAIN_RPC": f"{gateway}/rpc",
            "SWARMGAME_CHAIN_GATEWAY": gateway,
            "OMP_NUM_THREADS": "1",
        }
        addresses = [dial_address(peer, port) for peer, port in zip(peers, ports, strict=True)]
        together = (
            *(f"--initial-peer={address}" for address in addresses),
            "--min-replicas=2",
            "--pre-running-deadline-seconds=60",
        )
        external = (
            "--set=coordination.mode=External",
            f"--set=coordination.chainId={domain.chain_id}",
            f"--set=coordination.contractAddress='{domain.contract}'",
            "--set=coordination.rpcSecretRef.name=rpc",
            "--set=coordination.walletSecretRef.name=wallet",
            "--set=communication.admission=Registered",
            f"--set=game.maxRounds={rounds}",
        )
        with process(*arguments, *tuned, log=tmp_path / "gateway.log"):
            wait_until(lambda: "listens on" in (tmp_path / "gateway.log").read_text(), "the gateway listens")

            def play(index: int) -> tuple[str, ...]:
                where = (f"--directory={tmp_path / str(index)}", f"--identity={keys[index]}", f"--port={ports[index]}")
                return ("peer", str(GAME), *where, *together, *external)

            with (
                process(*play(0), log=tmp_path / "0.log", **environment) as one,
                process(*play(1), log=tmp_path / "1.log", **environment) as two,
            ):
                assert [each.wait(300) for each in (one, two)] == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
            round, states, reports = asyncio.run(recorded(anvil.url, domain, peers))
    assert round == rounds
    assert reports == sorted((peer, number) for peer in peers for number in range(rounds))
    assert [(state.proven, state.last_reported) for state in states] == [(True, rounds - 1)] * 2
    assert wallet.secret.hex() not in "".join(file.read_text() for file in tmp_path.glob("*.log"))


def test_of_several_ranks_the_first_alone_registers_and_reports(tmp_path: Path) -> None:
    rounds = 3
    done = process_to_end(
        "run",
        GAME,
        f"--rounds={rounds}",
        "--peers=2",
        "--processes-per-peer=2",
        "--coordination=dev",
        "--no-report",
        "--runs",
        tmp_path,
    )
    assert f"chain: round {rounds}, 2 peers proven, {2 * rounds} reports final" in done.stderr
    run = tmp_path / "digits"
    peers = [Identity.load(run / "peers" / str(index) / "peer.key").peer for index in range(2)]
    with DevChain(run / "chain") as dev:
        round, _, reports = asyncio.run(recorded(dev.rpc, dev.domain, peers))
    assert round == rounds
    assert reports == sorted((peer, number) for peer in peers for number in range(rounds))


def gateway_of(runner: int) -> int:
    """The process id of a run's Dev gateway; 0 where there is none."""
    for pid in descendants(runner):
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            continue
        if "swarmgame_chain.cli" in command and "gateway" in command:
            return pid
    return 0


def test_a_dev_gateway_that_is_killed_is_started_again_and_no_report_is_lost(tmp_path: Path) -> None:
    run = tmp_path / "digits"
    slow = ("--set=game.data.with.questionsPerRound=64", "--set=game.trainer.with.generations=16")
    with running(
        "run", GAME, "--rounds=40", "--peers=2", "--coordination=dev", "--no-report", *slow, "--runs", tmp_path
    ) as runner:
        wait_until(lambda: len(metrics(run, 0)) >= 2, "they play", runner)
        first = gateway_of(runner.pid)
        assert first
        kill(first, signal.SIGKILL)
        assert len(metrics(run, 0)) < 40, "there are reports to lose"
        wait_until(lambda: gateway_of(runner.pid) not in (0, first), "there is another gateway", runner)
        code, output = runner.wait(300), runner.shown()
    assert code == 0, output
    assert "chain: round 40, 2 peers proven, 80 reports final" in output
