"""`kubectl swarmgame export`: from running peers, from a claim, and what is refused.

The API server is a stand-in; `kubectl exec` is a program that runs the command on this machine, where a folder stands
for the claim.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubectl_server import kubectl_server
from plan_fixtures import game_context, valid_game
from typer.testing import CliRunner

from swarmgame_api.load import load_manifest
from swarmgame_operator.kubectl import claim_reader
from swarmgame_operator.kubectl.export import choose_export, reader_pod, waiting_reason
from swarmgame_operator.kubectl.main import application
from swarmgame_operator.plan.peer_job import peer_job

EXEC = """#!{python}
import json, os, pathlib, subprocess, sys
root = pathlib.Path({root!r})
arguments = sys.argv[1:]
pod, command = next(a for a in arguments[1:] if not a.startswith("--")), arguments[arguments.index("--") + 1 :]
with (root / "exec.jsonl").open("a") as log:
    log.write(json.dumps(arguments[: arguments.index("--")]) + chr(10))
if (root / "refuse").exists():
    sys.exit("error: unable to upgrade connection: container not found")
place = root / "claim" if "-export-" in pod else root / "claim" / pod.split("-")[2]
mounted = "/checkpoints" if "-export-" in pod else "/checkpoints/peer"
command = [sys.executable, *command[1:3], *(part.replace("=" + mounted, "=" + str(place)) for part in command[3:])]
done = subprocess.run(command, stdout=subprocess.PIPE)
broken = (root / "break").exists() and "w|" in command[2]
sys.stdout.buffer.write(done.stdout[: len(done.stdout) // 2] if broken else done.stdout)
sys.exit(done.returncode)
"""


class Cluster:
    """A stand-in for an API server with one game in the namespace `team`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.claim = root / "claim"
        self.claim.mkdir()
        self.game: dict[str, Any] | None = {
            "apiVersion": "swarmgame.dev/v1alpha1",
            "kind": "SwarmGame",
            "metadata": {"name": "sums", "namespace": "team", "uid": "u", "creationTimestamp": "2026-01-31T12:00:00Z"},
            "spec": {
                "game": {
                    "maxRounds": 9,
                    "data": {"use": "text"},
                    "rewards": {"use": "exact"},
                    "trainer": {"use": "grpo"},
                },
                "peers": {"replicas": 2},
                "storage": {
                    "checkpoints": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
                },
            },
            "status": {"progress": {}},
        }
        self.claims = {"sums-checkpoints"}
        self.job = True
        self.running: set[int] = set()
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.reader_status: dict[str, Any] = {"phase": "Running"}

    def add_export(self, peer: int, rounds: int, evaluation: float | None = None) -> None:
        folder = self.claim / str(peer) / "exports" / f"round-{rounds:08d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 400)
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text("{}")
        rows = [] if evaluation is None else [{"rounds": rounds, "reward": evaluation}]
        record = {"peer": peer, "rounds": rounds, "max_rounds": 9, "evaluations": rows}
        (folder / "swarmgame.json").write_text(json.dumps(record))

    def add_checkpoint(self, peer: int, rounds: int) -> None:
        folder = self.claim / str(peer) / "checkpoints" / f"round-{rounds:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "tensors.safetensors").write_bytes(b"weights")
        (self.claim / str(peer) / "metrics.jsonl").write_text('{"round": 0}\n')

    def executed(self) -> list[list[str]]:
        log = self.root / "exec.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    async def answer(self, request: web.Request) -> web.Response:
        pods, kind = "/api/v1/namespaces/team/pods", request.path.rsplit("/", 2)
        body: Any = None
        if request.method == "POST" and request.path == pods:
            body = await request.json()
            body["metadata"]["name"] = f"{body['metadata']['generateName']}abc12"
            self.created.append(body)
        elif request.method == "DELETE":
            self.deleted.append(kind[-1])
            body = {}
        elif request.path.endswith("/swarmgames/sums"):
            body = self.game
        elif request.path == pods:
            body = {"metadata": {}, "items": [self._pod(index) for index in sorted(self.running)]}
        elif request.path == f"{pods}/sums-export-abc12" and self.created:
            body = {**self.created[-1], "status": self.reader_status}
        elif "/persistentvolumeclaims/" in request.path and kind[-1] in self.claims:
            body = {"metadata": {"name": kind[-1]}}
        elif request.path.endswith("/jobs/sums-peers") and self.job:
            template = {"containers": [{"image": "worker:1"}], "imagePullSecrets": [{"name": "registry"}]}
            body = {"spec": {"template": {"spec": template}}}
        if body is None:
            return web.json_response({"reason": "NotFound", "message": "not found", "code": 404}, status=404)
        return web.json_response(body)

    def _pod(self, index: int) -> dict[str, Any]:
        return {
            "metadata": {
                "name": f"sums-peers-{index}-x",
                "namespace": "team",
                "creationTimestamp": "2026-01-31T12:00:00Z",
                "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            },
            "spec": {"containers": [{"name": "peer"}]},
            "status": {"phase": "Running"},
        }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster of the kubeconfig, and a `kubectl` on the PATH."""
    cluster = Cluster(tmp_path)
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(EXEC.format(python=sys.executable, root=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(claim_reader, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with kubectl_server(cluster.answer, tmp_path / "kubeconfig"):
        yield cluster


def export(cluster: Cluster, *arguments: str, expect: int = 0) -> str:
    """Export into `model`, and return the output."""
    result = CliRunner().invoke(application, ["export", "sums", str(cluster.root / "model"), "-n", "team", *arguments])
    assert result.exit_code == expect, result.output
    assert "Traceback" not in result.output
    assert not list(cluster.root.glob(".model*"))
    return result.output


def rounds_of(cluster: Cluster) -> tuple[int, int]:
    record = json.loads((cluster.root / "model" / "swarmgame.json").read_text())
    return record["peer"], record["rounds"]


def test_the_newest_export_of_a_running_peer_is_read_in_its_own_pod(cluster: Cluster) -> None:
    cluster.add_export(0, 3), cluster.add_export(0, 6), cluster.add_export(1, 9)
    cluster.running = {0, 1}
    assert "of peer 0 after 6 of 9 rounds" in export(cluster)
    model = cluster.root / "model"
    assert (model / "model.safetensors").read_bytes() == bytes(range(256)) * 400
    assert (model / "base" / "config.json").is_file()
    assert cluster.created == []
    assert cluster.executed()[-1] == ["exec", "sums-peers-0-x", "--namespace=team", "--container=peer"]


def test_the_context_is_that_of_the_command(cluster: Cluster) -> None:
    cluster.add_export(0, 3)
    cluster.running = {0}
    export(cluster, "--peer", "0", "--context", "x")
    assert all("--context=x" in each for each in cluster.executed())


def test_without_running_peers_a_pod_reads_the_claim_and_is_deleted(cluster: Cluster) -> None:
    cluster.add_export(0, 9), cluster.add_export(1, 9)
    export(cluster, "--peer", "1")
    assert rounds_of(cluster) == (1, 9)
    (pod,) = cluster.created
    assert pod["spec"]["containers"][0]["image"] == "worker:1"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "sums-checkpoints"}
    assert cluster.deleted == ["sums-export-abc12"]


def test_the_best_evaluation_is_found_among_all_peers_of_the_claim(cluster: Cluster) -> None:
    """One of two peers runs: its pod does not show the other's folder."""
    (
        cluster.add_export(0, 6, 0.5),
        cluster.add_export(0, 9, 0.4),
        cluster.add_export(1, 6, 0.6),
        cluster.add_export(1, 9),
    )
    cluster.running = {0}
    export(cluster, "--best")
    assert rounds_of(cluster) == (1, 6)
    assert len(cluster.created) == len(cluster.deleted) == 1


def test_the_claim_of_a_deleted_game_is_read_with_a_given_image(cluster: Cluster) -> None:
    cluster.add_export(0, 9)
    cluster.game, cluster.job = None, False
    assert "name the worker's image with --image" in export(cluster, expect=64)
    export(cluster, "--image", "worker:2")
    assert cluster.created[-1]["spec"]["containers"][0]["image"] == "worker:2"


def test_a_checkpoint_is_fetched_as_a_folder_of_a_run(cluster: Cluster) -> None:
    cluster.add_checkpoint(1, 3), cluster.add_checkpoint(1, 6)
    output = export(cluster, "--checkpoint")
    assert "now: swarmgame export" in output
    run = cluster.root / "model"
    assert load_manifest(run / "game.yaml").metadata.name == "sums"
    assert (run / "peers" / "1" / "metrics.jsonl").read_text() == '{"round": 0}\n'
    kept = run / "peers" / "1" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["round-00000006"]
    assert (kept / "round-00000006" / "tensors.safetensors").read_bytes() == b"weights"


def test_an_earlier_export_is_replaced_only_with_force_and_other_files_never(cluster: Cluster) -> None:
    cluster.add_export(0, 3)
    cluster.running = {0, 1}
    export(cluster)
    cluster.add_export(0, 6)
    assert "replace it with --force" in export(cluster, expect=64)
    assert rounds_of(cluster) == (0, 3)
    export(cluster, "--force")
    assert rounds_of(cluster) == (0, 6)
    (cluster.root / "model" / "swarmgame.json").unlink()
    assert "holds no earlier export" in export(cluster, "--force", expect=64)


def test_a_copy_that_breaks_off_leaves_nothing(cluster: Cluster) -> None:
    cluster.add_export(0, 3)
    (cluster.root / "break").touch()
    assert "pod sums-export-abc12 broke off" in export(cluster, expect=69)
    assert not (cluster.root / "model").exists()
    assert cluster.deleted == ["sums-export-abc12"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            {
                "phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}],
            },
            "does not run: ErrImagePull: no",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [{"status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}],
            },
            "does not run: Unschedulable: 0/1 nodes",
        ),
        ({"phase": "Failed"}, "does not run: Failed"),
    ],
)
def test_a_pod_that_does_not_run_is_deleted_and_the_reason_named(
    cluster: Cluster, status: dict[str, Any], message: str
) -> None:
    cluster.reader_status = status
    assert message in export(cluster, "--wait-seconds", "2", expect=69)
    assert cluster.deleted == ["sums-export-abc12"]


def test_what_is_not_there_is_one_line_with_what_to_do(cluster: Cluster) -> None:
    assert "with spec.model.export the peers write them" in export(cluster, expect=66)
    assert "no checkpoint yet" in export(cluster, "--checkpoint", expect=66)
    cluster.add_export(0, 3)
    assert "no export has a held-out evaluation" in export(cluster, "--best", expect=66)
    cluster.claims = set()
    assert "there is no claim sums-checkpoints in namespace team" in export(cluster, expect=66)
    assert cluster.game is not None
    cluster.game["spec"]["storage"] = {}
    assert "which is deleted with its pod" in export(cluster, expect=66)


def test_a_refused_connection_and_a_missing_kubectl_are_named(cluster: Cluster) -> None:
    cluster.running = {0, 1}
    (cluster.root / "refuse").touch()
    assert "could not be read: error: unable to upgrade connection" in export(cluster, expect=69)
    (cluster.root / "bin" / "kubectl").unlink()
    assert "kubectl is not installed" in export(cluster, expect=78)


def test_the_pod_has_what_a_platform_asks_of_the_peers() -> None:
    game = valid_game(
        {
            "podDefaults": {
                "labels": {"team": "a"},
                "annotations": {"mesh": "off"},
                "containerSecurityContext": {"readOnlyRootFilesystem": False},
                "arbitraryUser": True,
                "priorityClassName": "low",
                "resources": {"limits": {"cpu": "8"}},
            }
        }
    )
    created = peer_job(game_context(game)).create_manifest
    assert created is not None
    body = reader_pod("sums", "claim", "worker:1", created["spec"]["template"])
    assert body["metadata"]["labels"] == {"team": "a", "swarmgame.dev/export-of": "sums"}
    assert "runAsUser" not in body["spec"]["securityContext"]
    assert body["spec"]["priorityClassName"] == "low"
    (container,) = body["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "256Mi", "cpu": "500m"}
    assert body["metadata"]["annotations"] == {"mesh": "off"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is False


def test_the_pod_fits_the_restricted_standard_and_ends_by_itself() -> None:
    body = reader_pod(
        "sums", "claim", "worker:1", {"spec": {"tolerations": [{"key": "gpu"}], "volumes": [{"name": "secret"}]}}
    )
    spec = body["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "checkpoints", "mountPath": "/checkpoints", "readOnly": True}]
    assert [each["name"] for each in spec["volumes"]] == ["checkpoints"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["tolerations"] == [{"key": "gpu"}]
    assert "swarmgame.dev/game" not in body["metadata"]["labels"]  # it is none of the game's pods


def test_a_pod_without_a_status_waits_for_one() -> None:
    assert waiting_reason({}) == "no status yet"


def test_the_best_of_no_export_is_refused_as_any_other() -> None:
    with pytest.raises(Exception, match="no export yet"):
        choose_export([], None, best=True)


def test_the_commands_of_the_guide_run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.add_export(0, 9, 0.5), cluster.add_checkpoint(0, 9)
    page = Path(__file__).parents[4] / "docs" / "guide" / "export.md"
    lines = re.findall(r"^kubectl swarmgame (export sums .*)$", page.read_text(), re.MULTILINE)
    assert len(lines) == 3
    monkeypatch.chdir(cluster.root)
    for line in lines:
        result = CliRunner().invoke(application, line.split())
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in cluster.root.glob("sums-*")) == ["sums-best", "sums-model", "sums-run"]
