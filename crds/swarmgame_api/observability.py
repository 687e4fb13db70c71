"""`spec.observability`: what a peer records beside its metrics."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from swarmgame_api.base import Model


class RolloutsSpec(Model):
    """The archive of rollouts: what each peer generated and received, as Parquet files by round."""

    enabled: bool = True
    """false: nothing is archived, and the run cannot be replayed."""
    max_bytes: Annotated[int, Field(ge=100_000, le=1_000_000_000_000)] = 50_000_000
    """Most bytes of one peer's archive; beyond them its oldest rounds are removed."""


class ObservabilitySpec(Model):
    """What peers record beside their metrics."""

    rollouts: RolloutsSpec = RolloutsSpec()
    """The archive of rollouts."""
