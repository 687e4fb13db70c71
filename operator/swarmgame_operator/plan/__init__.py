"""Plans: the objects that a game needs, and its status. Pure: no client, no clock, no randomness."""

from swarmgame_operator.plan.plan import build_plan
from swarmgame_operator.plan.plan_types import Child, Deletion, DryRun, GameEvent, KeySecret, Manifest, Plan
from swarmgame_operator.plan.references import References, references

__all__ = [
    "Child",
    "Deletion",
    "DryRun",
    "GameEvent",
    "KeySecret",
    "Manifest",
    "Plan",
    "References",
    "build_plan",
    "references",
]
