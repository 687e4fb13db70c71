"""Plans: the objects that a game needs, and its status. Pure: no client, no clock, no randomness."""

from swarmgame_operator.plan.plan import build_plan, plan_of_failure, plan_of_unserved
from swarmgame_operator.plan.plan_types import Child, Deletion, DryRun, GameEvent, KeySecret, Manifest, Plan, Subject
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
    "Subject",
    "build_plan",
    "plan_of_failure",
    "plan_of_unserved",
    "references",
]
