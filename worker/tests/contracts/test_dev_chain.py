"""A swarm on a chain of its own: what the peers played is what the chain says. Needs Node's toolchain (`make
toolchain`).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from running import EXAMPLES, metrics, run_to_end

from swarmgame.swarm.identity import Identity
from swarmgame_chain.dev import DevChain
from swarmgame_chain.reader import Coordinator, EventCursor, PeerState
from swarmgame_chain.rpc import HttpRpcClient

pytestmark = pytest.mark.timeout(290)
GAME = EXAMPLES / "03-digits" / "game.yaml"
ROUNDS = 5


async def asked(dev: DevChain, peers: list[str]) -> tuple[int, list[PeerState], set[tuple[str, int]]]:
    """The chain's round, what it knows of the peers, and who reported which round."""
    async with HttpRpcClient(dev.rpc) as chain:
        coordinator = Coordinator(chain, dev.domain)
        events, _ = await EventCursor(coordinator, 0, ("RewardSubmitted",)).poll()
        reports = {(event.values["peerId"], event.values["roundNumber"]) for event in events}
        return await coordinator.round(), await coordinator.peers(peers), reports


def test_four_peers_are_proven_and_each_reports_each_round(tmp_path: Path) -> None:
    """And others are admitted only because the chain knows them: had nobody been proven, nobody would have learnt from
    anybody.

    All wait for all: at a lower quorum a slow starter takes up the game where the others are, and has nothing to report
    of the rounds before.
    """
    chosen = ("--coordination=dev", "--set=communication.admission=Registered", "--set=game.progression.quorum=100%")
    done = run_to_end("run", GAME, f"--rounds={ROUNDS}", *chosen, "--runs", tmp_path)
    run = tmp_path / "digits"
    assert f"chain: round {ROUNDS}, 4 peers proven, {4 * ROUNDS} reports final" in done.stderr
    assert any(row["external"] for index in range(4) for row in metrics(run, index))

    peers = [Identity.load(run / "peers" / str(index) / "peer.key").peer for index in range(4)]
    with DevChain(run / "chain") as dev:  # the same chain, found again
        round, states, reports = asyncio.run(asked(dev, peers))
    assert round == ROUNDS == len(metrics(run, 0))
    assert [state.proven for state in states] == [True] * 4
    assert reports == {(peer, number) for peer in peers for number in range(ROUNDS)}
    for index, state in enumerate(states):
        assert state.total_reward == pytest.approx(sum(1e6 * row["reward"] for row in metrics(run, index)), abs=ROUNDS)
    assert sum(state.total_wins for state in states) > 0

    said = json.loads((run / "summary.json").read_text())["chain"]
    assert (said["round"], said["proven"], said["reports"]) == (ROUNDS, 4, 4 * ROUNDS)
    assert "<h2>Chain</h2>" in (run / "report.html").read_text()
    assert not (run / "chain" / "gateway.key").stat().st_mode & 0o077


def test_a_swarm_without_a_chain_knows_nothing_of_one(tmp_path: Path) -> None:
    done = run_to_end("run", GAME, "--rounds=1", "--peers=2", "--coordination=none", "--runs", tmp_path)
    run = tmp_path / "digits"
    assert "chain:" not in done.stderr
    assert "chain" not in json.loads((run / "summary.json").read_text())
    assert not (run / "chain").exists()
