"""SwarmGame's worker: the library that the author of a game imports, the loop, and the command line.

Importing it costs milliseconds: torch, hivemind and the like are loaded by the parts that need them.
"""

from swarmgame.config import Config
from swarmgame.game.components import (
    ComponentContext,
    DataManager,
    Demonstration,
    Demonstrations,
    RewardManager,
    Trainer,
)
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
)

__all__ = [
    "ComponentContext",
    "Config",
    "Contribution",
    "DataManager",
    "Demonstration",
    "Demonstrations",
    "FinishReason",
    "GameState",
    "Group",
    "GroupKey",
    "Message",
    "Prompt",
    "Question",
    "QuestionRef",
    "RewardManager",
    "Rewards",
    "Rollout",
    "Round",
    "Trainer",
]
__version__ = "0.1.0"
