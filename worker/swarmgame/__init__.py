"""SwarmGame's worker: the library for authors of games, the game loop, and the command line.

Importing it takes milliseconds: torch, hivemind and other large libraries are imported where they are used, and names
in `_LAZY` on first access.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swarmgame.config import Config
from swarmgame.game.components import (
    ComponentContext,
    DataManager,
    RewardManager,
    Trainer,
)
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.environment import Environment, Episode, Step, Tool
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.roles import Role, RoleManager
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    Message,
    Prompt,
    Question,
    QuestionRef,
    Rewards,
    Rollout,
    Round,
    Sampling,
)
from swarmgame.seeds import derive_seed

if TYPE_CHECKING:
    from swarmgame.game.manager import GameManager
    from swarmgame.observability.tracker import Tracker
    from swarmgame_api import load_manifest

__all__ = [
    "ComponentContext",
    "Config",
    "Contribution",
    "DataManager",
    "Demonstration",
    "Demonstrations",
    "Environment",
    "Episode",
    "FinishReason",
    "GameManager",
    "GameState",
    "Group",
    "GroupKey",
    "Message",
    "Observer",
    "Prompt",
    "Question",
    "QuestionRef",
    "RewardManager",
    "Rewards",
    "Role",
    "RoleManager",
    "Rollout",
    "Round",
    "RoundReport",
    "Sampling",
    "Step",
    "Tool",
    "Tracker",
    "Trainer",
    "derive_seed",
    "load_manifest",
]
__version__ = "0.1.0"

_LAZY = {
    "GameManager": "swarmgame.game.manager",
    "load_manifest": "swarmgame_api",
    "Tracker": "swarmgame.observability.tracker",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
