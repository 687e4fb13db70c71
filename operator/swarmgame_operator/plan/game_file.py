"""The ConfigMap with the game's file: what a peer in a pod reads is the manifest that its author applied, defaults
filled in.

It is written as JSON, which is YAML too: writing YAML took four fifths of a plan's time. Invariant: no secret is in it,
because a manifest holds none, only names of Secrets; and reading it gives the manifest back, whatever letters are in
it.
"""

from __future__ import annotations

import json
import re

from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame
from swarmgame_operator.plan.outcome import Child
from swarmgame_operator.plan.setting import Setting

KEY = "game.yaml"
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Letters that JSON takes as they are and YAML only by their number."""


def game_file(setting: Setting) -> Child:
    metadata = setting.metadata("game", "game")
    return Child(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: file_text(setting.game)}}
    )


def file_text(game: SwarmGame) -> str:
    """The manifest as a text that both JSON and YAML readers take."""
    text = json.dumps(manifest_data(game), indent=2, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
