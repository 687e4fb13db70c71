"""`spec.observability`: what a peer records, and where its numbers go besides its own files and `/metrics`."""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from swarmgame_api.base import Model
from swarmgame_api.game import ComponentName
from swarmgame_api.quantities import FreeForm, has_possible_port

HTTPS = 443


class RolloutsSpec(Model):
    """The archive of rollouts: what each peer generated and received, as Parquet files by round."""

    enabled: bool = True
    """false: nothing is archived, and the run cannot be replayed."""
    max_bytes: Annotated[int, Field(ge=100_000, le=1_000_000_000_000)] = 50_000_000
    """Most bytes of one peer's archive; beyond them its oldest rounds are removed."""


class TrackerSpec(Model):
    """An experiment tracker by name, and its configuration."""

    use: ComponentName
    """`tensorboard`, `wandb`, `trackio`, another registered name, or `package.module:Class` of your own."""
    with_: FreeForm = Field(default_factory=dict)
    """The tracker's own configuration. Keys and passwords do not belong here: they are read from the environment."""

    @model_validator(mode="after")
    def _address_is_possible(self) -> Self:
        address = self.with_.get("serverUrl") if self.use == "trackio" else None
        if address and not (isinstance(address, str) and has_possible_port(address)):
            broken = [("with.serverUrl", address, "http://host:port, with a port from 1 to 65535")]
            raise PydanticCustomError("rules", "expected {summary}", {"summary": broken[0][2], "broken": broken})
        return self

    @property
    def port(self) -> int | None:
        """The TCP port of a service outside of the cluster that it writes to; None where it writes files only."""
        if self.use == "wandb":
            return None if self.with_.get("mode") == "offline" else HTTPS
        if self.use == "trackio" and self.with_.get("serverUrl"):
            server = urlsplit(str(self.with_["serverUrl"]))
            return server.port or (80 if server.scheme == "http" else HTTPS)
        return HTTPS if self.use == "trackio" and self.with_.get("spaceId") else None


class ObservabilitySpec(Model):
    """What peers record, and where their numbers go besides their own files and `/metrics`."""

    rollouts: RolloutsSpec = RolloutsSpec()
    """The archive of rollouts."""
    trackers: Annotated[tuple[TrackerSpec, ...], Field(max_length=8)] = ()
    """Experiment trackers to which every peer writes its numbers after each round."""
