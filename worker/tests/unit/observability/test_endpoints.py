"""The contract of a peer's endpoints, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from swarmgame.errors import Temporary
from swarmgame.observability.connection_limits import ConnectionBounds, ConnectionLimits
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metrics import PeerMetrics
from swarmgame.observability.status import DRAIN_SECONDS, PeerStatus, Phase


class Peer:
    def __init__(self, bounds: ConnectionBounds | None = None) -> None:
        self.status = PeerStatus(index=3, max_rounds=10, version="1.2.3")
        self.metrics = PeerMetrics(peer="16Uiu2HA", index=3, version="1.2.3")
        self.dead = ""
        self.endpoints = Endpoints(self.status, self.metrics, dead=lambda: self.dead, bounds=bounds)
        self.port = self.endpoints.start()

    def request(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            return answer.status, answer.read()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.endpoints.stop()


@pytest.mark.parametrize("phase", list(Phase))
def test_health_does_not_depend_on_the_phase_of_the_game(peer: Peer, phase: Phase) -> None:
    peer.status.change(phase=phase)
    assert peer.request("/healthz")[0] == 200


def test_health_fails_with_the_reason_when_something_is_dead(peer: Peer) -> None:
    peer.dead = "the event loop of the swarm has stopped"
    status, body = peer.request("/healthz")
    assert status == 503
    assert json.loads(body)["reason"] == "the event loop of the swarm has stopped"


@pytest.mark.parametrize(
    ("phase", "registered", "expected"),
    [
        (Phase.STARTING, None, 503),
        (Phase.JOINING, None, 503),
        (Phase.RUNNING, None, 200),
        (Phase.RUNNING, True, 200),
        (Phase.RUNNING, False, 503),
        (Phase.STOPPING, True, 503),
        (Phase.FINISHED, True, 503),
        (Phase.FAILED, True, 503),
    ],
)
def test_ready_means_in_the_swarm_and_registered_where_that_is_required(
    peer: Peer, phase: Phase, registered: bool | None, expected: int
) -> None:
    peer.status.change(phase=phase, registered=registered)
    status, body = peer.request("/readyz")
    assert status == expected
    answer = json.loads(body)
    assert answer["ready"] is (expected == 200)
    assert bool(answer["reason"]) is (expected != 200)


@pytest.mark.parametrize(
    ("phase", "registered", "expected"),
    [
        (Phase.STARTING, None, 503),
        (Phase.JOINING, None, 503),
        (Phase.RUNNING, None, 200),
        (Phase.RUNNING, False, 503),
        (Phase.FINISHED, None, 200),
        (Phase.STOPPING, None, 200),
        (Phase.FAILED, None, 503),
    ],
)
def test_a_pod_that_was_ready_stays_so_to_its_usual_end(
    peer: Peer, phase: Phase, registered: bool | None, expected: int
) -> None:
    peer.status.change(phase=phase, registered=registered)
    assert peer.request("/readyz?stopping=ready")[0] == expected
    peer.status.drain()
    assert peer.request("/readyz?stopping=ready")[0] == (200 if phase is Phase.RUNNING else expected)


def test_a_stopping_peer_says_why_it_is_not_ready(peer: Peer) -> None:
    peer.status.change(phase=Phase.RUNNING)
    peer.status.stopping("SIGTERM")
    assert json.loads(peer.request("/readyz")[1])["reason"] == "the peer is stopping: SIGTERM"


def test_a_peer_that_is_about_to_be_stopped_is_not_ready_for_a_minute_and_no_longer(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No longer, because a pod's hook can only GET, and so can any client that reaches the port."""
    peer.status.change(phase=Phase.RUNNING)
    assert peer.request("/readyz")[0] == 200
    assert peer.request("/drain")[0] == 200
    assert json.loads(peer.request("/readyz")[1]) == {"ready": False, "reason": "the peer is about to be stopped"}
    assert peer.request("/healthz")[0] == 200
    assert json.loads(peer.request("/status")[1])["phase"] == "running"
    later = time.time() + DRAIN_SECONDS + 1
    monkeypatch.setattr("swarmgame.observability.status.time.time", lambda: later)
    assert peer.request("/readyz")[0] == 200


def test_status_is_the_snapshot_as_json(peer: Peer) -> None:
    peer.status.change(phase=Phase.RUNNING, round=4, members=("a", "b"), reward=0.5)
    status, body = peer.request("/status")
    assert status == 200
    shown = json.loads(body)
    assert (shown["phase"], shown["round"], shown["members"], shown["reward"]) == ("running", 4, ["a", "b"], 0.5)
    assert (shown["index"], shown["max_rounds"], shown["version"], shown["ready"]) == (3, 10, "1.2.3", True)


def test_metrics_are_in_the_text_format_of_prometheus(peer: Peer) -> None:
    peer.metrics["round"].set(7)
    status, body = peer.request("/metrics")
    assert status == 200
    assert b"swarmgame_worker_round 7.0" in body
    assert b'swarmgame_worker_info{index="3",peer="16Uiu2HA",version="1.2.3"} 1.0' in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_methods_that_write_are_refused(peer: Peer, method: str) -> None:
    assert peer.request("/status", method)[0] == 405


def test_a_body_is_refused_without_being_read(peer: Peer) -> None:
    with closing(socket.create_connection(("127.0.0.1", peer.port), timeout=10)) as connection:
        connection.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "request_text",
    [b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"],
    ids=["long line", "long header"],
)
def test_an_overlong_request_is_refused_and_the_server_goes_on(peer: Peer, request_text: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", peer.port), timeout=10)) as connection:
        connection.sendall(request_text)
        assert connection.recv(4096).startswith(b"HTTP/1.0 400")
    assert peer.request("/healthz")[0] == 200


def refused(peer: Peer) -> dict[str, int]:
    found: dict[str, int] = json.loads(peer.request("/status")[1])["refused_connections"]
    return found


def counted(peer: Peer) -> dict[str, int]:
    """Return the same without a request, which itself may be closed where the bounds are short."""
    return dict(peer.endpoints._limits.refused)


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes a connection."""
    connection.settimeout(10.0)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "start", [b"", b"GET /sta", b"GET /status HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "line", "head"]
)
def test_a_connection_without_a_complete_request_is_closed(start: bytes) -> None:
    peer = Peer(ConnectionBounds(request_seconds=0.05))
    try:
        with closing(socket.create_connection(("127.0.0.1", peer.port))) as connection:
            connection.sendall(start)
            assert is_closed(connection)
        assert counted(peer) == {"no-request": 1}
    finally:
        peer.endpoints.stop()


def test_a_client_that_does_not_read_its_answers_is_closed() -> None:
    peer = Peer(ConnectionBounds(request_seconds=0.05, seconds=0.2))
    peer.status.change(addresses=("/ip4/192.0.2.1/tcp/1" + "0" * 200_000,))
    try:
        with closing(socket.create_connection(("127.0.0.1", peer.port))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
            deadline = time.monotonic() + 10.0
            while "too-slow" not in counted(peer):
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        peer.endpoints.stop()


def test_idle_connections_keep_no_other_client_out() -> None:
    peer = Peer(ConnectionBounds(total=8, host=8, request_seconds=0.5))
    idle = [socket.create_connection(("127.0.0.1", peer.port)) for _ in range(60)]
    try:
        assert all(map(is_closed, idle))
        found = refused(peer)
        assert (sum(found.values()), set(found)) == (60, {"too-many", "no-request"})
        for _ in range(20):
            assert peer.request("/healthz")[0] == 200
    finally:
        for connection in idle:
            connection.close()
        peer.endpoints.stop()


def test_one_host_has_a_part_of_the_connections() -> None:
    limits = ConnectionLimits(ConnectionBounds(total=5, host=3))
    assert [limits.enter("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert [limits.enter("192.0.2.2") for _ in range(3)] == [True, True, False]
    limits.leave("192.0.2.1")
    assert limits.enter("192.0.2.2")


def test_a_connection_that_is_used_again_and_again_is_kept(peer: Peer) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", peer.port, timeout=10)) as connection:
        for _ in range(30):
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
    assert refused(peer) == {}


def test_an_unknown_path_is_not_found(peer: Peer) -> None:
    assert peer.request("/admin")[0] == 404


def test_a_taken_port_is_a_temporary_error_that_names_it(peer: Peer) -> None:
    with pytest.raises(Temporary, match=f"127.0.0.1:{peer.port}"):
        Endpoints(peer.status, peer.metrics, port=peer.port).start()


def test_stopping_twice_and_without_a_start_is_harmless(peer: Peer) -> None:
    Endpoints(peer.status, peer.metrics).stop()
    peer.endpoints.stop()
    peer.endpoints.stop()
    with pytest.raises(ConnectionRefusedError):
        peer.request("/healthz")
