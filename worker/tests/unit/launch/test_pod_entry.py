"""The commands of a pod: settings, exit codes of several ranks, a finished game, and the termination message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
import torch
import yaml
from running import EXAMPLES

from swarmgame.cli.main import run_command
from swarmgame.errors import BadUsage, ExitCode, InvalidManifest
from swarmgame.launch.bootnode import peer_list
from swarmgame.launch.pod import peer_exit_of, process_count, rounds_finished
from swarmgame.launch.pod_settings import BootnodeSettings, WorkerPodSettings, pod_settings
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.options import PeerOptions, checked_announcements
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transport import CALL_BYTES
from swarmgame_api.load import load_manifest, manifest_data

GAME = EXAMPLES / "03-digits" / "game.yaml"


@pytest.mark.parametrize(
    ("returned", "recorded", "message", "stop_requested", "code", "expected"),
    [
        (0, None, "", False, ExitCode.DONE, ""),
        (1, 78, "spec.game is wrong", False, ExitCode.BAD_CONFIG, "spec.game is wrong"),
        (1, 77, "another chain", False, ExitCode.REFUSED, "another chain"),
        (1, 1, "", False, ExitCode.INTERNAL, "exit code 1"),
        (1, 143, "", True, ExitCode.STOPPED, ""),
        (1, None, "", True, ExitCode.STOPPED, ""),
        (1, None, "", False, ExitCode.TEMPORARY, "was killed"),
        (1, 143, "", False, ExitCode.TEMPORARY, "was killed"),
        (-9, None, "", False, ExitCode.TEMPORARY, "was killed"),
        (1, 250, "", False, ExitCode.INTERNAL, "exit code 250"),
    ],
    ids=[
        "done",
        "bad config",
        "refused",
        "internal",
        "stopped",
        "stopped early",
        "killed",
        "stopped by torchrun",
        "torchrun killed",
        "odd",
    ],
)
def test_a_peer_of_several_ranks_ends_as_its_first_rank_recorded(
    returned: int, recorded: int | None, message: str, stop_requested: bool, code: ExitCode, expected: str
) -> None:
    ended = peer_exit_of(returned, recorded, message, stop_requested=stop_requested)
    assert ended.code is code
    assert expected in ended.message
    assert bool(expected) is bool(ended.message)


def test_the_newest_complete_checkpoint_tells_how_many_rounds_are_finished(tmp_path: Path) -> None:
    assert rounds_finished(tmp_path) == 0
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(3, {"weights": torch.zeros(4)})
    newest = store.save(7, {"weights": torch.zeros(4)})
    assert rounds_finished(tmp_path) == 7
    (newest / "tensors.safetensors").write_bytes(b"cut off")
    assert rounds_finished(tmp_path) == 3
    (newest / "manifest.json").write_text((newest / "manifest.json").read_text().replace(": 7", ": 9"))
    assert rounds_finished(tmp_path) == 3
    (newest / "manifest.json").write_text("[" * 100_000)
    assert rounds_finished(tmp_path) == 3
    (newest / "manifest.json").write_text("[]")
    assert rounds_finished(tmp_path) == 3


def test_a_peer_whose_game_is_complete_ends_at_once_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CheckpointStore(tmp_path / "checkpoints").save(150, {})
    monkeypatch.setenv("SWARMGAME_GAME", str(GAME))
    monkeypatch.setenv("SWARMGAME_DIRECTORY", str(tmp_path))
    assert run_command(["pod", "peer"]) == 0
    assert "all 150 rounds are finished" in capsys.readouterr().err


def test_the_number_of_ranks_is_the_manifests_or_the_number_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for devices, expected in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=devices: count)
        assert process_count("auto") == expected
    assert process_count(3) == 3


def test_devices_that_pytorch_does_not_see_are_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InvalidManifest, match=r"processesPerPeer is .auto.*gpu.example/a100.*1 for a peer that"):
        process_count("auto", "gpu.example/a100")
    assert process_count(1, "gpu.example/a100") == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert process_count("auto", "gpu.example/a100") == 2


def test_threads_are_the_cpus_of_the_pod_where_its_processes_are_counted_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(GAME)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SWARMGAME_CPUS", "6")
    assert pod_settings(WorkerPodSettings).peer_options(manifest).threads == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert pod_settings(WorkerPodSettings).peer_options(manifest).threads == 2


@pytest.mark.parametrize(
    ("address", "right"),
    [
        ("/ip6/fd00::7/tcp/31000", True),
        ("/dns6/peer.swarm/tcp/31000", True),
        ("/ip4/fd00::7/tcp/31000", False),
        ("/ip6/10.0.0.7/tcp/31000", False),
        ("/ip4/300.1.1.1/tcp/31000", False),
    ],
)
def test_an_announced_address_is_of_the_family_that_it_names(address: str, right: bool) -> None:
    if right:
        assert checked_announcements([f"{address}/p2p/16U"], "SWARMGAME_ANNOUNCE") == (address,)
    else:
        with pytest.raises(BadUsage, match="no address of ip"):
            checked_announcements([address], "SWARMGAME_ANNOUNCE")


def test_a_pods_options_are_its_environment_and_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"/ip4/10.0.0.1/tcp/31000/p2p/{Identity.named('bootnode').peer}"
    environment = {
        "JOB_COMPLETION_INDEX": "3",
        "SWARMGAME_ANNOUNCE": "/ip4/10.0.0.7/tcp/31000",
        "SWARMGAME_INITIAL_PEERS": f"{address} {address}",
        "SWARMGAME_RENDEZVOUS": "",
        "OMP_NUM_THREADS": "2",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    manifest = load_manifest(GAME, ["communication.port=32000", "peers.minReplicas=2"])
    options = pod_settings(WorkerPodSettings).peer_options(manifest)
    assert options == PeerOptions(
        directory=Path("/checkpoints/peer"),
        network=NetworkOptions(
            identity=Path("/etc/swarmgame/identity/peer.key"),
            host="::",
            port=32_000,
            announce=("/ip4/10.0.0.7/tcp/31000",),
            initial_peers=(address, address),
        ),
        index=3,
        http_host="::",
        http_port=8080,
        threads=2,
    )
    assert (options.min_replicas_of(manifest), options.deadline_of(manifest)) == (2, 3600.0)


def test_the_games_own_peers_count_from_the_start_and_another_text_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, manifest = tuple(Identity.named(name).peer for name in ("ann", "bob")), load_manifest(GAME)
    peers = tmp_path / "peers"
    monkeypatch.setenv("SWARMGAME_PEERS", str(peers))
    settings = pod_settings(WorkerPodSettings)
    assert settings.peer_options(manifest).anchors == ()
    peers.write_text("".join(f"{peer}\n" for peer in ids))
    assert settings.peer_options(manifest).anchors == ids
    peers.write_text(f"{ids[0]}\nann\n")
    with pytest.raises(BadUsage, match=r"peers 'ann' is not a peer's id"):
        settings.peer_options(manifest)


def test_a_bootnode_connects_to_the_initial_peers_of_the_manifest_too(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, own = (f"/ip4/10.0.0.1/tcp/31000/p2p/{Identity.named(name).peer}" for name in ("elsewhere", "own"))
    monkeypatch.setenv("SWARMGAME_INITIAL_PEERS", own)
    manifest = load_manifest(GAME, [f"communication.initialPeers=[{elsewhere}]"])
    network = pod_settings(BootnodeSettings).network(manifest)
    assert network.identity == Path("/etc/swarmgame/identity/bootnode.key")
    assert network.initial_peers == (elsewhere, own)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("JOB_COMPLETION_INDEX", "-1", "JOB_COMPLETION_INDEX is '-1'"),
        ("SWARMGAME_PORT", "70000", "SWARMGAME_PORT is '70000'"),
        ("JOB_COMPLETION_INDEX", "1.0", "JOB_COMPLETION_INDEX is '1.0'"),
        ("SWARMGAME_HTTP_PORT", "many", "SWARMGAME_HTTP_PORT is 'many'"),
        ("SWARMGAME_INITIAL_PEERS", "10.0.0.1", "SWARMGAME_INITIAL_PEERS '10.0.0.1' is not a peer's address"),
    ],
)
def test_a_variable_that_cannot_be_used_ends_with_64_and_is_named(
    name: str, value: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination"
    monkeypatch.setenv("SWARMGAME_GAME", str(GAME))
    monkeypatch.setenv("SWARMGAME_TERMINATION_LOG", str(log))
    monkeypatch.setenv(name, value)
    assert run_command(["pod", "peer"]) == ExitCode.BAD_USAGE
    assert expected in log.read_text()


def test_a_manifest_that_cannot_be_used_ends_with_78_and_a_termination_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game, log = tmp_path / "game.yaml", tmp_path / "termination"
    data = yaml.safe_load(GAME.read_text())
    data["spec"]["game"]["trainer"]["with"]["generations"] = 1
    data["spec"]["game"]["trainer"]["with"]["nonsense"] = True
    game.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("SWARMGAME_GAME", str(game))
    monkeypatch.setenv("SWARMGAME_TERMINATION_LOG", str(log))
    assert run_command(["pod", "initialize"]) == 78
    assert "spec.game.trainer.with.nonsense" in log.read_text()
    game.write_text("spec: {}")
    for command in ("initialize", "peer", "bootnode"):
        log.unlink(missing_ok=True)
        assert run_command(["pod", command]) == 78
        assert f"{game}" in log.read_text()


def test_a_manifest_as_the_cluster_holds_it_is_the_same_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every default filled in, and with what only the operator reads: claims, templates, policies."""
    data = manifest_data(load_manifest(GAME))
    spec = data["spec"]
    spec["peers"] |= {
        "minReplicas": 2,
        "maxReplicas": 16,
        "image": "registry.example.org/worker@sha256:" + "0" * 64,
        "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "32Gi"}},
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}},
            "spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
        },
    }
    claim = {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Gi"}}}}
    spec["storage"] |= {"cache": {"claimTemplate": claim}, "sharedMemory": "8Gi"}
    game = tmp_path / "game.yaml"
    game.write_text(yaml.safe_dump({key: data[key] for key in ("apiVersion", "kind", "metadata", "spec")}))
    monkeypatch.setenv("SWARMGAME_GAME", str(game))
    monkeypatch.setenv("SWARMGAME_CACHE", str(tmp_path))
    assert run_command(["pod", "initialize"]) == 0


def test_a_module_on_the_python_path_is_a_component_and_a_broken_one_is_named(tmp_path: Path) -> None:
    """As the operator mounts modules: each at a path of its own, all of them on PYTHONPATH; in a process, since
    imports are remembered.
    """
    package = tmp_path / "modules" / "mine" / "my_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "mod.py").write_text(
        "from swarmgame.rewards.exact import ExactRewards\nclass Mine(ExactRewards):\n    '''Ours.'''\n"
    )
    (package / "broken.py").write_text("1 / 0\n")
    data = yaml.safe_load(GAME.read_text())
    for use, code, message in (
        ("my_pkg.mod:Mine", 0, "ready"),
        ("my_pkg.broken:Mine", 78, "ZeroDivisionError"),
        ("none:A", 78, "PYTHONPATH"),
    ):
        data["spec"]["game"]["rewards"]["use"] = use
        (tmp_path / "game.yaml").write_text(yaml.safe_dump(data))
        path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": path}
        environment |= {
            "SWARMGAME_GAME": str(tmp_path / "game.yaml"),
            "SWARMGAME_TERMINATION_LOG": str(tmp_path / "termination"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "swarmgame", "pod", "initialize"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert "PYTHONPATH" in (tmp_path / "termination").read_text()


def test_a_bootnode_without_a_valid_key_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "bootnode.key"
    monkeypatch.setenv("SWARMGAME_GAME", str(GAME))
    monkeypatch.setenv("SWARMGAME_IDENTITY", str(key))
    monkeypatch.setenv("SWARMGAME_TERMINATION_LOG", str(tmp_path / "termination"))
    monkeypatch.setenv("SWARMGAME_PORT", "0")
    monkeypatch.setenv("SWARMGAME_HTTP_PORT", "0")
    assert run_command(["pod", "bootnode"]) == 75
    assert "bootnode.key cannot be read" in (tmp_path / "termination").read_text()
    assert not key.exists(), "a new key would have another id than the one that the peers know"
    key.write_bytes(b"no key")
    assert run_command(["pod", "bootnode"]) == 65


def test_the_peer_list_of_a_bootnode_fits_a_small_message() -> None:
    heartbeats = [bytes([n % 256]) * 1500 for n in range(500)]
    packed = peer_list(heartbeats)
    assert len(packed) <= CALL_BYTES
    assert msgpack.unpackb(packed) == heartbeats[: len(msgpack.unpackb(packed))]
    assert len(msgpack.unpackb(packed)) > 60


def test_a_key_that_a_group_may_read_is_read(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "peer.key")
    (tmp_path / "peer.key").chmod(0o440)
    assert Identity.load(tmp_path / "peer.key").peer == identity.peer
