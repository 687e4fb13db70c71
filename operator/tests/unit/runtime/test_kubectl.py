"""`kubectl swarmgame` against a server that answers as an API server would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubectl_server import kubectl_server
from rich.console import Console
from typer.testing import CliRunner

from swarmgame_operator.kubectl import view
from swarmgame_operator.kubectl.main import application

NOW = datetime(2026, 1, 31, 12, 10, tzinfo=UTC)
GAME: dict[str, Any] = {
    "metadata": {
        "name": "sums",
        "namespace": "team",
        "uid": "u",
        "creationTimestamp": "2026-01-31T12:00:00Z",
        "managedFields": [{}],
    },
    "spec": {},
    "status": {
        "peers": {"desired": 2, "ready": 1},
        "progress": {
            "round": 41,
            "maxRounds": 200,
            "percentage": 20,
            "estimatedRemainingSeconds": 8000,
            "metrics": [{"name": "reward", "value": "0.42"}],
        },
        "bootnode": {"address": "/dns4/sums-bootnode.team.svc/tcp/31000/p2p/16Uiu2HA"},
        "unhealthyPeers": [{"index": 1, "reason": "CrashLoopBackOff", "message": "exit code 1 [red]"}],
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "WaitingForPeers",
                "message": "1 of 2",
                "lastTransitionTime": "2026-01-31T12:05:00Z",
            }
        ],
    },
}


def pod(index: int) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"sums-peers-{index}-x",
            "namespace": "team",
            "creationTimestamp": "2026-01-31T12:00:00Z",
            "labels": {"swarmgame.dev/role": "peer"},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {"containers": [{"name": "peer"}]},
        "status": {"phase": "Running", "podIP": "192.0.2.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


ANSWERS: dict[str, Any] = {
    "/apis/swarmgame.dev/v1alpha1/namespaces/team/swarmgames": {"metadata": {}, "items": [GAME]},
    "/apis/swarmgame.dev/v1alpha1/swarmgames": {"metadata": {}, "items": [GAME]},
    "/apis/swarmgame.dev/v1alpha1/namespaces/team/swarmgames/sums": GAME,
    "/api/v1/namespaces/team/pods": {"metadata": {}, "items": [pod(0), pod(1)]},
    "/api/v1/namespaces/team/pods/sums-peers-1-x/log": "round 41 done\n",
    "/api/v1/namespaces/team/pods/sums-peers-0-x/log": "round 40 done\n",
    "/api/v1/namespaces/team/pods/sums-peers-0-x:8080/proxy/status": '{"rounds_finished": 41}',
    "/api/v1/namespaces/team/pods/sums-peers-0-x:8080/proxy/metrics": "swarmgame_worker_round 41\n",
}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """A runner of commands whose kubeconfig names a server with ANSWERS, namespace `team`."""

    async def handle(request: web.Request) -> web.Response:
        answer = ANSWERS.get(request.path)
        if answer is None:
            return web.json_response(
                {"reason": "NotFound", "message": f"{request.path} not found", "code": 404}, status=404
            )
        return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer))

    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.setenv("COLUMNS", "160")
    with kubectl_server(handle, file):
        yield CliRunner()


@pytest.mark.parametrize("arguments", [["status"], ["status", "-n", "team"], ["status", "-A"]])
def test_games_are_listed_with_their_main_columns(kubectl: CliRunner, arguments: list[str]) -> None:
    result = kubectl.invoke(application, arguments)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if "sums" in line)
    assert line.split()[:7] == ["team", "sums", "False", "WaitingForPeers", "1/2", "41/200", "0.42"]


def test_one_game_is_shown_with_progress_conditions_and_the_problems_of_its_peers(kubectl: CliRunner) -> None:
    result = kubectl.invoke(application, ["status", "sums", "-n", "team"])
    assert result.exit_code == 0, result.output
    for text in (
        "round 41 of 200, 2h left",
        "reward 0.42",
        "WaitingForPeers",
        "sums-peers-1-x",
        "CrashLoopBackOff: exit code 1 [red]",
    ):
        assert text in result.output
    assert "--initial-peer /dns4/sums-bootnode.team.svc/tcp/31000/p2p/16Uiu2HA" in result.output


def test_logs_are_those_of_the_peer_that_was_named(kubectl: CliRunner) -> None:
    assert kubectl.invoke(application, ["logs", "sums", "--peer", "1", "-n", "team"]).output == "round 41 done\n"
    assert kubectl.invoke(application, ["logs", "sums", "-f", "-n", "team"]).output == "round 40 done\n"


def test_a_report_contains_everything_and_names_the_source_of_each_file(kubectl: CliRunner, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    result = kubectl.invoke(application, ["report", "sums", "-n", "team", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in folder.iterdir()} == {
        "game.json",
        "peer-0-status.json",
        "peer-0-metrics.txt",
        "peer-0.log",
    }
    assert "managedFields" not in (folder / "game.json").read_text(encoding="utf-8")
    assert result.output.count("through the API server's proxy") == 2


def test_an_incomplete_report_fails_and_names_what_is_missing_and_why(kubectl: CliRunner, tmp_path: Path) -> None:
    result = kubectl.invoke(application, ["report", "sums", "--peer", "1", "-n", "team", "-o", str(tmp_path)])
    assert result.exit_code == 69
    assert "peer-1-status.json: not fetched; NotFound" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["status", "missing", "-n", "team"], 66, "there is no game missing in namespace team"),
        (["logs", "sums", "--peer", "9", "-n", "team"], 66, "peer 9 of team/sums has no pod"),
        (["status", "-n", "elsewhere"], 66, "is the definition of SwarmGame installed?"),
        (["status", "--context", "none"], 78, "the kubeconfig cannot be used"),
    ],
)
def test_a_failure_is_one_line_with_what_to_do(kubectl: CliRunner, arguments: list[str], code: int, text: str) -> None:
    result = kubectl.invoke(application, arguments)
    assert (result.exit_code, text in result.output) == (code, True), result.output
    assert "Traceback" not in result.output


def test_help_teaches_by_example() -> None:
    for command in ("status", "logs", "peers", "report"):
        assert f"kubectl swarmgame {command} sums" in CliRunner().invoke(application, [command, "--help"]).output


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d"), (-5, "0s")]
)
def test_ages_are_short(seconds: float, shown: str) -> None:
    assert view.duration(seconds) == shown


def test_a_game_without_a_status_is_shown_with_dashes() -> None:
    console = Console(width=160, record=True)
    console.print(view.games([{"metadata": {"name": "new", "namespace": "n"}}], NOW))
    assert next(line for line in console.export_text().splitlines() if "new" in line).split() == [
        "n",
        "new",
        "-",
        "-",
        "0/0",
        "0/-",
        "-",
        "-",
    ]
