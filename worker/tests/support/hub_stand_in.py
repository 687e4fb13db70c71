"""A stand-in for the hub over HTTP: what a client needs to create a model and upload files to it."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_test-token-of-the-stand-in"
COMMIT = "0" * 40


class HubStandIn(ThreadingHTTPServer):
    """Keeps models by name: whether each is private, and its files. Only `TOKEN` may write, in the name `me`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, Any]] = {}
        self.commits: list[str] = []
        self.requests: list[str] = []
        self.failing = 0
        """A status for every commit, instead of taking it."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Serve one until the block ends."""
    server = HubStandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files} if found[1] in self.server.models else {"error": "missing"})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._answer(404, {"error": f"the stand-in has no {path}"})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"GET {path}")
        name = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path)
        if name is None or name[1] not in self.server.models:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        model = self.server.models[name[1]]
        siblings = [{"rfilename": file} for file in model["files"]]
        self._answer(200, {"id": name[1], "private": model["private"], "sha": COMMIT, "siblings": siblings, "tags": []})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if not name.startswith("me/"):
            self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        known = name in self.server.models
        if not known:
            private = wanted.get("private", wanted.get("visibility") == "private")
            self.server.models[name] = {"private": bool(private), "files": {}}
        address = f"{self.server.address}/{name}"
        self._answer(409 if known else 200, {"url": address, "name": name, **({"error": "exists"} if known else {})})

    def _commit(self, name: str, body: bytes) -> None:
        if self.server.failing:
            self._answer(self.server.failing, {"error": "the stand-in takes no commit"})
            return
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.models[name]["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "header":
                self.server.commits.append(entry["value"]["summary"])
        address = f"{self.server.address}/{name}/commit/{COMMIT}"
        self._answer(200, {"commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)
