"""The worker's side of the chain, without a chain: endpoint, reporter, observer, and the line of a local run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarmgame.chain.endpoint import ChainEndpoint, resolve_endpoint
from swarmgame.chain.local import ChainSummary, require_anvil
from swarmgame.chain.reporter import ChainObserver, make_reporter, start_reporter, winners_of
from swarmgame.errors import BadUsage, ExitCode, InvalidManifest, Refused, exit_code_of
from swarmgame.launch.local_peers import free_ports
from swarmgame.swarm.identity import Identity
from swarmgame_api.load import load_manifest
from swarmgame_api.manifest import SwarmGame
from swarmgame_chain.errors import ChainRefused

GAME = Path(__file__).resolve().parents[4] / "examples" / "03-digits" / "game.yaml"
CONTRACT = "0x" + "12" * 20
EXTERNAL = (
    "coordination.mode=External",
    "coordination.chainId=7",
    f"coordination.contractAddress='{CONTRACT}'",
    "coordination.rpcSecretRef.name=rpc",
    "coordination.walletSecretRef.name=wallet",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SWARMGAME_CHAIN_")]:
        monkeypatch.delenv(name)


@dataclass
class RoundOf:
    """What the observer reads of a round's report."""

    round: int
    reward: float
    external: dict[str, int]


def game(*overrides: str) -> SwarmGame:
    return load_manifest(GAME, overrides)


def test_a_game_without_a_chain_has_no_endpoint_whatever_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMGAME_CHAIN_RPC", "http://127.0.0.1:1")
    assert resolve_endpoint(game()) is None


def test_missing_values_are_named() -> None:
    with pytest.raises(
        BadUsage, match="SWARMGAME_CHAIN_RPC, SWARMGAME_CHAIN_GATEWAY, SWARMGAME_CHAIN_ID, SWARMGAME_CHAIN_CONTRACT"
    ):
        resolve_endpoint(game("coordination.mode=Dev"))


def test_an_external_chain_is_the_manifests_and_its_node_comes_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("https://user:secret@node.example.org\n")
    monkeypatch.setenv("SWARMGAME_CHAIN_RPC_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("SWARMGAME_CHAIN_GATEWAY", "http://gateway:8546/")
    endpoint = resolve_endpoint(game(*EXTERNAL))
    assert endpoint == ChainEndpoint("https://user:secret@node.example.org", "http://gateway:8546", 7, CONTRACT)
    assert "secret" not in repr(endpoint)
    with pytest.raises(BadUsage, match=r"the chain.s id was given as 8; the manifest.s spec\.coordination has 7"):
        resolve_endpoint(game(*EXTERNAL), ChainEndpoint(chain_id=8))


def test_a_child_reads_the_same_endpoint_from_its_environment() -> None:
    endpoint = ChainEndpoint("http://127.0.0.1:1", "http://127.0.0.1:2", 31337, CONTRACT)
    assert ChainEndpoint.from_environment(endpoint.environment()) == endpoint


def test_the_eight_peers_that_were_trained_on_most_win() -> None:
    assert winners_of({"b": 2, "a": 2, "c": 5, "d": 0}) == ("c", "a", "b")
    assert winners_of({f"peer-{n:02}": n for n in range(20)}) == tuple(f"peer-{n:02}" for n in range(19, 11, -1))


def test_a_chain_that_does_not_answer_delays_no_peer(caplog: pytest.LogCaptureFixture) -> None:
    this, other = Identity.named("us"), Identity.named("other")
    rpc, gateway = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    reporter = make_reporter(ChainEndpoint(rpc, gateway, 31337, CONTRACT), this.secret)
    assert reporter.peer == this.peer
    assert start_reporter(reporter) == ()
    ChainObserver(reporter).round_finished(RoundOf(4, 0.5, {other.peer: 1}), None, None)  # type: ignore[arg-type]
    assert reporter.finish(60, lambda: True).waiting == 1
    assert "1 messages did not reach the chain: the node does not answer" in caplog.text


def test_the_wrong_chain_is_refused_and_a_bad_bootnode_left_out(caplog: pytest.LogCaptureFixture) -> None:
    good = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.named('other').peer}"

    class Refusing:
        def start(self) -> tuple[str, ...]:
            raise ChainRefused("the node is of chain 1; expected chain 7")

    class Answering:
        def start(self) -> tuple[str, ...]:
            return (good, "anything")

    with pytest.raises(Refused, match="the node is of chain 1; expected chain 7"):
        start_reporter(Refusing())  # type: ignore[arg-type]
    assert start_reporter(Answering()) == (good,)  # type: ignore[arg-type]
    assert "a bootnode of the chain is left out" in caplog.text


def test_the_observer_reports_each_round() -> None:
    class Reporter:
        reported: tuple[object, ...] = ()

        def report(self, *values: object) -> None:
            self.reported = values

    reporter = Reporter()
    ChainObserver(reporter).round_finished(RoundOf(4, 0.5, {"a": 1, "b": 3}), None, None)  # type: ignore[arg-type]
    assert reporter.reported == (4, 0.5, ("b", "a"))


def test_a_chain_of_its_own_without_anvil_is_the_manifests_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("swarmgame_chain.anvil.__file__", str(tmp_path / "contracts" / "swarmgame_chain" / "anvil.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SWARMGAME_ANVIL", raising=False)
    with pytest.raises(InvalidManifest, match="make toolchain") as caught:
        require_anvil()
    assert exit_code_of(caught.value) is ExitCode.BAD_CONFIG


@pytest.mark.parametrize(
    ("proven", "reports", "expected"),
    [
        (4, 48, "chain: round 12, 4 peers proven, 48 reports final"),
        (3, 1, "chain: round 12, 3 of 4 peers proven, 1 report final"),
    ],
)
def test_the_chain_in_one_line(proven: int, reports: int, expected: str) -> None:
    assert ChainSummary(31337, CONTRACT, 12, proven, 4, reports).line == expected
