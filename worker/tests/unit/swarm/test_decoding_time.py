"""Processor time that is spent on bodies of peers that do not count."""

from __future__ import annotations

import time

from swarmgame.swarm.decoding_time import LEAST_SECONDS, DecodingTime


def test_only_the_processor_time_of_peers_that_do_not_count_is_spent() -> None:
    spent = DecodingTime()
    spent.begin_round(0.0)
    spent.begin_round(LEAST_SECONDS)  # a round so short that the least time is the bound
    with spent.measured(counts=False):
        time.sleep(3 * LEAST_SECONDS)  # as long as other processes have the processor
    assert not spent.is_over
    with spent.measured(counts=True):
        use(2 * LEAST_SECONDS)
    assert not spent.is_over
    with spent.measured(counts=False):
        use(2 * LEAST_SECONDS)
    assert spent.is_over
    spent.begin_round(2 * LEAST_SECONDS)
    assert not spent.is_over


def use(seconds: float) -> None:
    """Compute for so much processor time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
