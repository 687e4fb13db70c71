"""`spec.observability`: where a peer's numbers go, besides its own files and `/metrics`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from swarmgame_api.base import Model
from swarmgame_api.game import ComponentName
from swarmgame_api.quantities import FreeForm

HTTPS = 443


class TrackerSpec(Model):
    """An experiment tracker by name, and its configuration."""

    use: ComponentName
    """`tensorboard`, `wandb`, `trackio`, another registered name, or `package.module:Class` of your own."""
    with_: FreeForm = Field(default_factory=dict)
    """The tracker's own configuration. Keys and passwords do not belong here: they are read from the environment."""

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
    """Where a peer's numbers go, besides its own files and `/metrics`."""

    trackers: Annotated[tuple[TrackerSpec, ...], Field(max_length=8)] = ()
    """Experiment trackers to which every peer writes its numbers after each round."""
