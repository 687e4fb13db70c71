"""The ConfigMap with the game's file: the manifest as its author applied it, with the defaults filled in.

It is written as JSON, which is YAML too: writing YAML took four fifths of a plan's time. It contains no secrets, only
names of Secrets. Reading it gives the same manifest for any characters in it.
"""

from __future__ import annotations

import json
import re

from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.plan_types import Child

KEY = "game.yaml"
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON accepts as they are and YAML only as escapes."""


def game_file(game: GameContext) -> Child:
    metadata = game.metadata("game", "game")
    return Child(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: file_text(game.manifest)}}
    )


def file_text(game: SwarmGame) -> str:
    """Return the manifest as a text that is valid JSON and valid YAML."""
    text = json.dumps(manifest_data(game), indent=2, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
