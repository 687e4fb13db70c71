"""The game's file in its ConfigMap."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from plan_fixtures import game_context, valid_game

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
    assert json.loads(text)["spec"]["game"]["data"]["with"] == block


def test_it_is_the_complete_manifest_with_its_defaults() -> None:
    resource = valid_game()
    data = json.loads(game_file(game_context(resource)).apply_manifest["data"]["game.yaml"])
    assert data["kind"] == "SwarmGame"
    assert data["metadata"]["name"] == "sums"
    assert data["spec"]["communication"]["port"] == 31000
