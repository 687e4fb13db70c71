"""Probes that report nothing of a usual start or end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from golden_games import GAMES, written_manifests

from swarmgame_operator.plan.pod import waiting_probe
from swarmgame_operator.plan.sampler import startup_probe


@contextmanager
def serving(answers: dict[str, list[int]]) -> Iterator[int]:
    """Serve these statuses by path: one a request, the last for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = answers[self.path]
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Write nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def waits(port: int, seconds: float) -> int:
    """Run the probe's command as a kubelet does, and return its exit code."""
    _, *arguments, _ = waiting_probe(port)["exec"]["command"]
    command = [sys.executable, *arguments, str(seconds)]
    return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode


def test_the_startup_probe_waits_until_the_container_is_ready() -> None:
    answers = {"/readyz": [503, 200], "/healthz": [200]}
    with serving(answers) as port:
        assert waits(port, 20.0) == 0
    assert answers["/readyz"] == [200], "it asked again after the first answer"


@pytest.mark.parametrize(("alive", "expected"), [(200, 0), (503, 1)])
def test_when_its_time_is_over_it_succeeds_if_the_container_is_alive(alive: int, expected: int) -> None:
    with serving({"/readyz": [503], "/healthz": [alive]}) as port:
        assert waits(port, 0.0) == expected


def test_nothing_that_listens_is_a_failure_at_the_end() -> None:
    with serving({}) as port:
        pass
    assert waits(port, 0.0) == 1


@pytest.mark.parametrize(("answers", "seconds", "expected"), [([503, 503, 200], 20.0, 0), ([503], 0.0, 1)])
def test_the_probe_of_the_generation_server_waits_for_its_answer(
    answers: list[int], seconds: float, expected: int
) -> None:
    _, *arguments, _, _ = startup_probe(60)["exec"]["command"]
    with serving({"/health": answers}) as port:
        command = [sys.executable, *arguments, f"http://127.0.0.1:{port}/health", str(seconds)]
        assert subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == expected


@pytest.mark.parametrize(
    ("seconds", "attempts", "wait"), [(1, 1, 1), (540, 1, 540), (900, 2, 450), (1800, 4, 450), (86_400, 160, 540)]
)
def test_the_generation_server_has_its_time_in_few_long_attempts(seconds: int, attempts: int, wait: int) -> None:
    probe = startup_probe(seconds)
    assert probe["failureThreshold"] == attempts
    assert int(probe["exec"]["command"][-1]) == wait
    assert probe["timeoutSeconds"] > wait
    assert attempts * wait >= seconds


@pytest.mark.parametrize("name", GAMES)
def test_no_startup_probe_of_a_game_is_repeated_and_readiness_does_not_end_with_the_round(name: str) -> None:
    found = [
        container
        for manifest in written_manifests(GAMES[name])
        for container in (manifest.get("spec", {}).get("template", {}).get("spec", {}) or {}).get("containers", ())
        if container["name"] in ("peer", "bootnode", "gateway")
    ]
    assert found
    for container in found:
        assert "exec" in container["startupProbe"], container["name"]
        assert container["startupProbe"]["timeoutSeconds"] > int(container["startupProbe"]["exec"]["command"][-1])
        if container["name"] != "gateway":
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz?stopping=ready"
