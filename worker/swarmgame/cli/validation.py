"""The options of `swarmgame validate`; what it does stands in `swarmgame.cli.validate`, which loads more than `--help`
needs.
"""

from __future__ import annotations

from swarmgame.cli.options import Game, Overrides


def validate(game: Game, set_: Overrides = None) -> None:
    """Say all that is wrong with a game, or print it with every default filled in. Starts and writes nothing.

    [bold]Examples[/bold]

      swarmgame validate game.yaml

      swarmgame validate game.yaml --set game.trainer.with.generations=1
    """
    from swarmgame.cli.validate import validate as dry_run

    dry_run(game, tuple(set_ or ()))
