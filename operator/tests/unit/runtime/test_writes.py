"""Writes: status patches, events and keys, checked by the recorded requests."""

from __future__ import annotations

import base64
import contextvars
import io
from typing import Any

import kmock
import kopf
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio import client

from swarmgame_api.resource import GameResource
from swarmgame_operator import secrets
from swarmgame_operator.api import POD, SECRET, Api, error_of, proxy_of
from swarmgame_operator.apply import difference
from swarmgame_operator.cache import ClusterCache
from swarmgame_operator.errors import AlreadyExists, Gone, Invalid, NotFound, OperatorError, Retry
from swarmgame_operator.events import Events, shorten
from swarmgame_operator.libp2p_keys import peer_id_of
from swarmgame_operator.plan import GameEvent, KeySecret
from swarmgame_operator.secrets import Secrets

JSON = st.recursive(
    st.integers(0, 3) | st.text(max_size=2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
DOCUMENT = st.dictionaries(st.sampled_from("abcd"), JSON | st.lists(JSON, max_size=2), max_size=4)
GAME = GameResource.parse(
    {
        "metadata": {"name": "sums", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-31T12:00:00Z"},
        "spec": {},
    }
)


def merged(before: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(before=DOCUMENT, after=DOCUMENT)
def test_a_status_patch_turns_one_document_into_the_other_and_is_empty_for_equal_ones(before: Any, after: Any) -> None:
    patch = difference(before, after)
    assert merged(before, patch) == after
    assert (patch == {}) == (before == after)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Retry),
        (410, "Expired", Gone),
        (404, "NotFound", NotFound),
        (422, "Invalid", Invalid),
        (400, "BadRequest", Invalid),
        (401, "Unauthorized", Retry),
        (403, "Forbidden", Retry),
        (429, "TooManyRequests", Retry),
        (500, "InternalError", Retry),
        (504, "Timeout", Retry),
    ],
)
def test_an_answer_is_an_error_to_retry_or_to_report(code: int, reason: str, kind: type[OperatorError]) -> None:
    assert type(error_of(code, reason, "")) is kind


@pytest.fixture
async def api(kmock: kmock.RawHandler) -> Any:
    counted: list[tuple[str, str]] = []
    connection = Api(
        client.ApiClient(configuration=client.Configuration(host=str(kmock.url).rstrip("/"))),
        lambda *each: counted.append(each),
    )
    connection.counted = counted  # type: ignore[attr-defined]
    yield connection
    await connection.close()


async def test_an_overloaded_server_is_retried(kmock: Any, api: Any) -> None:
    (
        kmock["get /api/v1/namespaces/n/pods/p"]
        << 429
        << {"Retry-After": "7"}
        << {"reason": "TooManyRequests", "message": "slow down"}
    )
    with pytest.raises(Retry) as error:
        await api.get(POD, "n", "p")
    assert error.value.reason == "TooManyRequests"
    assert "slow down" in error.value.message
    assert api.counted == [("get", "429")]


async def test_a_proxys_html_page_is_a_retry_and_not_a_crash(kmock: Any, api: Any) -> None:
    kmock["get"] << 502 << b"<html>Bad gateway</html>"
    with pytest.raises(Retry) as error:
        await api.get(POD, "n", "p")
    assert error.value.reason == "HTTP502"


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other,10.96.0.1"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other"}, "http://proxy:3128"),
    ],
)
def test_a_proxy_is_read_from_the_environment_once(
    environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("https://10.96.0.1:443") == proxy


async def test_an_answer_that_is_not_json_is_retried(kmock: Any, api: Any) -> None:
    kmock["get"] << b"{broken"
    with pytest.raises(Retry) as error:
        await api.get(POD, "n", "p")
    assert error.value.reason == "APIUnavailable"


def test_an_event_is_handed_to_kopf_once_in_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[dict[str, Any]] = []
    monkeypatch.setattr(kopf, "event", lambda body, **event: posted.append({**event, "body": body}))
    now = 0.0
    events, event = Events(clock=lambda: now), GameEvent("Warning", "TooManyFailedPeers", "ü" * 2000)
    events.context = contextvars.copy_context()
    assert events.publish(GAME, event)
    assert not events.publish(GAME, event)
    now = 601.0
    assert events.publish(GAME, event)
    assert len(posted) == 2
    assert posted[0]["body"]["metadata"] == {"namespace": "n", "name": "sums", "uid": "u"}
    assert 900 < len(posted[0]["message"].encode()) <= 953


def test_an_event_outside_a_context_of_kopf_is_dropped_with_a_warning_and_not_remembered() -> None:
    events, event = Events(), GameEvent("Normal", "AsExpected", "")
    with structlog.testing.capture_logs() as logs:
        assert not events.publish(GAME, event)
    assert [each["event"] for each in logs] == ["event dropped"]
    events.context = contextvars.copy_context()
    with pytest.raises(LookupError):  # as kopf does where no operator of its own runs
        events.publish(GAME, event)


@given(text=st.text(max_size=400), most=st.integers(4, 100))
def test_a_note_is_cut_between_letters(text: str, most: int) -> None:
    short = shorten(text.encode("utf-8", "ignore").decode(), most)
    assert len(short.encode()) <= most


async def test_existing_keys_are_never_sent_and_missing_ones_are_real_keys(kmock: Any, api: Any) -> None:
    there = base64.b64encode(b"x" * 36).decode()
    body = {
        "metadata": {"name": "sums-peer-keys", "namespace": "n", "uid": "s", "resourceVersion": "5"},
        "data": {"peer-0.key": there},
    }
    kmock["post"] << 409 << {"reason": "AlreadyExists"}
    kmock["get"] << body
    kmock["patch"] << body
    secret: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "sums-peer-keys", "annotations": {}},
        "type": "Opaque",
    }
    await Secrets(api, ClusterCache(changed=lambda key: None)).ensure(
        ("n", "sums"), KeySecret(secret, ("peer-0.key", "peer-1.key"))
    )
    first, second = (request.data for request in kmock["patch"])
    assert first["metadata"]["resourceVersion"] == "5"
    assert set(first["data"]) == {"peer-1.key"}
    assert peer_id_of(base64.b64decode(first["data"]["peer-1.key"])).startswith("16Uiu2HA")
    assert "data" not in second


async def test_keys_are_created_without_reading_first(kmock: Any, api: Any) -> None:
    kmock["post"] << {"metadata": {"name": "k", "namespace": "n", "uid": "s", "resourceVersion": "6"}}

    await Secrets(api, ClusterCache(changed=lambda key: None)).ensure(
        ("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key",))
    )

    assert [request.method.name for request in kmock] == ["POST"]


async def test_a_secret_that_was_deleted_unnoticed_is_created_again(kmock: Any, api: Any) -> None:
    known = {
        "metadata": {
            "name": "k",
            "namespace": "n",
            "uid": "s",
            "resourceVersion": "6",
            "labels": {"swarmgame.dev/game": "sums"},
        }
    }
    cache = ClusterCache(changed=lambda key: None)
    cache.put(SECRET, known)
    kmock["get"] << 404 << {"reason": "NotFound"}
    kmock["post"] << {"metadata": {**known["metadata"], "uid": "t", "resourceVersion": "9"}}

    await Secrets(api, cache).ensure(("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key",)))

    assert set(kmock["post"][0].data["data"]) == {"peer-0.key"}
    assert cache.version_of(("n", "sums"), SECRET, "k") == "t/9"


async def test_no_key_is_logged(kmock: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(written), processors=[structlog.processors.JSONRenderer()])
    monkeypatch.setattr(secrets, "log", logger)
    kmock["post"] << {"metadata": {"name": "k", "namespace": "n", "uid": "s", "resourceVersion": "6"}}
    await Secrets(api, ClusterCache(changed=lambda key: None)).ensure(
        ("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key",))
    )
    sent = kmock["post"][0].data["data"]["peer-0.key"]
    reported = written.getvalue()
    assert "keys made" in reported
    assert sent not in reported
    assert base64.b64decode(sent)[4:].hex() not in reported
