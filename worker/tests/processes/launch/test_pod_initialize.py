"""The initializer and a model of the hub: fetched once, without the files that are not needed, and then usable
offline.

The hub is a server of the test, which implements the part of the protocol that a download needs.
"""

from __future__ import annotations

import hashlib
import json
import os
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

    requested: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requested.append(f"{self.command} {path}")  # type: ignore[attr-defined]
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
    server.requested = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def initialize(folder: Path, uri: str, hub: str, **environment: str) -> subprocess.CompletedProcess[str]:
    data = yaml.safe_load((EXAMPLES / "03-digits" / "game.yaml").read_text())
    data["spec"]["model"] = {"uri": uri}
    (folder / "game.yaml").write_text(yaml.safe_dump(data))
    base = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(folder),
        "HF_HOME": str(folder / "huggingface"),
        "HF_ENDPOINT": hub,
        "SWARMGAME_GAME": str(folder / "game.yaml"),
        "SWARMGAME_TERMINATION_LOG": str(folder / "termination"),
    }
    command = [sys.executable, "-m", "swarmgame", "pod", "initialize"]
    return subprocess.run(command, env=base | environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_model_of_the_hub_is_fetched_once_and_then_usable_offline(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    done = initialize(tmp_path, "hf://org/name", address)
    assert done.returncode == 0, done.stderr
    requested: list[str] = hub.requested  # type: ignore[attr-defined]
    fetched = {each.rpartition("/")[2] for each in requested if each.startswith("GET /org/name/resolve")}
    assert fetched == {"config.json", "tokenizer.json", "model.safetensors"}
    (snapshot,) = (tmp_path / "huggingface" / "hub" / "models--org--name" / "snapshots").iterdir()
    assert (snapshot / "model.safetensors").read_bytes() == b"weights"

    requested.clear()
    again = initialize(tmp_path, "hf://org/name", address)
    assert again.returncode == 0, again.stderr
    assert not [each for each in requested if each.startswith("GET /org/name/resolve")], "nothing is fetched twice"
    offline = initialize(tmp_path, "hf://org/name", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_a_missing_model_ends_with_78_and_a_hub_that_does_not_answer_with_75(
    tmp_path: Path, hub: ThreadingHTTPServer
) -> None:
    missing = initialize(tmp_path, "hf://org/missing", f"http://127.0.0.1:{hub.server_address[1]}")
    assert missing.returncode == 78, missing.stderr
    assert 'spec.model.uri is "hf://org/missing"' in (tmp_path / "termination").read_text()
    away = initialize(tmp_path, "hf://org/name", "http://127.0.0.1:9")
    assert away.returncode == 75, away.stderr
    assert "hf://org/name could not be fetched" in (tmp_path / "termination").read_text()
