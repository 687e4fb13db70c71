"""What the cluster should hold for a game, and what its status should say. Pure: no client, no clock, no randomness."""

from swarmgame_operator.plan.outcome import Child, DryRun, Event, Keys, Manifest, Plan, Reference
from swarmgame_operator.plan.references import References, references
from swarmgame_operator.plan.whole import plan

__all__ = ["Child", "DryRun", "Event", "Keys", "Manifest", "Plan", "Reference", "References", "plan", "references"]
