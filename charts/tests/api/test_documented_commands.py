"""The commands of the guide and the runbooks, run unchanged on a real API server that has the guide's games.

Only those that need no pod: get, scale, patch, label, create. Each must succeed and have its effect.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_servers import ApiServer
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from polling import until
from rendered import CHARTS

from native_cluster import tools

ROOT = CHARTS.parent
GUIDE = ROOT / "docs" / "guide" / "kubernetes.md"
PAGES = [GUIDE, ROOT / "docs" / "guide" / "platforms.md", *sorted((ROOT / "docs" / "runbooks").glob("*.md"))]
WITHOUT_PODS = ("get", "events", "scale", "patch", "label", "create", "apply")
WHERE = ("swarmgame.dev", "v1alpha1", "default", "swarmgames")


def commands(page: Path) -> list[str]:
    """Every command of the page that needs no pod, in the page's order."""
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    verbs = re.compile(rf"^kubectl (?:-n \S+ )?({'|'.join(WITHOUT_PODS)})\b")
    return [line for line in lines if verbs.match(line) and "--watch" not in line]


def run(server: ApiServer, command: str, folder: Path) -> str:
    variables = {
        "KUBECONFIG": str(server.kubeconfig),
        "NAMESPACE": "default",
        "GAME": "quickstart",
        "HF_TOKEN": "t",
        "HOME": str(folder),
    }
    path = f"{tools.tool('kubectl').parent}:{os.environ['PATH']}"
    script = f"set -euo pipefail\n{command}"
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": path, **variables}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def games(installed: ApiServer, definition: Callable[[], Any], tmp_path: Path) -> Path:
    """The folder to run the commands in; the server holds the quickstart and the guide's games."""
    assert definition()
    for name in ("sums.py", "rpc-url.txt", "gateway.key"):
        (tmp_path / name).write_text("x")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    texts = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    texts.append((ROOT / "examples" / "01-quickstart" / "game.yaml").read_text())
    with installed.client() as connection:
        api = client.CustomObjectsApi(connection)
        for text in texts:
            until(lambda text=text: _made(api, yaml.safe_load(text)))
    return tmp_path


def _made(api: client.CustomObjectsApi, game: dict[str, Any]) -> bool:
    try:
        api.create_namespaced_custom_object(*WHERE, game)
    except ApiException as problem:  # just established: not served yet
        if problem.status != 404:
            raise
        return False
    return True


def test_the_pages_have_commands() -> None:
    assert len(commands(GUIDE)) > 10
    assert sum(len(commands(page)) for page in PAGES) > 20


def test_every_command_that_needs_no_pod_succeeds(installed: ApiServer, games: Path) -> None:
    answer = {command: run(installed, command, games) for page in PAGES for command in commands(page)}
    assert "quickstart" in answer["kubectl get sg quickstart -o wide"]
    with installed.client() as connection:
        game = client.CustomObjectsApi(connection).get_namespaced_custom_object(*WHERE, "quickstart")
        secrets = {
            each.metadata.name: set(each.data)
            for each in client.CoreV1Api(connection).list_namespaced_secret("default").items
        }
    assert game["spec"]["peers"]["replicas"] == 6
    assert game["spec"]["suspend"] is False
    assert game["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert secrets.items() >= {"hf-token": {"token"}, "rpc": {"url"}, "wallet": {"key"}}.items()
