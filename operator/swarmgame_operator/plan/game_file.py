"""The ConfigMap with the game's file: the manifest without the fields at their defaults, which a pod fills in.

The file of a running game may be written by a newer operator than the image of its pods, whose models refuse keys that
they do not know. So the file has no key that only the newer operator knows, unless the author uses it. The API server
stores a game with the defaults of its time, so a default that changes later is in the file as its author had it; only
a value that an author gave and that became the default would be read as the earlier one.

Beside it are the ids of the game's own peers, which count from the start. A pod reads them when it starts, so that
peers that are added later know all of them, and the others count the new ones after some complete rounds.

What only concerns pods (`podDefaults`, `podTemplates`) is left out: no peer reads it, and it may hold a password.

The manifest is written as JSON, which is YAML too: writing YAML took four fifths of a plan's time. It contains no
secrets, only names of Secrets. Reading it gives the same manifest for any characters in it.
"""

from __future__ import annotations

import json
import re

from swarmgame_api.manifest import SwarmGame
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.plan_types import Child

KEY = "game.yaml"
PEERS_KEY = "peers"
"""One id a line. A closed swarm needs none: no other peer can join it."""
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON accepts as they are and YAML only as escapes."""


def game_file(game: GameContext) -> Child:
    data = {KEY: file_text(game.manifest)}
    if not game.closed:
        data[PEERS_KEY] = "".join(f"{peer}\n" for peer in game.peer_ids)
    return Child({"apiVersion": "v1", "kind": "ConfigMap", "metadata": game.metadata("game", "game"), "data": data})


def file_text(game: SwarmGame) -> str:
    """Return the manifest as a text that is valid JSON and valid YAML."""
    data = game.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude_defaults=True,
        exclude={"spec": {"pod_defaults", "pod_templates"}},
    )
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
