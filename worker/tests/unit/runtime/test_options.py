"""The options of a peer: addresses that it announces, and the peers that it trusts from the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.errors import BadUsage
from swarmgame.runtime.admission import admission_of
from swarmgame.runtime.options import PeerOptions, checked_announcements, checked_ids, peer_arguments
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame_api import loads_manifest


def test_an_address_that_was_copied_with_the_peers_id_is_announced_without_it() -> None:
    given = ("/dns4/me.example.org/tcp/31000/p2p/16Uiu2HAm", "/ip4/192.0.2.7/tcp/1", "/ip6/2001:db8::1/tcp/65535")
    assert checked_announcements(given, "--announce") == (
        "/dns4/me.example.org/tcp/31000",
        "/ip4/192.0.2.7/tcp/1",
        "/ip6/2001:db8::1/tcp/65535",
    )


@pytest.mark.parametrize(
    "address", ["me.example.org:31000", "/ip4/192.0.2.7", "/ip4/192.0.2.7/udp/1", "/ip4//tcp/1", ""]
)
def test_what_is_no_address_of_a_port_is_refused_before_anything_starts(address: str) -> None:
    with pytest.raises(BadUsage, match=r"--announce .* is not an address; expected /ip4/HOST/tcp/PORT"):
        checked_announcements((address,), "--announce")


@pytest.mark.parametrize("peer", ["", "ann", "/ip4/192.0.2.7/tcp/31000/p2p/16Uiu2HAm", "16Uiu2HA" + "0" * 40])
def test_an_anchor_that_is_no_id_is_refused_before_anything_starts(peer: str) -> None:
    with pytest.raises(BadUsage, match=r"--anchor .* is not a peer's id"):
        checked_ids((TOGETHER, peer), "--anchor")


GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: trusted}
spec:
  game: {maxRounds: 1, data: {use: reasoning-gym}, rewards: {use: reasoning-gym}, trainer: {use: grpo}}
"""
TOGETHER, LISTED, STRANGER = (Identity.named(name).peer for name in ("together", "listed", "stranger"))


@pytest.mark.parametrize(
    ("communication", "anchors", "admitted"),
    [
        ("{admission: Open}", frozenset({TOGETHER}), {TOGETHER, LISTED, STRANGER}),
        (f"{{admission: Allowlist, allowedPeers: [{LISTED}]}}", None, {TOGETHER, LISTED}),
        ("{admission: Registered}", None, {STRANGER}),
    ],
    ids=["open", "list", "chain"],
)
def test_admission_names_who_may_join_and_who_counts_from_the_start(
    tmp_path: Path, communication: str, anchors: frozenset[str] | None, admitted: set[str]
) -> None:
    chain = ["coordination.mode=Dev"] if "Registered" in communication else []
    manifest = loads_manifest(GAME, [f"spec.communication={communication}", *chain])
    options = PeerOptions(tmp_path, NetworkOptions(tmp_path / "key"), anchors=(TOGETHER,))
    found = admission_of(manifest, options, {STRANGER}.__contains__ if chain else None)
    assert found.anchors == anchors
    assert {peer for peer in (TOGETHER, LISTED, STRANGER) if found.admits(peer)} == admitted


def test_a_child_process_gets_the_anchors_of_its_parent(tmp_path: Path) -> None:
    options = PeerOptions(tmp_path, NetworkOptions(tmp_path / "key"), anchors=(TOGETHER, LISTED))
    arguments = peer_arguments(tmp_path / "game.yaml", options)
    assert [each for each in arguments if "anchor" in each] == [f"--anchor={TOGETHER}", f"--anchor={LISTED}"]
