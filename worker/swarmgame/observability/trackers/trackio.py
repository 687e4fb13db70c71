"""trackio: a local dashboard (`trackio show`), a server of your own, or a Space of the hub.

Passwords are read from the environment: `HF_TOKEN` for a Space, `TRACKIO_WRITE_TOKEN` for a server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from swarmgame.config import Config
from swarmgame.game.components import ComponentContext
from swarmgame.observability.tracker import Tracker


class TrackioConfig(Config):
    """The `with:` block of `use: trackio`."""

    project: str = ""
    """The project. Empty: the game's name."""
    directory: str = ""
    """Folder of the local database, for `TRACKIO_DIR=… trackio show`; a relative one is below the peer's folder. Empty:
    the environment variable `TRACKIO_DIR`, or else trackio's own."""
    space_id: str = ""
    """A Space of the hub, such as `org/dashboard`. Empty: none."""
    server_url: str = ""
    """The address of a trackio server, without a token. Empty: none."""


class TrackioTracker(Tracker):
    """trackio: one run a peer in a local database, on a server or in a Space."""

    Config: ClassVar[type[BaseModel]] = TrackioConfig
    package = extra = "trackio"

    def __init__(self, config: TrackioConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: TrackioConfig = config
        self._run: Any = None

    def open(self, first_round: int) -> None:
        if self.config.directory:
            # trackio reads its folder from the environment while it is imported.
            os.environ["TRACKIO_DIR"] = str(self.directory / self.config.directory)
        import trackio

        name = self.context.name
        self._run = trackio.init(
            project=self.config.project or name,
            name=f"{name}-peer-{self.context.index}-{self.run_key()}",
            group=name,
            space_id=self.config.space_id or None,
            server_url=self.config.server_url or None,
            config=dict(self.context.manifest),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close_run(self) -> None:
        import trackio

        trackio.finish()  # of this process's run; it also ends what would print when the process ends
