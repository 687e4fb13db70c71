"""The gas that a gateway may use in an hour."""

from __future__ import annotations

import logging
from collections import deque

log = logging.getLogger(__name__)
HOUR = 3_600.0


class GasBudget:
    """The gas limits of the transactions of the last hour.

    Args:
        gas_per_hour: the most; 0 sets no limit.
    """

    def __init__(self, gas_per_hour: int) -> None:
        self._most = gas_per_hour
        self._spent: deque[tuple[float, int]] = deque()
        self._was_spent = False

    def add(self, gas: int, now: float) -> None:
        """Take in a transaction that was sent."""
        if self._most:
            self._spent.append((now, gas))

    def is_spent(self, now: float) -> bool:
        """Return whether the limit is reached; the first time, a warning names the setting."""
        while self._spent and now - self._spent[0][0] >= HOUR:
            self._spent.popleft()
        spent = 0 < self._most <= sum(gas for _, gas in self._spent)
        if spent and not self._was_spent:
            log.warning(
                "the gas of this hour is used up: %d; messages wait (SWARMGAME_GATEWAY_GAS_PER_HOUR)", self._most
            )
        self._was_spent = spent
        return spent
