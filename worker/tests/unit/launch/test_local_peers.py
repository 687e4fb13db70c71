"""What each peer of a local run gets: keys, devices, threads."""

from __future__ import annotations

from typing import Any

import pytest

from swarmgame.launch.local_peers import Machine, derived_identity, outsiders, visible_devices
from swarmgame_api.manifest import SwarmGame


def game(replicas: int = 2, processes: int | str = "auto", **spec: Any) -> SwarmGame:
    component = {"use": "exact"}
    return SwarmGame.model_validate(
        {
            "apiVersion": "swarmgame.dev/v1alpha1",
            "kind": "SwarmGame",
            "metadata": {"name": "local"},
            "spec": {
                "game": {"maxRounds": 1, "data": component, "rewards": component, "trainer": component},
                "peers": {"replicas": replicas, "processesPerPeer": processes},
                **spec,
            },
        }
    )


def test_a_key_is_a_function_of_the_seed_and_the_index() -> None:
    assert derived_identity(7, 0) == derived_identity(7, 0)
    ids = {derived_identity(seed, index).peer for seed in (0, 1, 2**53 - 1) for index in range(20)}
    assert len(ids) == 60
    # HKDF-SHA256 by RFC 5869, computed with hmac alone.
    assert derived_identity(7, 3).secret.hex() == _hkdf(b"swarmgame", (7).to_bytes(8, "big"), b"key of local peer 3")


def _hkdf(salt: bytes, material: bytes, info: bytes) -> str:
    import hmac

    extracted = hmac.digest(salt, material, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256").hex()


@pytest.mark.parametrize(
    ("manifest", "host", "reason"),
    [
        (game(), "127.0.0.1", ""),
        (game(), "127.0.0.2", ""),
        (game(), "::1", ""),
        (game(), "::", "listen on ::"),
        (game(coordination={"mode": "Dev"}), "127.0.0.1", ""),
        (game(), "0.0.0.0", "0.0.0.0"),
        (game(), "192.0.2.1", "192.0.2.1"),
        (
            game(communication={"initialPeers": (f"/ip4/192.0.2.7/tcp/1/p2p/{derived_identity(1, 1).peer}",)}),
            "127.0.0.1",
            "communication.initialPeers",
        ),
    ],
)
def test_a_run_that_others_can_take_part_in_is_recognised(manifest: SwarmGame, host: str, reason: str) -> None:
    found = outsiders(manifest, host)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("setting", "count", "expected"),
    [
        (None, 0, ()),
        (None, 3, ("0", "1", "2")),
        ("2,5", 2, ("2", "5")),
        ("GPU-1a, MIG-2b", 2, ("GPU-1a", "MIG-2b")),
        ("1,-1,0", 1, ("1",)),
        ("", 0, ()),
    ],
)
def test_the_devices_are_those_that_the_environment_leaves(
    setting: str | None, count: int, expected: tuple[str, ...]
) -> None:
    assert visible_devices(setting, count) == expected


@pytest.mark.parametrize(
    ("devices", "replicas", "processes", "expected"),
    [
        (0, 4, "auto", [(), (), (), ()]),
        (1, 3, "auto", [("0",), ("0",), ("0",)]),
        (2, 4, "auto", [("0",), ("1",), ("0",), ("1",)]),
        (4, 2, "auto", [("0", "1"), ("2", "3")]),
        (8, 3, "auto", [("0", "1"), ("2", "3"), ("4", "5")]),
        (4, 3, 2, [("0", "1"), ("2", "3"), ("0", "1")]),
        (3, 2, 2, [("0", "1"), ("2", "0")]),
        (1, 1, 2, [("0",)]),
    ],
)
def test_peers_take_the_devices_in_turn_each_as_many_as_it_has_processes(
    devices: int, replicas: int, processes: int | str, expected: list[tuple[str, ...]]
) -> None:
    machine, manifest = Machine(8, tuple(map(str, range(devices)))), game(replicas, processes)
    per_peer = machine.processes_of(manifest)
    assert per_peer == (max(1, devices // replicas) if processes == "auto" else processes)
    assert [machine.devices_of(index, per_peer) for index in range(replicas)] == expected


def test_the_environment_of_a_peer_names_its_devices_only_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Machine(4).environment_of(1, 2, 1)["CUDA_VISIBLE_DEVICES"] == ""
    found = Machine(4, ("3", "4", "5", "6")).environment_of(1, 2, 2)
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("5,6", "1")
