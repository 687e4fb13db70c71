"""Leader election: of several operators, only the holder of the Lease writes.

`kubernetes.aio.leaderelection` ends on the first broken connection and never releases its lock, so a restart would
wait for the full lease duration; hence this. Clocks of other operators are not read: a holder is gone when its Lease
has not changed for its own duration. Invariant: a leader stops (`LeadershipLost`) before another may take over.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any

from swarmgame_common.logs import get_logger
from swarmgame_operator.api import LEASE, Api
from swarmgame_operator.errors import LeadershipLost, OperatorError

log = get_logger(__name__)

RENEWALS = 5
"""Renewals per lease duration."""
RELEASE_SECONDS = 2.0
"""How long a stopping operator tries to release its Lease; it expires anyway."""
POLL_SECONDS = 1.0
"""A candidate reads the Lease this often, so it takes over at most this much (and a fifth) later than it could."""


class Leader:
    """One candidate.

    Args:
        identity: unique, also among earlier processes of the same pod.
        seconds: duration of the lease.
    """

    def __init__(self, api: Api, *, namespace: str, name: str, identity: str, seconds: int) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._identity, self._seconds = identity, seconds
        self._version, self._expires = "", 0.0
        self.leads = False

    async def acquire(self) -> None:
        """Wait until this candidate leads."""
        while not await self._try():
            delay = min(POLL_SECONDS, self._seconds / RENEWALS) * (1 + random.random() / 5)
            left = self._expires - asyncio.get_running_loop().time()
            await asyncio.sleep(left + 0.01 if 0 < left < delay else delay)
        self.leads = True
        log.info("leading", identity=self._identity)

    async def hold(self) -> None:
        """Renew the lease for as long as possible.

        Raises:
            Lost: another operator leads, or the lease could not be renewed in time.
        """
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self._seconds / RENEWALS)
            left = renewed + self._seconds * 2 / 3 - loop.time()
            try:
                async with asyncio.timeout(max(0.1, left)):
                    started = loop.time()
                    if await self._try():
                        renewed = started
            except TimeoutError:
                log.warning("lease not renewed", error="the API server did not answer in time")
            if loop.time() - renewed >= self._seconds * 2 / 3:
                self.leads = False
                raise LeadershipLost(f"the Lease {self._namespace}/{self._name} could not be renewed in time")

    async def release(self) -> None:
        """Release the lease, so another operator can take over at once."""
        if not self.leads:
            return
        self.leads = False
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._api.get(LEASE, self._namespace, self._name)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
                    await self._api.replace(LEASE, self._namespace, lease)
        except OperatorError as error:
            log.warning("lease not released", reason=error.reason)
        except TimeoutError:
            log.warning("lease not released", reason=f"no answer for {RELEASE_SECONDS:.0f} s")

    async def _try(self) -> bool:
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
            if lease is None:
                await self._api.create(LEASE, self._namespace, self._body({"metadata": {"name": self._name}}, 0))
                return True
            spec = lease.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            if holder not in ("", self._identity) and not self._expired(lease, spec):
                return False
            changes = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
            await self._api.replace(LEASE, self._namespace, self._body(lease, changes))
            return True
        except OperatorError as error:  # a conflict means that another was faster; other errors may pass
            log.info("lease not taken", reason=error.reason, message=error.message)
            return False

    def _expired(self, lease: dict[str, Any], spec: dict[str, Any]) -> bool:
        now = asyncio.get_running_loop().time()
        version = str(lease["metadata"]["resourceVersion"])
        if self._version != version:
            self._version = version
            self._expires = now + float(spec.get("leaseDurationSeconds") or self._seconds)
        return now > self._expires

    def _body(self, lease: dict[str, Any], changes: int) -> dict[str, Any]:
        spec = dict(lease.get("spec") or {})
        now = _now()
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._seconds,
            "renewTime": now,
            "leaseTransitions": changes,
        }
        return {**lease, "apiVersion": LEASE.api, "kind": LEASE.name, "spec": spec}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
