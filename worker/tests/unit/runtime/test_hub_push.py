"""Pushing to the hub: what is private, and how each refusal ends. The hub is a stand-in over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, HubStandIn, hub_stand_in
from huggingface_hub import constants

from swarmgame.errors import BadUsage, Refused, SwarmGameError, Temporary
from swarmgame.runtime.hub import check_push, push

OTHER = "hf_another-token"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The stand-in, to which this process is logged in."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\ntags: [swarmgame]\n---\n")
    return tmp_path


def test_a_model_is_private_unless_it_is_wanted_public(hub: HubStandIn, model: Path) -> None:
    assert push(model, "me/closed", public=False, message="first") == f"{hub.address}/me/closed"
    assert push(model, "me/open", public=True, message="second") == f"{hub.address}/me/open"
    assert {name: each["private"] for name, each in hub.models.items()} == {"me/closed": True, "me/open": False}
    assert hub.commits == ["first", "second"]
    assert set(hub.models["me/closed"]["files"]) == {"config.json", "README.md"}


def test_a_second_push_updates_the_same_model(hub: HubStandIn, model: Path) -> None:
    push(model, "me/closed", public=False, message="first")
    (model / "config.json").write_text('{"new": 1}')
    push(model, "me/closed", public=False, message="second")
    assert hub.models["me/closed"]["files"]["config.json"] == b'{"new": 1}'


def test_a_public_model_is_not_written_to_by_a_private_push(hub: HubStandIn, model: Path) -> None:
    hub.models["me/open"] = {"private": False, "files": {}}
    with pytest.raises(BadUsage, match="me/open exists on the hub and is public; push with --public"):
        push(model, "me/open", public=False, message="first")
    assert hub.models["me/open"]["files"] == {}


@pytest.mark.parametrize(
    ("name", "token", "failing", "error", "message"),
    [
        ("me/x", OTHER, 0, Refused, r"does not let this token write to me/x \(401\)"),
        ("others/x", TOKEN, 0, Refused, r"does not let this token write to others/x \(403\)"),
        ("me/x", TOKEN, 413, BadUsage, r"the hub does not accept me/x \(413\)"),
    ],
)
def test_a_refused_push_names_the_cause_and_where_the_model_is(
    hub: HubStandIn,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    token: str,
    failing: int,
    error: type[SwarmGameError],
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.failing = failing
    with pytest.raises(error, match=message) as raised:
        push(model, name, public=False, message="first")
    assert f"the model is complete in {model}" in str(raised.value)
    assert token not in str(raised.value)


def test_a_hub_that_cannot_be_reached_may_be_tried_again(
    hub: HubStandIn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(Temporary, match="the hub could not be reached"):
        push(model, "me/x", public=False, message="first")


@pytest.mark.parametrize("name", ["letters", "a/b/c", "/x", "me/", "me/..", "me/a--b", "me/ä", "https://hub/me/x"])
def test_a_name_that_the_hub_cannot_have_is_refused(hub: HubStandIn, name: str) -> None:
    with pytest.raises(BadUsage, match="expected a name on the hub"):
        check_push(name)


def test_a_push_without_a_token_or_without_network_is_refused_before_anything_is_written(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_push("me/x")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadUsage, match="set HF_TOKEN, or log in"):
        check_push("me/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadUsage, match="HF_HUB_OFFLINE forbids it"):
        check_push("me/x")
    assert hub.requests == []
