"""The commands of `kubectl swarmgame`.

They only read: objects and logs from the API server, a peer's status through the API server's proxy to its pod, and a
peer's files. `export` alone creates an object, a pod that reads a claim, and deletes it again.
Every failure is one line with what to do, and an exit code.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from kubernetes.aio.config import ConfigException, list_kube_config_contexts
from rich.console import Console
from rich.live import Live

from swarmgame_operator.api import GAME, POD, Api, ResourceKind, connect
from swarmgame_operator.errors import NotFound, OperatorError
from swarmgame_operator.kubectl import view
from swarmgame_operator.kubectl.claim_reader import claim_reader, run_manifest
from swarmgame_operator.kubectl.export import RECORD as EXPORT_RECORD
from swarmgame_operator.kubectl.export import (
    Executor,
    ExportError,
    choose_checkpoint,
    choose_export,
    claim_of,
    refuse_used_folder,
    running_places,
    save,
)
from swarmgame_operator.snapshot_builder import pod_facts

NOT_FOUND, UNAVAILABLE, BAD_CONFIG = 66, 69, 78
HTTP_PORT = 8080
application = typer.Typer(
    name="kubectl swarmgame",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show the state of swarms.\n\nFirst: kubectl swarmgame status\nThen: kubectl swarmgame status GAME --watch",
)
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The game's namespace. Default: the context's.")]
Context = Annotated[str, typer.Option("--context", help="A context of the kubeconfig. Default: the current one.")]
Game = Annotated[str, typer.Argument(help="The game's name.")]
Peer = Annotated[int, typer.Option("--peer", "-p", min=0, help="A peer's index.")]


@application.command()
def status(
    name: Annotated[str, typer.Argument(help="A game's name; without it, all games are listed.")] = "",
    namespace: Namespace = "",
    context: Context = "",
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="List the games of all namespaces.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the table up to date until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two updates with --watch.")] = 2.0,
) -> None:
    """List games and their progress; or show one game in full.

    \b
    kubectl swarmgame status                 the games of this namespace
    kubectl swarmgame status -A              of all namespaces
    kubectl swarmgame status sums            progress, conditions and peers of one
    kubectl swarmgame status sums --watch    the same, live
    """

    async def table(api: Api, namespace: str) -> Any:
        if name:
            return view.game(
                await _game(api, namespace, name), await _pods(api, namespace, name, "peer"), datetime.now(UTC)
            )
        return view.games(await _all(api, GAME, None if all_namespaces else namespace), datetime.now(UTC))

    async def show(api: Api, place: str) -> None:
        console = Console()
        if not watch:
            console.print(await table(api, place))
            return
        with Live(await table(api, place), console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(every)
                live.update(await table(api, place), refresh=True)

    _run(show, namespace, context)


@application.command()
def peers(name: Game, namespace: Namespace = "", context: Context = "") -> None:
    """List a game's peers: where they run, and why one is unhealthy.

    \b
    kubectl swarmgame peers sums
    """

    async def show(api: Api, place: str) -> None:
        game = await _game(api, place, name)
        Console().print(view.peers(await _pods(api, place, name, "peer"), game.get("status") or {}, datetime.now(UTC)))

    _run(show, namespace, context)


@application.command()
def logs(
    name: Game,
    peer: Peer = 0,
    role: Annotated[str, typer.Option(help="peer, bootnode, initializer, gateway or chain.")] = "peer",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until the pod ends.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", help="Show the log before the container's last restart.")
    ] = False,
    tail: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of last lines.")] = 200,
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Print the log of a peer, or of another pod of a game.

    \b
    kubectl swarmgame logs sums                   of peer 0
    kubectl swarmgame logs sums --peer 3 -f       of peer 3, followed
    kubectl swarmgame logs sums --role bootnode
    """

    async def show(api: Api, place: str) -> None:
        pod = await _pod(api, place, name, role, peer)
        path = POD.path(place, pod["metadata"]["name"], "log")
        query = {
            "tailLines": tail,
            "container": pod["spec"]["containers"][0]["name"],
            "previous": "true" if previous else "",
        }
        if not follow:
            sys.stdout.write(await api.text(path, query=query))
            return
        async with api.lines(path, {**query, "follow": "true"}, accept="*/*") as content:
            async for part in content.iter_any():
                sys.stdout.write(part.decode("utf-8", "replace"))
                sys.stdout.flush()

    _run(show, namespace, context)


@application.command()
def report(
    name: Game,
    peer: Peer = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for the files; created if it does not exist.")
    ] = Path("."),
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Save a game for a later analysis: the object, and a peer's status, metrics and log.

    \b
    kubectl swarmgame report sums -o sums-report
    kubectl swarmgame report sums --peer 3 -o sums-report
    """

    async def fetch(api: Api, place: str) -> None:

        game = await _game(api, place, name)
        game["metadata"].pop("managedFields", None)
        output.mkdir(parents=True, exist_ok=True)
        _save(output / "game.json", json.dumps(game, indent=2) + "\n", "the object, from the API server")
        pod = await _pod(api, place, name, "peer", peer)
        pod_name = pod["metadata"]["name"]
        sources = {
            f"peer-{peer}-status.json": (
                POD.path(place, f"{pod_name}:{HTTP_PORT}", "proxy/status"),
                "through the API server's proxy",
            ),
            f"peer-{peer}-metrics.txt": (
                POD.path(place, f"{pod_name}:{HTTP_PORT}", "proxy/metrics"),
                "through the API server's proxy",
            ),
            f"peer-{peer}.log": (POD.path(place, pod_name, "log"), "the last 10,000 lines, from the kubelet"),
        }
        missing = []
        for file, (path, how) in sources.items():
            query = (
                {"tailLines": 10_000, "container": pod["spec"]["containers"][0]["name"]}
                if file.endswith(".log")
                else {}
            )
            try:
                _save(output / file, await api.text(path, query=query, largest=64 << 20), f"of {pod_name}, {how}")
            except OperatorError as error:
                missing.append(file)
                print(f"{output / file}: not fetched; {error.reason}: {error.message}", file=sys.stderr)
        if missing:
            _fail(
                UNAVAILABLE, f"{len(missing)} of {len(sources) + 1} files are missing; try again when the peer is ready"
            )

    _run(fetch, namespace, context)


@application.command()
def export(
    name: Game,
    folder: Annotated[Path, typer.Argument(help="Where the model goes; missing or empty.")],
    peer: Annotated[
        int | None, typer.Option("--peer", "-p", min=0, help="A peer's index. Default: the first that has one.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The export with the best held-out evaluation.")] = False,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", help="Fetch the newest checkpoint, as a run's folder for `swarmgame export`."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in FOLDER.")] = False,
    image: Annotated[
        str, typer.Option(help="The worker's image, for a game that is deleted. Default: that of its peers.")
    ] = "",
    wait_seconds: Annotated[float, typer.Option(min=1, help="Longest wait for the pod that reads the claim.")] = 300.0,
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Copy a model that the peers exported (spec.model.export) to this machine.

    From a peer's pod while it runs, else through a short-lived pod that mounts the game's claim.

    \b
    kubectl swarmgame export sums sums-model                 the newest of the first peer
    kubectl swarmgame export sums sums-model --best --force
    kubectl swarmgame export sums sums-run --checkpoint      then: swarmgame export sums-run sums-model
    """

    async def fetch(api: Api, place: str) -> None:
        target = folder.absolute()
        refuse_used_folder(target, force=force)
        found = await api.get(GAME, place, name)
        pods = [(pod_facts(each).facts.index, each) for each in await _pods(api, place, name, "peer")]
        running = running_places(pods)
        if peer is not None:
            running = {index: each for index, each in running.items() if index == peer}
        executor = Executor(place, context)
        claim = claim_of(found, name)
        # A running pod shows its own peer's folder; the claim shows all.
        sufficient = bool(running) and (peer is not None or not claim or len(running) >= _replicas(found))
        async with AsyncExitStack() as stack:
            places = list(running.values())
            if not sufficient:
                if not claim:
                    _fail(
                        NOT_FOUND,
                        f"{place}/{name} keeps its checkpoints in an emptyDir, which is deleted with its pod, and no "
                        "such pod runs: set spec.storage.checkpoints.claimTemplate",
                    )
                places = [await stack.enter_async_context(claim_reader(api, place, name, claim, image, wait_seconds))]
            listed = [each for one in places for each in await executor.list(one)]
            if peer is not None:
                listed = [each for each in listed if each.peer == peer]
            if checkpoint:
                of, sources = choose_checkpoint(listed)
                if found is None:
                    _fail(
                        NOT_FOUND, f"there is no game {name} in namespace {place}, whose manifest a run's folder needs"
                    )
                complete = f"{sources[-1].partition('=')[2]}/manifest.json"
                await save(executor, of.place, sources, target, complete)
                _save(target / "game.yaml", run_manifest(found), "the game, from the API server")
                print(f"{folder}: the newest checkpoint of peer {of.peer}; now: swarmgame export {folder} MODEL")
                return
            of, path = choose_export(listed, peer, best=best)
            await save(executor, of.place, [f"{path}=."], target, EXPORT_RECORD)
            record = of.exports[path]
            print(f"{folder}: of peer {of.peer} after {record.get('rounds')} of {record.get('max_rounds')} rounds")

    _run(fetch, namespace, context)


def _replicas(game: dict[str, Any] | None) -> int:
    peers = ((game or {}).get("spec") or {}).get("peers") or {}
    return int(peers.get("replicas", 4))


def _save(path: Path, text: str, how: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {how}")


async def _game(api: Api, namespace: str, name: str) -> dict[str, Any]:
    found = await api.get(GAME, namespace, name)
    if found is None:
        _fail(NOT_FOUND, f"there is no game {name} in namespace {namespace}; `kubectl swarmgame status -A` lists all")
    return found


async def _pods(api: Api, namespace: str, name: str, role: str) -> list[dict[str, Any]]:
    return await _all(api, POD, namespace, f"swarmgame.dev/game={name},swarmgame.dev/role={role}")


async def _all(api: Api, kind: ResourceKind, namespace: str | None, selector: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        page = await api.list_page(kind, namespace, selector=selector, token=token)
        found += page["items"]
        token = page["metadata"].get("continue") or ""
        if not token:
            return found


async def _pod(api: Api, namespace: str, name: str, role: str, index: int) -> dict[str, Any]:
    """Return the newest pod of a peer, or of another role."""
    pods = [
        each
        for each in await _pods(api, namespace, name, role)
        if role != "peer" or pod_facts(each).facts.index == index
    ]
    if not pods:
        what = f"peer {index}" if role == "peer" else role
        _fail(NOT_FOUND, f"{what} of {namespace}/{name} has no pod; see `kubectl swarmgame status {name}`")
    return max(pods, key=lambda each: str(each["metadata"]["creationTimestamp"]))


@asynccontextmanager
async def _connected(context: str) -> AsyncIterator[Api]:
    api = await connect(context=context)
    try:
        yield api
    finally:
        await api.close()


def _namespace(given: str, context: str) -> str:
    if given:
        return given
    try:
        contexts, active = list_kube_config_contexts(config_file=os.environ.get("KUBECONFIG"))
    except ConfigException:
        return "default"
    chosen = next((each for each in contexts if each["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _run(work: Callable[[Api, str], Awaitable[None]], namespace: str, context: str) -> None:
    async def connected() -> None:
        async with _connected(context) as api:
            await work(api, _namespace(namespace, context))

    try:
        asyncio.run(connected())
    except ConfigException as error:
        _fail(BAD_CONFIG, f"the kubeconfig cannot be used: {error}; set KUBECONFIG or --context")
    except ExportError as error:
        _fail(error.code, str(error))
    except NotFound as error:
        _fail(NOT_FOUND, f"{error.message}; is the definition of SwarmGame installed?")
    except OperatorError as error:
        _fail(UNAVAILABLE, f"{error.reason}: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Run the command."""
    application()


if __name__ == "__main__":
    main()
