"""What a pod's entry decides: how a peer of several ranks ended, whether it is done, and what the kubelet is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
import torch
import yaml
from running import EXAMPLES

from swarmgame.cli.main import run_command
from swarmgame.errors import BadUsage, ExitCode
from swarmgame.launch.bootnode import peer_list
from swarmgame.launch.pod import MAX_CHARACTERS, peer_exit_of, process_count, rounds_finished, write_termination_message
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.transports.base import CALL_BYTES

GAME = EXAMPLES / "03-digits" / "game.yaml"


@pytest.mark.parametrize(
    ("returned", "own", "message", "asked", "code", "said"),
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
        "ours",
        "stopped",
        "stopped early",
        "killed",
        "told to stop by torchrun",
        "torchrun killed",
        "odd",
    ],
)
def test_torchruns_end_is_the_first_ranks_own_word(
    returned: int, own: int | None, message: str, asked: bool, code: ExitCode, said: str
) -> None:
    ending = peer_exit_of(returned, own, message, asked_to_stop=asked)
    assert ending.code is code
    assert said in ending.message
    assert bool(said) is bool(ending.message)


def test_the_newest_whole_checkpoint_says_how_far_a_peer_is(tmp_path: Path) -> None:
    assert rounds_finished(tmp_path) == 0
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(3, {"weights": torch.zeros(4)})
    newest = store.save(7, {"weights": torch.zeros(4)})
    assert rounds_finished(tmp_path) == 7
    (newest / "tensors.safetensors").write_bytes(b"torn")
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


def test_the_number_of_ranks_is_the_number_of_devices_or_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for devices, expected in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=devices: count)
        assert process_count("auto") == expected
    assert process_count("3") == 3
    for nonsense in ("0", "65", "-1", "two", ""):
        with pytest.raises(BadUsage, match="expected auto, or a number from 1 to 64"):
            process_count(nonsense)


def test_the_kubelet_gets_one_bounded_line(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    write_termination_message("first\n  second\n\n" + "x" * 5000, {"SWARMGAME_TERMINATION_LOG": str(file)})
    said = file.read_text()
    assert said.startswith("first; second; xxx")
    assert (said.count("\n"), len(said)) == (1, MAX_CHARACTERS + 1)


def test_a_manifest_that_cannot_be_used_ends_with_78_and_says_why_to_the_kubelet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game, said = tmp_path / "game.yaml", tmp_path / "said"
    data = yaml.safe_load(GAME.read_text())
    data["spec"]["game"]["trainer"]["with"]["generations"] = 1
    data["spec"]["game"]["trainer"]["with"]["nonsense"] = True
    game.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("SWARMGAME_GAME", str(game))
    monkeypatch.setenv("SWARMGAME_TERMINATION_LOG", str(said))
    assert run_command(["pod", "initialize"]) == 78
    assert "spec.game.trainer.with.nonsense" in said.read_text()
    game.write_text("spec: {}")
    for command in ("initialize", "peer", "bootnode"):
        said.unlink(missing_ok=True)
        assert run_command(["pod", command]) == 78
        assert f"{game}" in said.read_text()


def test_a_manifest_as_the_cluster_holds_it_is_the_same_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every default filled in, and with what only the operator reads: claims, templates, policies."""
    from swarmgame_api.load import load_manifest, manifest_data

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


def test_a_module_on_the_python_path_is_a_part_and_a_broken_one_is_named(tmp_path: Path) -> None:
    """As the operator mounts modules: each at a path of its own, all of them on PYTHONPATH; in a process, since imports
    are remembered.
    """
    package = tmp_path / "modules" / "mine" / "my_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "mod.py").write_text(
        "from swarmgame.rewards.exact import ExactRewards\nclass Mine(ExactRewards):\n    '''Ours.'''\n"
    )
    (package / "broken.py").write_text("1 / 0\n")
    data = yaml.safe_load(GAME.read_text())
    for use, code, words in (
        ("my_pkg.mod:Mine", 0, "ready"),
        ("my_pkg.broken:Mine", 78, "ZeroDivisionError"),
        ("none:A", 78, "PYTHONPATH"),
    ):
        data["spec"]["game"]["rewards"]["use"] = use
        (tmp_path / "game.yaml").write_text(yaml.safe_dump(data))
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(package.parent)}
        environment |= {
            "SWARMGAME_GAME": str(tmp_path / "game.yaml"),
            "SWARMGAME_TERMINATION_LOG": str(tmp_path / "said"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "swarmgame", "pod", "initialize"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "PYTHONPATH" in (tmp_path / "said").read_text()


def test_a_bootnode_without_its_key_or_with_another_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "bootnode.key"
    monkeypatch.setenv("SWARMGAME_GAME", str(GAME))
    monkeypatch.setenv("SWARMGAME_IDENTITY", str(key))
    monkeypatch.setenv("SWARMGAME_TERMINATION_LOG", str(tmp_path / "said"))
    assert run_command(["pod", "bootnode", "--http-port=0", "--port=0"]) == 75
    assert "bootnode.key cannot be read" in (tmp_path / "said").read_text()
    assert not key.exists(), "its id would be another than the one that the others were told"
    key.write_bytes(b"no key")
    assert run_command(["pod", "bootnode", "--http-port=0", "--port=0"]) == 65


def test_a_bootnodes_roster_fits_a_small_message() -> None:
    heartbeats = [bytes([n % 256]) * 1500 for n in range(500)]
    packed = peer_list(heartbeats)
    assert len(packed) <= CALL_BYTES
    assert msgpack.unpackb(packed) == heartbeats[: len(msgpack.unpackb(packed))]
    assert len(msgpack.unpackb(packed)) > 60


def test_a_key_that_a_group_may_read_is_read(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "peer.key")
    (tmp_path / "peer.key").chmod(0o440)
    assert Identity.load(tmp_path / "peer.key").peer == identity.peer
