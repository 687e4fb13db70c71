"""`swarmgame export`: a run's policy as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import Run, Runs, find_run, print_message


def export(
    run: Run,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the model goes; missing or empty.", show_default=False)
    ],
    peer: Annotated[
        int | None,
        typer.Option("--peer", metavar="N", min=0, help="The peer. Default: the first; with --best, any."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The policy with the best held-out evaluation, instead of the newest.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option("--round", metavar="R", min=0, help="The checkpoint after R rounds, instead of the newest."),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Keep adapters apart, as peft loads them, instead of merging them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in FOLDER.")] = False,
    push: Annotated[
        str,
        typer.Option(
            "--push",
            metavar="ORG/NAME",
            help="Upload it to the hub too, as a private model. The token is HF_TOKEN, or that of `hf auth login`.",
        ),
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="With --push: a public model.")] = False,
    modules: Annotated[
        Path | None,
        typer.Option(
            "--modules",
            metavar="DIR",
            help="Folder of the game's own Python modules. Default: that of the file the run was started with.",
        ),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write a run's policy as a model: for a language model a folder that `from_pretrained` loads.

    The folder has the weights, tokenizer, generation configuration and a model card. The run may still be running:
    its newest complete checkpoint is taken.

    [bold]Examples[/bold]

      swarmgame export quickstart my-model

      swarmgame export quickstart my-model --best --force

      swarmgame export quickstart my-adapters --peer 1 --adapter

      swarmgame export quickstart my-model --best --push my-name/my-model
    """
    from swarmgame.errors import BadUsage

    if public and not push:
        raise BadUsage("--public is for --push")
    directory = find_run(run, runs)
    if push:
        from swarmgame.runtime.hub import check_push

        check_push(push)
    from swarmgame.runtime.export_run import ExportChoice, export_run

    record = export_run(
        directory,
        folder,
        ExportChoice(peer, best, rounds),
        merge_adapters=not adapter,
        replace_export=force,
        source=modules,
        notify=print_message,
        pushed=bool(push),
    )
    evaluation = f", held-out mean reward {record.evaluation.reward:.3f}" if record.evaluation is not None else ""
    print_message(f"{record.game}: peer {record.peer} after {record.rounds} of {record.max_rounds} rounds{evaluation}")
    typer.echo(folder)
    if push:
        from swarmgame.runtime.hub import push as push_folder

        message = f"{record.game}: peer {record.peer} after {record.rounds} rounds"
        typer.echo(push_folder(folder, push, public=public, message=message))
