"""`swarmgame-operator`: reads the settings, finds the API server, runs, and turns how it ended into an exit code.

Invariant: only here does an error become an exit code. 0: told to stop. 75: leadership was lost, start again. 78: the
settings or the kubeconfig make no sense. 1: our fault, with a traceback.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from kubernetes.aio.config import ConfigException

from swarmgame_operator.api import connect
from swarmgame_operator.errors import Lost
from swarmgame_operator.logs import configure, log
from swarmgame_operator.metrics import Metrics
from swarmgame_operator.running import Operator, package_version
from swarmgame_operator.settings import InvalidSettings, Settings, read_settings

DONE, LOST, BAD_CONFIG = 0, 75, 78


async def operate(settings: Settings) -> None:
    """Runs an operator until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics(package_version())
    api = await connect(metrics.requested)
    try:
        await Operator(settings, api, metrics).run(stop)
    finally:
        await api.close()


def main() -> None:
    """The command."""
    try:
        settings = read_settings(os.environ)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_CONFIG)
    configure(settings.log_format, settings.log_level)
    log.info("starting", version=package_version(), namespaces=settings.watch_namespaces or "all")
    try:
        asyncio.run(operate(settings))
    except ConfigException as error:
        print(f"no API server: {error}; run inside a cluster, or set KUBECONFIG", file=sys.stderr)
        sys.exit(BAD_CONFIG)
    except BaseExceptionGroup as group:
        if group.subgroup(Lost) is None:
            raise
        log.error("leadership lost", error=str(group.subgroup(Lost)))
        sys.exit(LOST)
    sys.exit(DONE)


if __name__ == "__main__":
    main()
