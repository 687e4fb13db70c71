"""A peer's link to its chain, without a chain: what it asks, what it bears, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarmgame.chain.endpoint import ChainEndpoint, resolve_endpoint
from swarmgame.chain.local import ChainSummary, require_anvil
from swarmgame.chain.reporter import ChainLink, ChainObserver, winners_of
from swarmgame.errors import BadUsage, ExitCode, InvalidManifest, exit_code_of
from swarmgame.launch.local import free_ports
from swarmgame.swarm.identity import Identity
from swarmgame_api.load import load_manifest
from swarmgame_api.manifest import SwarmGame

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
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SWARMGAME_CHAIN_")]:
        monkeypatch.delenv(name)


def game(*overrides: str) -> SwarmGame:
    return load_manifest(GAME, overrides)


def test_a_game_without_a_chain_has_no_place_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMGAME_CHAIN_RPC", "http://127.0.0.1:1")
    assert resolve_endpoint(game()) is None


def test_what_is_not_said_is_named() -> None:
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
    place = resolve_endpoint(game(*EXTERNAL))
    assert place == ChainEndpoint("https://user:secret@node.example.org", "http://gateway:8546", 7, CONTRACT)
    assert "secret" not in repr(place)
    with pytest.raises(BadUsage, match=r"the chain.s id was given as 8; the manifest.s spec\.coordination says 7"):
        resolve_endpoint(game(*EXTERNAL), ChainEndpoint(chain_id=8))


def test_what_a_process_is_told_it_understands() -> None:
    place = ChainEndpoint("http://127.0.0.1:1", "http://127.0.0.1:2", 31337, CONTRACT)
    assert ChainEndpoint.from_environment(place.environment()) == place


def test_the_eight_that_were_learnt_most_from_win() -> None:
    assert winners_of({"b": 2, "a": 2, "c": 5, "d": 0}) == ("c", "a", "b")
    assert winners_of({f"peer-{n:02}": n for n in range(20)}) == tuple(f"peer-{n:02}" for n in range(19, 11, -1))


def test_a_chain_that_is_away_holds_nobody_up_and_admits_nobody_but_us() -> None:
    us, other = Identity.named("us"), Identity.named("other")
    rpc, gateway = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    link = ChainLink(ChainEndpoint(rpc, gateway, 31337, CONTRACT), us.secret, us.peer)
    assert link.start() == ()
    for number in range(3):
        link.report(number, float("nan"), (other.peer,))
    standing = link.snapshot()
    assert (standing.registered, standing.waiting, standing.problem) == (False, 3, "the node does not answer")
    assert link.admits(us.peer)
    assert not link.admits(other.peer)
    assert not link.wait_until_registered(60, lambda: True)
    assert link.finish(60, lambda: True).waiting == 3
    link.stop()


def test_ids_that_are_none_are_not_asked_about() -> None:
    us = Identity.named("us")
    link = ChainLink(ChainEndpoint("http://127.0.0.1:1", "http://127.0.0.1:1", 31337, CONTRACT), us.secret, us.peer)
    assert not any(link.admits(peer) for peer in ("", "\ud800", "x" * 10_000))
    assert not link._asked


def test_the_observer_only_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Link:
        said: tuple[object, ...] = ()

        def report(self, *said: object) -> None:
            self.said = said

    class Report:
        round, reward, external = 4, 0.5, {"a": 1, "b": 3}

    link = Link()
    ChainObserver(link).round_finished(Report(), None, None)  # type: ignore[arg-type]
    assert link.said == (4, 0.5, ("b", "a"))


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
    assert ChainSummary(31337, CONTRACT, 12, proven, 4, reports).sentence == expected
