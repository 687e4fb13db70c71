"""A peer's reporter: no report is lost without being counted, whatever the node and the gateway do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from chain_crowd import peer, secret

from swarmgame_chain import reporter as module
from swarmgame_chain.errors import ChainRefused, ChainUnreachable
from swarmgame_chain.messages import Commit, Domain, Registration, Report, sign_registration, sign_report
from swarmgame_chain.pending import PendingMessages
from swarmgame_chain.reporter import ChainReporter, ReporterStatus, to_millionths

DOMAIN = Domain(31337, "0x" + "11" * 20)
UNREACHABLE = "http://127.0.0.1:9"


class FakeGateway:
    """A gateway that answers each message with a state, and keeps the bodies and connections that it received."""

    def __init__(self, port: int = 0) -> None:
        self.state: Callable[[str, dict[str, Any]], str] = lambda path, message: "final"
        self.bodies: list[tuple[str, Any]] = []
        self.connections = 0
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                gateway.connections += 1
                super().setup()

            def do_POST(self) -> None:
                path = self.path.removeprefix("/v1/")
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                gateway.bodies.append((path, body))
                messages = [{}] * len(body["ids"]) if path == "lookups" else body
                answer = json.dumps({"messages": [{"state": gateway.state(path, each)} for each in messages]}).encode()
                self.send_response(202)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def received(self, path: str) -> list[list[dict[str, Any]]]:
        return [body for each, body in self.bodies if each == path]


@contextmanager
def running(fake: FakeGateway) -> Iterator[FakeGateway]:
    threading.Thread(target=fake.server.serve_forever, daemon=True).start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running(FakeGateway()) as fake:
        yield fake


class FakeContract:
    """Stands for the node: what the reporter reads from the contract at its start."""

    def __init__(self) -> None:
        self.sealed = False
        self.error: Exception | None = None

    async def read_terms(self, coordinator: object) -> tuple[tuple[str, ...], bool]:
        if self.error is not None:
            raise self.error
        return ("/ip4/10.0.0.1/tcp/1/p2p/x",), self.sealed


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> FakeContract:
    fake = FakeContract()
    monkeypatch.setattr(module, "read_terms", fake.read_terms)
    return fake


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def make(url: str, **options: Any) -> ChainReporter:
    return ChainReporter(UNREACHABLE, DOMAIN, secret(1), url, **options)


def test_a_report_just_before_the_end_is_submitted(gateway: FakeGateway, contract: FakeContract) -> None:
    reporter = make(gateway.url)
    assert reporter.start() == ("/ip4/10.0.0.1/tcp/1/p2p/x",)
    assert reporter.wait_until_registered(30)
    reporter._call_in_thread(lambda: time.sleep(0.2))  # the thread is busy while the report is queued
    reporter.report(0, 0.5)
    status = reporter.finish(30)
    assert (status.final, status.waiting) == (2, 0)
    assert not reporter._thread.is_alive()


def test_one_thread_and_one_connection_do_all_of_it(gateway: FakeGateway, contract: FakeContract) -> None:
    before = threading.active_count()
    reporter = make(gateway.url)
    reporter.start()
    assert reporter.wait_until_registered(30)
    for round in range(3):
        reporter.report(round, 0.5)
        until(lambda: not reporter.pending())
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("chain")}
    assert (names, gateway.connections) == ({"chain-reporter"}, 1)
    reporter.stop()
    until(lambda: threading.active_count() <= before + 1)  # the fake gateway's own


def test_a_restarted_gateway_gets_the_old_reports_before_the_new_one(
    gateway: FakeGateway, contract: FakeContract
) -> None:
    """The contract takes no report that is older than the peer's last one."""
    gateway.state = lambda path, message: "final" if path == "registrations" else "queued"
    reporter = make(gateway.url)
    reporter.start()
    for round in (0, 1, 2):
        reporter.report(round, 0.5)
        until(lambda: round in [sent["round"] for body in gateway.received("reports") for sent in body])  # noqa: B023
    # Each submission holds all that is not over, oldest first, so a gateway that remembers nothing gets all of it.
    assert [sent["round"] for sent in gateway.received("reports")[-1]] == [0, 1, 2]
    reporter.stop()


@pytest.mark.parametrize("lost", ["unknown", "dropped"])
def test_what_a_gateway_has_lost_is_submitted_again(gateway: FakeGateway, contract: FakeContract, lost: str) -> None:
    def state(path: str, message: dict[str, Any]) -> str:
        if path == "lookups":
            return lost
        return "final" if path == "registrations" or len(gateway.received("reports")) > 1 else "queued"

    gateway.state = state
    reporter = make(gateway.url)
    reporter.start()
    reporter.report(0, 0.5)
    assert reporter.finish(30).final == 2
    assert len(gateway.received("reports")) == 2


def test_an_unreachable_gateway_delays_nothing_and_drops_are_counted_and_logged(
    contract: FakeContract, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = make(UNREACHABLE)
    reporter.start()
    start = time.monotonic()
    for round in range(1_200):
        reporter.report(round, 0.5)
    assert (time.monotonic() - start) / 1_200 < 0.01
    until(lambda: "the gateway does not answer" in reporter.status().problem)
    assert not reporter.wait_until_registered(0)
    status = reporter.finish(0.0)
    assert (status.waiting, status.dropped) == (1_000, 201)
    assert "201" not in caplog.text
    assert "200 messages to the chain were dropped" in caplog.text
    assert "1000 messages did not reach the chain: the gateway does not answer" in caplog.text


def test_a_gateway_that_comes_back_gets_everything(contract: FakeContract) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    reporter = make(f"http://127.0.0.1:{port}")
    reporter.start()
    reporter.report(0, 0.5)
    until(lambda: reporter.status().problem)
    with running(FakeGateway(port)):
        status = reporter.finish(30)
    assert (status.final, status.waiting, status.dropped, status.problem) == (2, 0, 0, "")


def test_a_node_that_answers_late_loses_no_report_and_a_sealed_swarm_commits_each(
    gateway: FakeGateway, contract: FakeContract
) -> None:
    contract.error, contract.sealed = ChainUnreachable("away"), True
    changes: list[ReporterStatus] = []
    reporter = make(gateway.url, on_change=changes.append)
    assert reporter.start() == ()
    for round in range(3):
        reporter.report(round, float("nan"), (peer(1), peer(2)))
    status = reporter.status()
    assert (status.registered, status.waiting, status.problem) == (False, 3, "the node does not answer")
    assert gateway.bodies == []
    contract.error = None
    assert reporter.wait_until_registered(30)
    assert reporter.finish(30).final == 7
    ((registration,),) = gateway.received("registrations")
    assert registration["deadline"] > time.time()
    reports = [sent for body in gateway.received("reports") for sent in body]
    assert [(sent["round"], sent["reward"], sent["winners"]) for sent in reports] == [
        (round, 0, [peer(2)]) for round in range(3)
    ]
    assert [sent["round"] for body in gateway.received("commits") for sent in body] == [0, 1, 2]
    assert changes[-1].final == 7


def test_the_wrong_chain_is_refused_at_the_start_and_only_logged_later(
    gateway: FakeGateway, contract: FakeContract, caplog: pytest.LogCaptureFixture
) -> None:
    contract.error = ChainRefused("the node is of chain 7; expected chain 31337")
    with pytest.raises(ChainRefused, match="the node is of chain 7"):
        make(gateway.url).start()
    contract.error = ChainUnreachable("away")
    reporter = make(gateway.url)
    reporter.start()
    contract.error = ChainRefused("the node is of chain 7; expected chain 31337")
    until(lambda: "of chain 7" in reporter.status().problem)
    reporter.report(0, 0.5)
    assert reporter.finish(0.0).waiting == 1
    assert "the chain is not the expected one" in caplog.text
    assert gateway.bodies == []


def test_a_chain_that_does_not_answer_admits_only_this_peer() -> None:
    reporter = make(UNREACHABLE)
    assert reporter.start() == ()
    assert reporter.admits(peer(1))
    assert not reporter.admits(peer(2))
    assert not reporter.wait_until_registered(60, lambda: True)
    reporter.report(0, 0.5)
    assert reporter.finish(60, lambda: True).waiting == 1
    reporter.stop()


def test_text_that_is_not_a_peer_id_is_not_checked_on_chain() -> None:
    reporter = make(UNREACHABLE)
    assert not any(reporter.admits(text) for text in ("", "\ud800", "x" * 10_000, "QmMissing"))
    assert not reporter._unknown
    for number in range(module.MAX_UNKNOWN + 10):
        reporter.admits(peer(number))
    assert len(reporter._unknown) == module.MAX_UNKNOWN


@pytest.mark.parametrize(
    ("reward", "expected"), [(0.25, 250_000), (-1.0, -1_000_000), (float("nan"), 0), (float("inf"), 0), (1e80, 0)]
)
def test_a_reward_is_recorded_in_millionths(reward: float, expected: int) -> None:
    assert to_millionths(reward) == expected


# ── the pending messages


def registration() -> Registration:
    return sign_registration(DOMAIN, secret(1), deadline=99)


def report(round: int) -> Report:
    return sign_report(DOMAIN, secret(1), peer=peer(1), round=round, reward=1)


def test_a_full_buffer_drops_the_oldest_report_and_never_the_registration() -> None:
    pending = PendingMessages(capacity=3)
    for number, message in enumerate((registration(), *map(report, range(4)))):
        pending.add(str(number), message)
    assert [each.id for each in pending.messages] == ["0", "3", "4"]
    assert pending.dropped == 2


def test_a_message_ends_once_and_an_answer_after_its_drop_does_not_count() -> None:
    pending = PendingMessages(capacity=1)
    pending.add("a", report(0))
    (first,) = pending.to_submit(Report)
    assert pending.to_submit(Commit) == []
    pending.apply(first, {"state": "queued"})
    assert pending.to_submit(Report) == []
    assert pending.in_transit() == [first]
    pending.add("b", report(1))
    pending.apply(first, {"state": "final"})
    (second,) = pending.to_submit(Report)
    pending.apply(second, {"state": "rejected", "reason": "UnknownPeer"})
    pending.apply(second, {"state": "final"})
    assert (pending.final, pending.dropped, pending.rejected_count, pending.rejected) == (0, 1, 1, "UnknownPeer")


def test_a_registration_that_a_gateway_takes_later_is_submitted_again() -> None:
    pending = PendingMessages()
    pending.add("r", registration())
    (first,) = pending.to_submit(Registration)
    pending.apply(first, {"state": "rejected", "reason": "TooManyRegistrations"})
    assert pending.to_submit(Registration) == [first]
    assert (pending.rejected_count, pending.registered) == (0, False)
    pending.apply(first, {"state": "final"})
    assert (pending.final, pending.registered, len(pending)) == (1, True, 0)
