"""Writes: status patches, events and keys, checked by the recorded requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import io
from typing import Any

import kmock
import kopf
import looptime
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio import client

from swarmgame_api.resource import GameResource
from swarmgame_operator import secrets
from swarmgame_operator.api import CLAIM, POD, SECRET, Api, error_of, proxy_of
from swarmgame_operator.apply import Applier, difference
from swarmgame_operator.cache import ClusterCache
from swarmgame_operator.errors import AlreadyExists, Gone, Invalid, NameTaken, NotFound, OperatorError, Retry
from swarmgame_operator.events import Events, shorten
from swarmgame_operator.libp2p_keys import new_key, peer_id_of
from swarmgame_operator.plan import Child, Deletion, GameEvent, KeySecret
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


@pytest.mark.parametrize(("waited", "taken"), [(0.5, False), (5.0, True)])
def test_a_name_that_was_found_free_long_ago_is_looked_up_again_before_it_is_written_to(
    waited: float, taken: bool
) -> None:
    """The stages before its own took their time, and meanwhile someone has made an object of the name."""

    class Slow(Api):
        def __init__(self) -> None:
            super().__init__(None)
            self.existing: dict[str, Any] | None = None
            self.applied = 0

        async def get(self, *of: Any, metadata: bool = False) -> dict[str, Any] | None:
            return self.existing

        async def apply(self, kind: Any, namespace: Any, body: dict[str, Any]) -> dict[str, Any]:
            self.applied += 1
            return {**body, "metadata": {**body["metadata"], "namespace": "n", "uid": "x", "resourceVersion": "1"}}

    child = Child({"kind": "Deployment", "metadata": {"name": "sums-bootnode"}})

    async def scenario() -> int:
        api = Slow()
        applier = Applier(api, ClusterCache(lambda key: None))
        looked_up = asyncio.ensure_future(applier.look_up(("n", "sums"), child, "u"))
        await asyncio.sleep(waited)
        api.existing = {"metadata": {"name": "sums-bootnode"}}
        with pytest.raises(NameTaken) if taken else contextlib.nullcontext():
            await applier.child(("n", "sums"), child, "u", looked_up)
        return api.applied

    loop = looptime.patch_event_loop(asyncio.new_event_loop(), start=0.0)
    try:
        assert loop.run_until_complete(scenario()) == int(not taken)
    finally:
        loop.close()


@pytest.mark.parametrize("name", ["", ".", "..", "../secrets", "a?b", "a#b", "a%2Fb"])
async def test_a_name_that_leads_to_something_else_is_not_asked_for(kmock: Any, api: Any, name: str) -> None:
    with pytest.raises(Invalid):
        await api.get(SECRET, "n", name)
    assert not list(kmock)


async def test_an_object_is_deleted_only_if_it_is_the_one_that_was_planned(kmock: Any, api: Any) -> None:
    applier = Applier(api, ClusterCache(lambda key: None))
    await applier.delete(("n", "sums"), Deletion("Job", "sums-peers", "Foreground", "u1"))
    (request,) = list(kmock)
    assert request.data == {"propagationPolicy": "Foreground", "preconditions": {"uid": "u1"}}


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
        "metadata": {
            "name": "sums-peer-keys",
            "namespace": "n",
            "uid": "s",
            "resourceVersion": "5",
            "labels": {"swarmgame.dev/game": "sums", "app.kubernetes.io/managed-by": "swarmgame-operator"},
        },
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
        ("n", "sums"), KeySecret(secret, ("peer-0.key", "peer-1.key")), "u"
    )
    first, second = (request.data for request in kmock["patch"])
    assert first["metadata"]["resourceVersion"] == "5"
    assert set(first["data"]) == {"peer-1.key"}
    assert peer_id_of(base64.b64decode(first["data"]["peer-1.key"])).startswith("16Uiu2HA")
    assert "data" not in second


class RecordedApi:
    """An API server with one object, which refuses a claim smaller than `size`."""

    def __init__(self, body: dict[str, Any], size: str = "0") -> None:
        self.body, self.size, self.sent = body, size, list[dict[str, Any]]()

    async def get(self, *of: Any, metadata: bool = False) -> dict[str, Any]:
        return self.body

    async def merge(self, kind: Any, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(patch)
        return self.body

    async def apply(self, kind: Any, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(body)
        if "resources" in body.get("spec", {}) and body["spec"]["resources"]["requests"]["storage"] < self.size:
            raise Invalid("Invalid", "field can not be less than status.capacity", status=422)
        return self.body


@pytest.mark.parametrize("others", [[], [{"kind": "Backup", "name": "b", "uid": "other"}]])
async def test_what_is_to_be_retained_from_now_on_loses_the_game_as_its_owner(others: list[dict[str, Any]]) -> None:
    owner = {"kind": "SwarmGame", "name": "sums", "uid": "u", "controller": True}
    metadata = {"name": "k", "namespace": "n", "uid": "s", "resourceVersion": "5", "ownerReferences": [*others, owner]}
    labels = {"swarmgame.dev/game": "sums"}
    api: Any = RecordedApi({"metadata": {**metadata, "labels": labels}, "data": {"peer-0.key": "x"}})
    cache = ClusterCache(changed=lambda key: None)
    cache.put(SECRET, api.body)
    await Secrets(api, cache).ensure(("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ()), "u")
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "k"}}
    await Applier(api, cache).child(("n", "sums"), Child(claim), "u")
    owned = {**claim, "metadata": {"name": "k", "ownerReferences": [owner]}}
    await Applier(api, cache).child(("n", "sums"), Child(owned), "u")
    removed = {"metadata": {"resourceVersion": "5", "ownerReferences": others or None}}
    assert api.sent == [{"metadata": {"name": "k"}}, removed, claim, removed, owned]


@pytest.mark.parametrize(
    ("size", "template", "sent"),
    [("5Gi", "1Gi", ["1Gi", "5Gi"]), ("5Gi", "4096Mi", ["4096Mi", "5Gi"]), ("8Gi", "6Gi", ["6Gi"])],
)
async def test_a_claim_that_was_enlarged_by_hand_is_applied_at_its_size(
    size: str, template: str, sent: list[str]
) -> None:
    def claim(storage: str) -> dict[str, Any]:
        metadata = {"name": "c", "namespace": "n", "uid": "c", "resourceVersion": "5"}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}}
        return {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}

    labelled = {**claim("5Gi"), "metadata": {**claim("5Gi")["metadata"], "labels": {"swarmgame.dev/game": "sums"}}}
    api: Any = RecordedApi(labelled, size)
    cache = ClusterCache(changed=lambda key: None)
    cache.put(CLAIM, labelled)
    with contextlib.nullcontext() if len(sent) == 2 else pytest.raises(Invalid):  # a refused growth is said
        await Applier(api, cache).child(("n", "sums"), Child(claim(template)), "u")
    assert [each["spec"]["resources"]["requests"]["storage"] for each in api.sent] == sent


async def test_the_owned_keys_of_a_deleted_game_of_this_name_are_waited_for(kmock: Any, api: Any) -> None:
    owner = {"apiVersion": "swarmgame.dev/v1alpha1", "kind": "SwarmGame", "name": "sums", "uid": "old"}
    metadata = {"name": "k", "namespace": "n", "uid": "s", "resourceVersion": "5"}
    kmock["post"] << 409 << {"reason": "AlreadyExists"}
    kmock["get"] << {"metadata": {**metadata, "ownerReferences": [{**owner, "controller": True}]}}
    with pytest.raises(Retry) as error:
        await Secrets(api, ClusterCache(changed=lambda key: None)).ensure(
            ("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key",)), "u"
        )
    assert error.value.reason == "Leaving"


async def test_ids_are_read_in_order_and_a_key_that_cannot_be_used_is_left_out_and_named(kmock: Any, api: Any) -> None:
    keys = {f"peer-{index}.key": base64.b64encode(new_key()).decode() for index in range(3)}
    data = {**keys, "peer-1.key": base64.b64encode(b"x" * 36).decode(), "peer-4.key": "no base64"}
    kmock["get"] << {"metadata": {"name": "k", "namespace": "n"}, "data": data}
    with structlog.testing.capture_logs() as logs:
        found = await Secrets(api, ClusterCache(changed=lambda key: None)).peer_ids(
            "n", "k", [f"peer-{index}.key" for index in range(5)]
        )
    assert found == tuple(peer_id_of(base64.b64decode(keys[f"peer-{index}.key"])) for index in (0, 2))
    assert [each["name"] for each in logs] == ["peer-1.key", "peer-4.key"]
    assert not any(value in str(logs) for value in data.values())


async def test_keys_are_created_and_their_ids_known_without_reading(kmock: Any, api: Any) -> None:
    labels = {"swarmgame.dev/game": "sums"}
    metadata = {"name": "k", "namespace": "n", "uid": "s", "resourceVersion": "6", "labels": labels}
    kmock["post"] << {"metadata": metadata}
    cache = ClusterCache(changed=lambda key: None)

    made = await Secrets(api, cache).ensure(
        ("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key", "peer-1.key")), "u"
    )

    assert [request.method.name for request in kmock] == ["POST"]
    assert made is not None
    assert made.version == cache.version_of(("n", "sums"), SECRET, "k") == "s/6"
    sent = kmock["post"][0].data["data"]
    assert made.peer_ids == {name: peer_id_of(base64.b64decode(sent[name])) for name in sent}


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

    await Secrets(api, cache).ensure(("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key",)), "u")

    assert set(kmock["post"][0].data["data"]) == {"peer-0.key"}
    assert cache.version_of(("n", "sums"), SECRET, "k") == "t/9"


async def test_no_key_is_logged(kmock: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(written), processors=[structlog.processors.JSONRenderer()])
    monkeypatch.setattr(secrets, "log", logger)
    kmock["post"] << {"metadata": {"name": "k", "namespace": "n", "uid": "s", "resourceVersion": "6"}}
    await Secrets(api, ClusterCache(changed=lambda key: None)).ensure(
        ("n", "sums"), KeySecret({"metadata": {"name": "k"}}, ("peer-0.key",)), "u"
    )
    sent = kmock["post"][0].data["data"]["peer-0.key"]
    reported = written.getvalue()
    assert "keys made" in reported
    assert sent not in reported
    assert base64.b64decode(sent)[4:].hex() not in reported
