"""Where a peer is reached, and the command that joins there."""

from __future__ import annotations

import io
import json
import shlex
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from swarmgame.launch.live_table import JsonLines
from swarmgame.launch.local_peers import LocalNetwork
from swarmgame.launch.reachable import host_for_others, is_loopback, reachable

HERE, THERE = "/ip4/127.0.0.1/tcp/31000/p2p/16Uiu2HAm", "/ip4/192.0.2.7/tcp/31000/p2p/16Uiu2HAm"


def test_the_command_names_an_address_that_others_reach_and_every_change_of_the_game() -> None:
    overrides = (
        "spec.game.maxRounds=3",
        "game.data.with.text=two words",
        "spec.model.uri=builtin://tiny?accuracy=0.3",
        "spec.peers.replicas=2",
        "spec.game.progression.quorum=100%",
        "model.export={}",
        "coordination.mode=Dev",
        "storage.checkpoints.keep=2",
    )
    found = reachable(Path("my games/game.yaml"), overrides, [HERE, THERE])
    assert found.addresses == (THERE, HERE)
    assert shlex.split(found.command) == [
        "swarmgame",
        "join",
        "my games/game.yaml",
        "--set=spec.game.maxRounds=3",
        "--set=game.data.with.text=two words",
        "--set=spec.model.uri=builtin://tiny?accuracy=0.3",
        "--initial-peer",
        THERE,
    ]
    assert str(found) == f"one more peer joins from another machine with:\n  {found.command}"


def test_peers_of_this_machine_alone_are_named_so_with_a_hint() -> None:
    found = reachable(Path("game.yaml"), (), [HERE], "--host 0.0.0.0 lets other machines join")
    assert str(found) == (
        "one more peer joins on this machine with (--host 0.0.0.0 lets other machines join):\n"
        f"  swarmgame join game.yaml --initial-peer {HERE}"
    )


def test_a_pipe_gets_it_as_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    output = io.StringIO()
    found = reachable(Path("game.yaml"), (), [THERE])
    JsonLines(output).print_event(found)
    assert json.loads(output.getvalue()) == {"event": "reachable", "addresses": [THERE], "join": found.command}
    assert capsys.readouterr().err == f"{found}\n"


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        (HERE, True),
        ("/ip4/127.8.0.1/tcp/1", True),
        ("/ip6/::1/tcp/1", True),
        (THERE, False),
        ("/ip6/fd00::7/tcp/1", False),
        ("/dns4/localhost/tcp/1", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine_are_recognised(address: str, loopback: bool) -> None:
    assert is_loopback(address) == loopback


def test_a_run_that_listens_everywhere_is_reached_at_the_address_of_the_default_route() -> None:
    address = host_for_others("0.0.0.0")
    assert not IPv4Address(address).is_unspecified
    network = LocalNetwork(("id-0",), (31000,), "0.0.0.0")
    assert network.addresses == ["/ip4/127.0.0.1/tcp/31000/p2p/id-0"]
    assert network.addresses_for_others == [f"/ip4/{address}/tcp/31000/p2p/id-0"]
    assert LocalNetwork(("id-0",), (1,), "192.0.2.7").addresses_for_others == ["/ip4/192.0.2.7/tcp/1/p2p/id-0"]
    assert LocalNetwork(("id-0",), (1,), "::").addresses == ["/ip4/127.0.0.1/tcp/1/p2p/id-0"]
    assert LocalNetwork(("id-0",), (1,), "fd00::7").addresses == ["/ip6/fd00::7/tcp/1/p2p/id-0"]


def test_without_a_network_only_this_machine_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRoute:
        def __enter__(self) -> NoRoute:
            return self

        def __exit__(self, *arguments: object) -> None:
            return

        def connect(self, address: tuple[str, int]) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.socket", lambda *arguments: NoRoute())
    assert host_for_others("0.0.0.0") == "127.0.0.1"
