"""A peer's reporter: no report is lost without being counted, whatever the node and the gateway do."""

from __future__ import annotations

import asyncio
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
from fake_node import fake_node

from swarmgame_chain import reporter as module
from swarmgame_chain.errors import ChainRefused, ChainUnreachable
from swarmgame_chain.messages import Domain
from swarmgame_chain.reporter import ChainReporter, ReporterStatus, to_millionths

DOMAIN = Domain(31337, "0x" + "11" * 20)
UNREACHABLE = "http://127.0.0.1:9"


class FakeGateway:
    """A gateway that answers each message with a state, and keeps the bodies and connections that it received."""

    def __init__(self, port: int = 0) -> None:
        self.state: Callable[[str, dict[str, Any]], str] = lambda path, message: "final"
        self.answer: Callable[[str, dict[str, Any]], dict[str, str]] = lambda path, message: {
            "state": self.state(path, message)
        }
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
                answer = json.dumps({"messages": [gateway.answer(path, each) for each in messages]}).encode()
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
    for round in range(5_200):
        reporter.report(round, 0.5)
    assert (time.monotonic() - start) / 5_200 < 0.01
    until(lambda: "the gateway does not answer" in reporter.status().problem)
    assert not reporter.wait_until_registered(0)
    status = reporter.finish(0.0)
    assert (status.waiting, status.dropped) == (5_000, 201)
    assert "201" not in caplog.text
    assert "200 messages to the chain were dropped" in caplog.text
    assert "5000 messages did not reach the chain: the gateway does not answer" in caplog.text


def test_a_reporter_that_finishes_asks_a_gateway_that_was_away_without_its_long_pause(
    gateway: FakeGateway, contract: FakeContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, refusals = module.post, 1

    async def refused(*arguments: Any) -> list[dict[str, str]]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError("away")
        return await sent(*arguments)

    monkeypatch.setattr(module, "post", refused)
    monkeypatch.setattr(module, "POLL_SECONDS", 1e5)
    monkeypatch.setattr(module, "MAX_BACKOFF", 1e6)
    reporter = make(gateway.url)
    reporter.start()
    until(lambda: "does not answer: away" in reporter.status().problem)
    refusals = 2
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    assert reporter.finish(60).waiting == 0
    assert refusals == 0


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


async def test_a_node_that_answers_nonsense_delays_admission_and_does_not_end_the_thread(
    gateway: FakeGateway, contract: FakeContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    proven = "0x" + "".join(f"{number:064x}" for number in (32, 1, 1, 9, 1, 0, 0, 0, 0, 0, 0, 352, 0))
    async with fake_node() as node:
        reporter = ChainReporter(node.url, DOMAIN, secret(1), gateway.url)
        await asyncio.to_thread(reporter.start)
        answers = ({"result": None}, {"result": 7}, {"result": "0x"}, {"result": "0x" + "f" * 832}, {"error": []})
        for answer in (*answers, {"result": proven}):
            node.answer = lambda method, parameters, answer=answer: answer  # type: ignore[misc]
            before = len(node.calls)
            admitted = reporter.admits(peer(2))
            while len(node.calls) == before:
                await asyncio.sleep(0.01)
            assert not admitted
        while not reporter.admits(peer(2)):
            await asyncio.sleep(0.01)
        assert reporter._thread.is_alive()
        await asyncio.to_thread(reporter.stop)


async def test_a_reporter_that_stops_leaves_no_connection_to_the_node_open(gateway: FakeGateway) -> None:
    async with fake_node() as node:
        reporter = ChainReporter(node.url.replace("http", "ws"), DOMAIN, secret(1), gateway.url)
        with pytest.raises(ChainRefused):
            await asyncio.to_thread(reporter.start)
        await asyncio.to_thread(reporter.stop)
        async with asyncio.timeout(10):
            while node.ended < node.connections:
                await asyncio.sleep(0.01)
        assert node.close_codes == [1000], "closed by the reporter, not by the end of its thread"


def test_text_that_is_not_a_peer_id_is_not_checked_on_chain() -> None:
    reporter = make(UNREACHABLE)
    assert not any(reporter.admits(text) for text in ("", "\ud800", "x" * 10_000, "QmMissing"))
    assert not reporter._unknown
    for number in range(module.MAX_UNKNOWN + 10):
        reporter.admits(peer(number))
    assert len(reporter._unknown) == module.MAX_UNKNOWN


async def test_an_expired_registration_is_replaced_by_the_chains_clock(
    gateway: FakeGateway, contract: FakeContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    ahead = int(time.time()) + 3 * 24 * 3600
    states = iter(("expired",))
    reasons = {"expired": {"state": "rejected", "reason": "RegistrationExpired"}}
    gateway.answer = lambda path, body: reasons.get(next(states, ""), {"state": "final"})
    async with fake_node() as node:
        node.answer = lambda method, parameters: (
            {"result": {"number": "0x1", "hash": "0x" + "ab" * 32, "timestamp": hex(ahead)}}
            if method == "eth_getBlockByNumber"
            else {"result": "0x" + f"{5:064x}"}
        )
        reporter = ChainReporter(node.url, DOMAIN, secret(1), gateway.url)
        await asyncio.to_thread(reporter.start)
        assert await asyncio.to_thread(reporter.wait_until_registered, 30)
        await asyncio.to_thread(reporter.stop)
    first, second = (body[0]["deadline"] for body in gateway.received("registrations"))
    assert first < ahead < second


@pytest.mark.parametrize(
    ("reward", "expected"), [(0.25, 250_000), (-1.0, -1_000_000), (float("nan"), 0), (float("inf"), 0), (1e80, 0)]
)
def test_a_reward_is_recorded_in_millionths(reward: float, expected: int) -> None:
    assert to_millionths(reward) == expected
