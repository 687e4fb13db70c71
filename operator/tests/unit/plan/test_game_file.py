"""The game's file in its ConfigMap."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from golden_games import GAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_fixtures import DEFAULTS, SPEC, build_plan, game_context, running, valid_game

from swarmgame_api.load import loads_manifest
from swarmgame_operator.plan.game_file import file_text, game_file

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


VALUES = TEXTS | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53) | st.booleans()


@settings(deadline=None)
@given(st.dictionaries(TEXTS.filter(bool), VALUES, max_size=4))
def test_a_peer_reads_back_what_the_author_wrote(block: dict[str, object]) -> None:
    game = {"maxRounds": 1, "data": {"use": "a", "with": block}, "rewards": {"use": "a"}, "trainer": {"use": "a"}}
    resource = valid_game({"game": game})
    assert resource.game is not None
    text = file_text(resource.game)
    assert loads_manifest(text) == resource.game
    assert json.loads(text)["spec"]["game"]["data"].get("with", {}) == block


@pytest.mark.parametrize("name", GAMES)
def test_a_peer_reads_back_every_kind_of_game(name: str) -> None:
    manifest = GAMES[name].game
    assert manifest is not None
    of_a_peer = manifest.spec.model_copy(update={"pod_defaults": None, "pod_templates": None})
    assert loads_manifest(file_text(manifest)) == manifest.model_copy(update={"spec": of_a_peer})


def test_optional_blocks_without_fields_are_kept() -> None:
    game = {**yaml.safe_load(SPEC)["game"], "evaluation": {}, "roles": [{"name": "solver", "share": "50%"}]}
    spec = {
        "game": game,
        "storage": {"checkpoints": {"emptyDir": {}}},
        "model": {"uri": "builtin://tiny", "export": {}},
    }
    manifest = valid_game(spec).game
    assert manifest is not None
    assert manifest.spec.game.evaluation is not None
    assert loads_manifest(file_text(manifest)) == manifest


def test_it_has_no_key_that_the_author_did_not_use_so_that_an_earlier_image_reads_it() -> None:
    manifest = valid_game().game
    assert manifest is not None
    stored = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]  # as the API server stores it
    assert stored["communication"]["port"] == 31000
    data = json.loads(game_file(game_context(valid_game(stored))).apply_manifest["data"]["game.yaml"])
    assert data["kind"] == "SwarmGame"
    assert data["metadata"]["name"] == "sums"
    assert data["spec"] == yaml.safe_load(SPEC)


def test_a_new_file_restarts_no_running_peer() -> None:
    resource, observed = running(valid_game())
    place = ("ConfigMap", "sums-game")
    earlier = {**observed.children, place: replace(observed.children[place], intent_hash="of an earlier operator")}
    found = build_plan(resource, replace(observed, children=earlier), DEFAULTS)
    assert [(child.kind, child.name) for child in found.children] == [place]
    assert not found.deletions
