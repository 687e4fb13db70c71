"""`swarmgame-operator`: reads the settings, and runs kopf with the handlers.

Only this module turns errors into exit codes. 0: stopped by a signal. 75: leadership was lost, or the watch of games
broke for good; start again. 78: invalid settings or kubeconfig. 1: a bug, with a traceback.
"""

from __future__ import annotations

import asyncio
import os
import sys

import kopf
from kubernetes.aio.config import ConfigException

from swarmgame_common.logs import configure, get_logger
from swarmgame_common.settings import InvalidSettings
from swarmgame_operator import handlers  # noqa: F401  # registers them
from swarmgame_operator.api import connect
from swarmgame_operator.errors import LeadershipLost
from swarmgame_operator.operator import package_version
from swarmgame_operator.settings import OperatorSettings, operator_settings

log = get_logger(__name__)

DONE, FAILED, LOST, BAD_CONFIG = 0, 1, 75, 78


async def operate(settings: OperatorSettings) -> int:
    """Run the operator until SIGTERM or SIGINT. Return the exit code.

    Raises:
        ConfigException: no kubeconfig, and not in a cluster.
    """
    await (await connect()).close()  # kopf would report what is wrong with a kubeconfig as a failed handler
    memo = kopf.Memo(settings=settings)
    host = f"[{settings.probe_host}]" if ":" in settings.probe_host else settings.probe_host
    try:
        await kopf.operator(
            memo=memo,
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
            standalone=True,
            liveness_endpoint=f"http://{host}:{settings.probe_port}/healthz" if settings.probe_port else None,
        )
    except Exception as error:
        failure = memo.operator.failure if "operator" in memo else error
        if failure is None:
            log.error("the watch of games broke for good; start again", error=repr(error), exc_info=error)
            return LOST
        if isinstance(failure, BaseExceptionGroup) and (lost := failure.subgroup(LeadershipLost)) is not None:
            log.error("leadership lost", error=str(lost.exceptions[0]))
            return LOST
        log.error("the operator failed", exc_info=failure)
        return FAILED
    return DONE


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
        code = asyncio.run(operate(settings))
    except ConfigException as error:
        print(f"no API server: {error}; run inside a cluster, or set KUBECONFIG", file=sys.stderr)
        sys.exit(BAD_CONFIG)
    sys.exit(code)


if __name__ == "__main__":
    main()
