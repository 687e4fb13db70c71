"""`swarmgame-operator`: reads the settings, connects to the API server, and runs.

Only this module turns errors into exit codes. 0: stopped by a signal. 75: leadership was lost; start again. 78:
invalid settings or kubeconfig. 1: a bug, with a traceback.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from kubernetes.aio.config import ConfigException

from swarmgame_common.logs import configure, get_logger
from swarmgame_common.settings import InvalidSettings
from swarmgame_operator.api import connect
from swarmgame_operator.errors import LeadershipLost
from swarmgame_operator.metrics import OperatorMetrics
from swarmgame_operator.operator import Operator, package_version
from swarmgame_operator.settings import OperatorSettings, operator_settings

log = get_logger(__name__)

DONE, LOST, BAD_CONFIG = 0, 75, 78


async def operate(settings: OperatorSettings) -> None:
    """Run an operator until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = OperatorMetrics(package_version())
    api = await connect(metrics.requested)
    try:
        await Operator(settings, api, metrics).run(stop)
    finally:
        await api.close()


def main() -> None:
    """Run the command."""
    try:
        settings = operator_settings(os.environ)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_CONFIG)
    configure(form=settings.log_format, level=settings.log_level)
    log.info("starting", version=package_version(), namespaces=settings.watch_namespaces or "all")
    try:
        asyncio.run(operate(settings))
    except ConfigException as error:
        print(f"no API server: {error}; run inside a cluster, or set KUBECONFIG", file=sys.stderr)
        sys.exit(BAD_CONFIG)
    except BaseExceptionGroup as group:
        if group.subgroup(LeadershipLost) is None:
            raise
        log.error("leadership lost", error=str(group.subgroup(LeadershipLost)))
        sys.exit(LOST)
    sys.exit(DONE)


if __name__ == "__main__":
    main()
