"""The initializer and a model of the hub: fetched once, whole but for what nobody needs, and then there without the
hub.

The hub is a server of the test's own that speaks the part of its protocol that a download needs.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from running import EXAMPLES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"again",
    "big.onnx": b"never",
}


class Hub(BaseHTTPRequestHandler):
    """One model, `org/name`."""

    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")  # type: ignore[attr-defined]
        if path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            self._send(200, json.dumps(tree).encode(), body=body)
        elif path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode(), body=body)
        elif (
            path.startswith(f"/org/name/resolve/{COMMIT}/")
            and (content := FILES.get(path.rpartition("/")[2])) is not None
        ):
            self._send(200, content, body=body, etag=f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self._send(404, b"", body=body, error="RepoNotFound")

    def _send(self, status: int, content: bytes, *, body: bool, etag: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in (("ETag", etag), ("X-Error-Code", error)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def initialize(folder: Path, uri: str, hub: str, **environment: str) -> subprocess.CompletedProcess[str]:
    data = yaml.safe_load((EXAMPLES / "03-digits" / "game.yaml").read_text())
    data["spec"]["model"] = {"uri": uri}
    (folder / "game.yaml").write_text(yaml.safe_dump(data))
    told = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "HF_HOME": str(folder / "huggingface"),
        "HF_ENDPOINT": hub,
        "SWARMGAME_GAME": str(folder / "game.yaml"),
        "SWARMGAME_TERMINATION_LOG": str(folder / "said"),
    }
    command = [sys.executable, "-m", "swarmgame", "pod", "initialize"]
    return subprocess.run(command, env=told | environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_model_of_the_hub_is_fetched_once_and_is_there_without_it(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    done = initialize(tmp_path, "hf://org/name", address)
    assert done.returncode == 0, done.stderr
    asked: list[str] = hub.asked  # type: ignore[attr-defined]
    fetched = {each.rpartition("/")[2] for each in asked if each.startswith("GET /org/name/resolve")}
    assert fetched == {"config.json", "tokenizer.json", "model.safetensors"}
    (snapshot,) = (tmp_path / "huggingface" / "hub" / "models--org--name" / "snapshots").iterdir()
    assert (snapshot / "model.safetensors").read_bytes() == b"weights"

    asked.clear()
    again = initialize(tmp_path, "hf://org/name", address)
    assert again.returncode == 0, again.stderr
    assert not [each for each in asked if each.startswith("GET /org/name/resolve")], "nothing is fetched twice"
    offline = initialize(tmp_path, "hf://org/name", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_a_model_that_is_not_there_is_the_manifests_mistake_and_a_hub_that_is_away_is_not(
    tmp_path: Path, hub: ThreadingHTTPServer
) -> None:
    nobody = initialize(tmp_path, "hf://org/nobody", f"http://127.0.0.1:{hub.server_address[1]}")
    assert nobody.returncode == 78, nobody.stderr
    assert 'spec.model.uri is "hf://org/nobody"' in (tmp_path / "said").read_text()
    away = initialize(tmp_path, "hf://org/name", "http://127.0.0.1:9")
    assert away.returncode == 75, away.stderr
    assert "hf://org/name could not be fetched" in (tmp_path / "said").read_text()
