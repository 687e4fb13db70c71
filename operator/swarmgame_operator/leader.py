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
RELEASE_SECONDS = 10.0
"""How long a stopping operator tries to release its Lease, which takes two requests. It expires anyway, but others wait
for that; the process has 20 s for its end, and its pod 30 s.
"""
POLL_SECONDS = 1.0
"""A candidate reads the Lease this often, so it takes over at most this much (and a fifth) later than it could."""
LEADING_SHARE = 2 / 3
"""Of the lease's duration: how long a leader writes after the beginning of its last renewal. The rest is for requests
that are under way, and for clocks that run at another speed.
"""


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
        self._renewed = 0.0
        """When the last successful renewal began: the Lease is this candidate's for its duration from then on."""
        self.leads = False

    async def acquire(self) -> None:
        """Wait until this candidate leads. It does not with a Lease that it got so slowly that too little of it is
        left; then it waits until the Lease has expired for the others, which may have a faster connection.
        """
        while not (held := await self._take()) or self._left() <= 0:
            if held:
                log.warning("lease taken too slowly", seconds=round(self._seconds * LEADING_SHARE - self._left(), 1))
                await asyncio.sleep(self._seconds)
            delay = min(POLL_SECONDS, self._seconds / RENEWALS) * (1 + random.random() / 5)
            left = self._expires - asyncio.get_running_loop().time()
            await asyncio.sleep(left + 0.01 if 0 < left < delay else delay)
        self.leads = True
        log.info("leading", identity=self._identity)

    async def hold(self) -> None:
        """Renew the lease for as long as possible.

        Raises:
            LeadershipLost: another operator leads, or the lease could not be renewed in time.
        """
        while True:
            await asyncio.sleep(max(0.1, min(self._seconds / RENEWALS, self._left())))
            try:
                async with asyncio.timeout(max(0.1, self._left())):
                    held = await self._take()
            except TimeoutError:
                log.warning("lease not renewed", error="the API server did not answer in time")
                held = None
            if held is False or self._left() <= 0:
                self.leads = False
                why = "could not be renewed in time" if held is not False else "is another operator's"
                raise LeadershipLost(f"the Lease {self._namespace}/{self._name} {why}")

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

    def _left(self) -> float:
        """Return the seconds for which this candidate may lead without another renewal."""
        return self._renewed + self._seconds * LEADING_SHARE - asyncio.get_running_loop().time()

    async def _take(self) -> bool | None:
        """Acquire or renew the Lease. Return whether it is this candidate's now; None if that is not known."""
        began = asyncio.get_running_loop().time()
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
            if lease is None:
                await self._api.create(LEASE, self._namespace, self._body({"metadata": {"name": self._name}}, 0))
                self._renewed = began
                return True
            spec = lease.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            if holder not in ("", self._identity) and not self._expired(lease, spec):
                return False
            changes = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
            await self._api.replace(LEASE, self._namespace, self._body(lease, changes))
            self._renewed = began
            return True
        except OperatorError as error:  # a conflict means that another was faster; other errors may pass
            log.info("lease not taken", reason=error.reason, message=error.message)
            return None

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
