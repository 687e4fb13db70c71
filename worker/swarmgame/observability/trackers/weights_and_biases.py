"""Weights & Biases: one run a peer, the peers of a run in one group.

The key is read from the environment (`WANDB_API_KEY`, or what `wandb login` has stored), never from the manifest.
`mode: offline` writes files, which `wandb sync` sends later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.observability.tracker import Tracker


class WandbConfig(Config):
    """The `with:` block of `use: wandb`."""

    project: str = ""
    """The project. Empty: the game's name."""
    entity: str = ""
    """The user or team. Empty: the default of the key."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes files in the peer's folder, for `wandb sync`. null: as `WANDB_MODE` says, else `online`."""
    tags: tuple[str, ...] = ()
    """Tags of the runs."""


class WandbTracker(Tracker):
    """Weights & Biases, online or offline; the key comes from the environment variable `WANDB_API_KEY`."""

    Config: ClassVar[type[BaseModel]] = WandbConfig
    package = extra = "wandb"

    def __init__(self, config: WandbConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: WandbConfig = config
        self._run: Any = None

    def open(self, first_round: int) -> None:
        import wandb

        name, key = self.context.name, self.run_key()
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self.config.project or name,
                entity=self.config.entity or None,
                mode=self.config.mode,
                tags=self.config.tags,
                group=name,
                name=f"{name}-peer-{self.context.index}",
                id=f"{name}-{self.context.index}-{key}",
                resume="allow",
                dir=str(self.directory),
                config=dict(self.context.manifest),
                # The console is the game's, and its code and host are nobody else's business.
                settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
            )
        except wandb.errors.UsageError as error:
            raise InvalidManifest(
                "spec.observability.trackers",
                "wandb",
                f"a key in the environment variable WANDB_API_KEY, or `mode: offline` under `with` ({error})",
            ) from error
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "round": step})

    def close_run(self) -> None:
        self._run.finish()
