"""A peer's voice in a thread of its own: what was said is handed in, however soon the peer stops."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import aiohttp
import pytest
from chain_crowd import secret

from swarmgame_chain import client
from swarmgame_chain.client import PeerOnChain
from swarmgame_chain.messages import Domain
from swarmgame_chain.voice import Voice


class Agreeable(BaseHTTPRequestHandler):
    """A gateway for which every message is final at once."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"messages": [{"state": "final"}] * len(said)}).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def gateway() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Agreeable) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_what_was_said_just_before_the_end_is_handed_in(gateway: str) -> None:
    voice = Voice(Domain(31337, "0x" + "11" * 20), secret(1), gateway)
    voice.start()
    assert voice.wait_until_registered(30)
    voice._loop.call_soon_threadsafe(time.sleep, 0.2)  # the thread is busy: the report is not in line when stop begins
    voice.report(0, 0.5)
    standing = voice.stop(30)
    assert (standing.final, standing.waiting) == (2, 0)


class Forgetful:
    """A gateway that carries nothing yet, and remembers only what it was handed since it was last killed."""

    def __init__(self) -> None:
        self.remembered: list[int] = []

    async def post(self, session: object, url: str, body: Any) -> list[dict[str, str]]:
        if url.endswith("/lookups"):
            return [{"state": "queued"} for _ in body["ids"]]
        if url.endswith("/reports"):
            self.remembered += [said["round"] for said in body if said["round"] not in self.remembered]
        return [{"state": "final" if url.endswith("/registrations") else "queued"} for _ in body]


async def test_a_gateway_that_was_killed_hears_the_old_reports_before_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The contract takes no report that is older than the peer's last."""
    gateway, session = Forgetful(), cast(aiohttp.ClientSession, None)
    monkeypatch.setattr(client, "_post", gateway.post)
    peer = PeerOnChain(Domain(31337, "0x" + "11" * 20), secret(1), "http://gateway")
    peer.register()
    for round in (0, 1):
        peer.report(round, 0.5)
        await peer.step(session)
    gateway.remembered = []
    peer.report(2, 0.5)
    await peer.step(session)
    assert gateway.remembered == [0, 1, 2]
