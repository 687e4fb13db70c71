"""`spec.model.export`: models that peers write while they play, for transformers to load."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from swarmgame_api.base import Model, Rule


class ExportSpec(Model):
    """Each peer writes its policy as a folder that `from_pretrained` loads, into `exports/` beside its checkpoints (in
    a cluster: on the checkpoints' volume). Absent: none is written; `swarmgame export` makes one of any checkpoint."""

    at_end: bool = True
    """Write one after the last round."""
    every_rounds: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Rounds between two exports during the game. Absent: none during the game."""
    adapters: Literal["Merged", "Separate"] = "Merged"
    """For a trainer with adapters. Merged: one complete model; Separate: a folder that peft loads over the base."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of exports kept; the oldest are deleted."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.atEnd || has(self.everyRounds)",
            expected="true where everyRounds is absent: nothing would be exported",
            check=lambda export: export.at_end or export.every_rounds is not None,
            field="atEnd",
        ),
    )
