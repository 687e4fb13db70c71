"""The operator's own HTTP server: who gets its metrics."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from swarmgame_operator import serving
from swarmgame_operator.serving import is_local, serve


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.7", False),
        ("fd00::7", False),
        ("::ffff:10.0.0.7", False),
        ("", False),
        ("unix", False),
    ],
)
def test_only_the_loopback_addresses_are_local(address: str, expected: bool) -> None:
    assert is_local(address) is expected


async def answers(*, local_metrics: bool) -> dict[str, tuple[int, str]]:
    registry = CollectorRegistry()
    Gauge("games", "Number of games.", registry=registry).set(3)
    async with (
        serve(registry, port=0, ready=lambda: "", host="127.0.0.1", local_metrics=local_metrics) as port,
        aiohttp.ClientSession() as session,
    ):
        found = {}
        for path in ("/metrics", "/readyz"):
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                found[path] = answer.status, await answer.text()
        return found


def test_other_pods_get_no_metrics_where_a_proxy_serves_them_and_the_kubelet_gets_readiness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "games 3.0" in asyncio.run(answers(local_metrics=True))["/metrics"][1]
    monkeypatch.setattr(serving, "is_local", lambda address: False)
    found = asyncio.run(answers(local_metrics=True))
    assert found["/metrics"][0] == 403
    assert "8443" in found["/metrics"][1]
    assert "games" not in found["/metrics"][1]
    assert found["/readyz"] == (200, "ok\n")
    assert "games 3.0" in asyncio.run(answers(local_metrics=False))["/metrics"][1]
