"""The wiring of the operator: all that kopf calls.

    kopf run -A -m swarmgame_operator.handlers

kopf owns the process (signals, start and clean-up), the login, the discovery of the CRD, the watch of SwarmGames, the
liveness probe and the posting of events. What it delivers goes into the cache; the work queue decides when a game is
reconciled. So no handler waits for a game, nothing needs to be remembered in the objects, and games carry neither an
annotation nor a finalizer of kopf's. Objects of games have informers of their own: see docs/decisions/0036.

The memo holds `operator`, and what an embedding program sets before the start: `settings` (else from the environment),
`connect` (makes the connection), `ended` (called when the operator ends by itself; else the process gets SIGTERM).
An error of a handler here is not retried: the process ends, and starts again.
kopf copies the memo for every object, so it holds the operator and is not the operator itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import os
import signal
from collections.abc import Collection, Iterator
from typing import Any

import click
import kopf
from kubernetes.aio.config import ConfigException

from swarmgame_common.logs import configure
from swarmgame_common.settings import InvalidSettings
from swarmgame_operator.api import GAME, MANAGER, connect
from swarmgame_operator.metrics import OperatorMetrics
from swarmgame_operator.operator import Operator, package_version
from swarmgame_operator.settings import OperatorSettings, operator_settings

EXIT_SECONDS = 20.0
"""After a signal, or the failure of a part of kopf, the process is killed if it has not ended by then: a watch that
swallows its cancellation would keep it alive without working (kopf 1.45).
"""
LOGIN_SECONDS = 5.0
"""Least time between two logins. While the API server refuses a token, kopf would log in again at once, for ever."""
CRD_NAME = f"{GAME.plural}.{GAME.api.split('/')[0]}"


class NoStorage(kopf.DiffBaseStorage, kopf.ProgressStorage):
    """Stores nothing in the objects, as no handler needs a state. The default copies every object twice an event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Remove nothing."""

    def touch(self, **_: Any) -> None:
        """Change nothing."""

    def clear(self, *, essence: Any) -> Any:
        return essence


class EndlessBackoffs:
    """Seconds between attempts of a request, without end: after the last one, kopf would end the process."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0, 4.0), itertools.repeat(8.0))


@kopf.on.startup(errors=kopf.ErrorsMode.PERMANENT)
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Configure kopf, and start the operator."""
    try:
        chosen = memo.get("settings") or operator_settings(os.environ)
    except InvalidSettings as error:
        raise kopf.PermanentError(str(error)) from error
    if "settings" not in memo:
        _replace_logs_of_kopf_run(chosen)
    if settings.peering.clusterwide == bool(chosen.watch_namespaces) or not of_command_line(chosen.watch_namespaces):
        raise kopf.PermanentError(
            f"kopf watches {'all namespaces' if settings.peering.clusterwide else 'other namespaces'}, and "
            f"SWARMGAME_OPERATOR_WATCH_NAMESPACES is {','.join(chosen.watch_namespaces) or 'empty (all)'}; set both to "
            "the same: -A and none, or -n NAMESPACE and that name"
        )
    configure_kopf(settings, chosen)
    metrics = OperatorMetrics(package_version())
    try:
        api = await memo.get("connect", connect)(metrics.requested)
    except ConfigException as error:
        raise kopf.PermanentError(f"no API server: {error}; run inside a cluster, or set KUBECONFIG") from error
    operator = Operator(chosen, api, metrics)
    try:
        await operator.start(memo.get("ended", lambda: signal.raise_signal(signal.SIGTERM)))
    except OSError as error:
        await operator.stop()
        raise kopf.PermanentError(
            f"cannot serve /metrics on port {chosen.metrics_port}: {error}; set SWARMGAME_OPERATOR_METRICS_PORT"
        ) from error
    memo.operator = operator


def of_command_line(namespaces: Collection[str]) -> bool:
    """Return whether `kopf run -n` has the same namespaces; True if kopf was not started by its command line."""
    command = click.get_current_context(silent=True)
    if command is None or "clusterwide" not in command.params:
        return True
    return set(command.params["namespaces"]) == set(namespaces)


def _replace_logs_of_kopf_run(chosen: OperatorSettings) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler.formatter).__module__.startswith("kopf."):  # each line would be written twice
            root.removeHandler(handler)
    configure(form="auto", level=chosen.log_level)


def configure_kopf(settings: kopf.OperatorSettings, chosen: OperatorSettings) -> None:
    """Set kopf's settings."""
    settings.process.ultimate_exiting_timeout = EXIT_SECONDS
    settings.persistence.diffbase_storage = settings.persistence.progress_storage = NoStorage()
    settings.peering.standalone = True  # of several operators, the holder of the Lease works
    # Reading CRDs needs rights to the cluster; without them kopf would ask for ever and never start.
    settings.scanning.disabled = bool(chosen.watch_namespaces)
    crds = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    settings.watching.field_selectors[crds] = f"metadata.name={CRD_NAME}"
    settings.watching.server_timeout = 300
    settings.watching.chunk_size = 250
    settings.queueing.idle_timeout = 0.2  # each listed object has a task for this long
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = EndlessBackoffs()
    settings.posting.reporting_component = f"swarmgame.dev/{MANAGER}"
    settings.posting.reporting_instance = (os.environ.get("HOSTNAME") or MANAGER)[:128]
    settings.posting.event_name_prefix = "swarmgame-"
    for name in ("kopf.objects", "kopf.activities.probe"):  # else a line for every event and every probe
        logging.getLogger(name).setLevel(logging.WARNING)


@kopf.on.cleanup(errors=kopf.ErrorsMode.PERMANENT)
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Stop the operator. Under `kopf run` it fails if the operator had ended by itself, so that the process does not
    end with 0. Otherwise the embedding program reads `failure`, and kopf closes its connections.
    """
    operator: Operator | None = memo.get("operator")
    if operator is not None:
        await operator.stop()
        if operator.failure is not None and "settings" not in memo:
            raise kopf.PermanentError(f"the operator ended: {operator.failure!r}") from operator.failure


@kopf.on.login()
async def login(memo: kopf.Memo, **_: Any) -> kopf.ConnectionInfo:
    """Log in with the operator's own credentials; called again when they were refused or have expired."""
    loop = asyncio.get_running_loop()
    if (before := memo.get("logged_in")) is not None:
        await asyncio.sleep(before + LOGIN_SECONDS - loop.time())
    memo.logged_in = loop.time()
    return kopf.ConnectionInfo(**await memo.operator.api.credentials())


@kopf.on.probe(id="operator", errors=kopf.ErrorsMode.PERMANENT)
async def alive(memo: kopf.Memo, **_: Any) -> str:
    """Fail if this process should be restarted."""
    if problem := memo.operator.liveness_problem():
        raise kopf.PermanentError(problem)
    return "ok"


@kopf.on.event(GAME.api, GAME.plural)
async def changed(event: kopf.RawEvent, namespace: str | None, name: str, uid: str, memo: kopf.Memo, **_: Any) -> None:
    """Store a game as the watch delivers it."""
    operator: Operator = memo.operator
    key = (namespace or "", name)
    if operator.events.context is None:
        operator.events.context = contextvars.copy_context()
    if event["type"] == "DELETED":
        operator.cache.forget_game(key, uid)
    else:
        operator.cache.put_game(key, event["object"])
