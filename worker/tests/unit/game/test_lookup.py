"""Classes of components by name: what is said where their module fails."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from swarmgame.game import lookup
from swarmgame.game.components import RewardManager
from swarmgame.game.lookup import find_component
from swarmgame_api.errors import InvalidManifest


def test_an_installed_component_whose_module_fails_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_rewards.py").write_text("import math\nunknown\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("mine", "installed_rewards:Mine", "swarmgame.rewards")
    monkeypatch.setattr(lookup, "entry_points", lambda group: [entry])
    with pytest.raises(InvalidManifest, match=r'game\.rewards\.use is "mine"; .*NameError: .*installed_rewards\.py:2'):
        find_component("mine", RewardManager, group="swarmgame.rewards", path="spec.game.rewards.use")
