"""TensorBoard: event files in the peer's folder. `tensorboard --logdir runs/NAME` shows all peers of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel

from swarmgame.config import Config
from swarmgame.game.components import ComponentContext
from swarmgame.observability.tracker import Tracker


class TensorBoardConfig(Config):
    """The `with:` block of `use: tensorboard`."""

    directory: str = ""
    """Folder of the event files, with one below it for each run and peer; a relative one is below the peer's folder.
    Empty: `tensorboard` in the peer's folder."""


class TensorBoardTracker(Tracker):
    """TensorBoard's event files, one folder a peer; `tensorboard --logdir runs/NAME` shows them."""

    Config: ClassVar[type[BaseModel]] = TensorBoardConfig
    package = extra = "tensorboard"
    replaces = True

    def __init__(self, config: TensorBoardConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.config: TensorBoardConfig = config
        self._writer: Any = None

    def open(self, first_round: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.directory / "tensorboard"
        if self.config.directory:
            folder = self.directory / self.config.directory / self.context.name / f"peer-{self.context.index}"
        # After a crash, rounds from the checkpoint on are played again: steps from before are hidden by the purge.
        self._writer = SummaryWriter(str(folder), purge_step=first_round + 1 if first_round else None)
        if first_round == 0:
            text = yaml.safe_dump(dict(self.context.manifest), sort_keys=False, allow_unicode=True)
            self._writer.add_text("manifest", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close_run(self) -> None:
        self._writer.close()
