"""`swarmgame-operator`: reads the settings, and runs kopf with the handlers.

Only this module turns errors into exit codes. 0: stopped by a signal. 75: leadership was lost, the watch of games broke
for good, or a port is in use; start again. 78: invalid settings or kubeconfig. 1: a bug, with a traceback.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import aiohttp
import kopf
from kubernetes.aio.config import ConfigException

from swarmgame_common.logs import configure, get_logger
from swarmgame_common.settings import InvalidSettings
from swarmgame_common.sockets import host_and_port
from swarmgame_operator import handlers  # noqa: F401  # registers them
from swarmgame_operator.api import connect
from swarmgame_operator.errors import LeadershipLost, WatchLost
from swarmgame_operator.operator import package_version
from swarmgame_operator.settings import OperatorSettings, operator_settings

log = get_logger(__name__)

DONE, FAILED, TEMPORARY, BAD_CONFIG = 0, 1, 75, 78


async def operate(settings: OperatorSettings) -> int:
    """Run the operator until SIGTERM or SIGINT. Return the exit code.

    Raises:
        ConfigException: no kubeconfig, and not in a cluster.
    """
    await (await connect()).close()  # kopf would report what is wrong with a kubeconfig as a failed handler
    memo = kopf.Memo(settings=settings)
    probes = host_and_port(settings.probe_host, settings.probe_port)
    try:
        await kopf.operator(
            memo=memo,
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
            standalone=True,
            liveness_endpoint=f"http://{probes}/healthz" if settings.probe_port else None,
        )
    except Exception as error:
        if "operator" in memo and memo.operator.failure is not None:
            return _failed(memo.operator.failure)
        if isinstance(error.__cause__, kopf.PermanentError):
            log.error("not started", error=str(error.__cause__))
            return TEMPORARY if isinstance(error.__cause__.__cause__, OSError) else BAD_CONFIG
        if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
            log.error(f"cannot serve /healthz on {probes}; set SWARMGAME_OPERATOR_PROBE_PORT", error=str(error))
            return TEMPORARY
        log.error("the watch of games broke for good; start again", error=repr(error), exc_info=error)
        return TEMPORARY
    failure = memo.operator.failure if "operator" in memo else None  # none if it was stopped before its start
    return DONE if failure is None else _failed(failure)


def _failed(failure: BaseException) -> int:
    """Log why the operator ended by itself. Return the exit code."""
    lost = failure.subgroup((LeadershipLost, WatchLost)) if isinstance(failure, BaseExceptionGroup) else None
    if lost is None:
        log.error("the operator failed", exc_info=failure)
        return FAILED
    error: BaseException = lost
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    what = "leadership lost" if isinstance(error, LeadershipLost) else "the watch of games is lost; start again"
    log.error(what, error=str(error))
    return TEMPORARY


def main() -> None:
    """Run the command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))  # until kopf handles it
    try:
        settings = operator_settings(os.environ)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_CONFIG)
    configure(form=settings.log_format, level=settings.log_level)
    log.info("starting", version=package_version(), namespaces=settings.watch_namespaces or "all")
    try:
        code = asyncio.run(operate(settings))
    except ConfigException as error:
        print(f"no API server: {error}; run inside a cluster, or set KUBECONFIG", file=sys.stderr)
        sys.exit(BAD_CONFIG)
    sys.exit(code)


if __name__ == "__main__":
    main()
