"""Remote work: how much of a round the contributions of other peers may take, to be verified and scored.

Identities are free, and each may send as many valid rollouts as the codec takes. So peers that nobody vouches for have,
all together, a quarter of the time that our own work takes in a round; where no peer is vouched for, those that count
are the swarm, and have as much time as our own work. In each case they may have four times what our own contribution
takes, so that what an honest peer sends fits. In a stage where we have none, our largest of the last rounds counts, and
before we have made any, the median one of the peers that count. A contribution is used completely or not at all: peers
that are vouched for come first, then those that count, then all others, in an order that is another one in every round.

Pure state; times are measured by the caller. What verifying and scoring a rollout takes is the mean of the last rounds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

from swarmgame.game.protocol import Collected
from swarmgame.game.state import Contribution, PeerId
from swarmgame.seeds import derive_seed

SHARE = 0.25
"""Of the time of our own work, for all peers that nobody vouches for. Where nobody is vouched for, it is for those that
do not count.
"""
SWARM_SHARE = 1.0
"""The same for all peers that count, where no peer is vouched for."""
CONTRIBUTIONS = 4
"""In contributions as large as our own: what one such peer may send, and what all together may send at least."""
WINDOW = 9
UNKNOWN_ROLLOUTS = 64
"""Rollouts of a contribution where nothing says how large one is: neither ours nor that of a peer that counts."""
KNOWN = 3
"""Rounds after which the usual times are known."""
ANCHOR = "anchor"
_COUNTING = frozenset({ANCHOR, "counted", "provisional"})
BEYOND_BUDGET = "beyond-budget"


def rollouts_of(contribution: Contribution) -> int:
    """Return the number of rollouts in a contribution. A group without any counts as one: its question is made too."""
    return sum(max(1, len(group.rollouts)) for group in contribution.groups)


class RemoteWork:
    """The budgets of one peer.

    Args:
        warn: called once with a sentence, when contributions are left out.
        closed: the set of peers is fixed, so that every peer is vouched for.
    """

    def __init__(self, warn: Callable[[str], None] = lambda text: None, *, closed: bool = False) -> None:
        self._warn = warn
        self._closed = closed
        self._warned = False
        self._own_seconds: deque[float] = deque(maxlen=WINDOW)
        self._rollout_seconds: deque[float] = deque(maxlen=WINDOW)
        self._own_scoring: deque[float] = deque(maxlen=WINDOW)
        self._own_sizes: deque[int] = deque(maxlen=WINDOW)
        self._standings: Mapping[PeerId, str] = {}
        self._rollouts = 0
        self._scoring = 0.0

    # ── verifying
    def bounded(self, collected: Collected, own: Contribution | None, *, round: int, stages: int) -> Collected:
        """Return what was collected in a stage, without the contributions that are beyond the budget.

        Args:
            own: our own contribution to the stage.
            stages: of a round, which share its budget.
        """
        self._standings = dict(collected.standings)
        size_of_ours = self._size(own, collected)
        kept: set[int] = set()
        by_author: Counter[PeerId] = Counter()
        used = {True: 0, False: 0}
        for position in sorted(
            range(len(collected.contributions)), key=lambda each: self._place(collected, each, round)
        ):
            contribution = collected.contributions[position]
            size, peer = rollouts_of(contribution), contribution.peer
            counts = self._is_swarm(peer)
            if self.is_vouched_for(peer) or (
                by_author[peer] + size <= CONTRIBUTIONS * size_of_ours
                and self._fits(used[counts] + size, self._most(size_of_ours, counts, stages))
            ):
                kept.add(position)
                by_author[peer] += size
                used[counts] += 0 if self.is_vouched_for(peer) else size
        self._rollouts += sum(rollouts_of(collected.contributions[position]) for position in kept)
        left_out = len(collected.contributions) - len(kept)
        if not left_out:
            return collected
        self._say(left_out, len(collected.contributions), round)
        return replace(
            collected,
            contributions=tuple(each for at, each in enumerate(collected.contributions) if at in kept),
            origins=tuple(each for at, each in enumerate(collected.origins) if at in kept),
            arrivals=tuple(each for at, each in enumerate(collected.arrivals) if at in kept),
            outcomes={**collected.outcomes, BEYOND_BUDGET: collected.outcomes.get(BEYOND_BUDGET, 0) + left_out},
        )

    def is_vouched_for(self, peer: PeerId) -> bool:
        """Return whether the manifest or the runner vouches for a peer."""
        return self._closed or self._standings.get(peer) == ANCHOR

    def _is_swarm(self, peer: PeerId) -> bool:
        """Whether a peer is of the swarm itself, where nobody is vouched for."""
        return ANCHOR not in self._standings.values() and self._standings.get(peer) in _COUNTING

    def _place(self, collected: Collected, position: int, round: int) -> tuple[int, int, int]:
        contribution = collected.contributions[position]
        peer = contribution.peer
        order = 0 if self.is_vouched_for(peer) else 1 if self._standings.get(peer) in _COUNTING else 2
        return order, derive_seed("remote-work", round, peer), -contribution.round

    @staticmethod
    def _fits(size: int, most: int | None) -> bool:
        return most is None or size <= most

    def _size(self, own: Contribution | None, collected: Collected) -> int:
        """Return the rollouts of a contribution like ours."""
        if own is not None and (size := rollouts_of(own)):
            self._own_sizes.append(size)
            return size
        if self._own_sizes:
            return max(self._own_sizes)
        counted = [rollouts_of(each) for each in collected.contributions if self._standings.get(each.peer) in _COUNTING]
        # Of some roles a peer samples nothing in a stage.
        sampled = [size for size in counted if size]
        return int(median(sampled)) if sampled else UNKNOWN_ROLLOUTS

    def _most(self, size_of_ours: int, counts: bool, stages: int) -> int | None:
        """Return how many rollouts of all together fit; None for any number."""
        least = CONTRIBUTIONS * size_of_ours
        if counts and not self._is_known():
            return None
        if not self._is_known() or not self._rollout_seconds:
            return least
        cost = max(1e-9, sum(self._rollout_seconds) / len(self._rollout_seconds))
        return max(least, int(self._budget(counts) / stages / cost))

    def _is_known(self) -> bool:
        return len(self._own_seconds) >= KNOWN

    def _budget(self, counts: bool) -> float:
        return (SWARM_SHARE if counts else SHARE) * median(self._own_seconds)

    # ── scoring
    def scoring_seconds(self) -> float | None:
        """Return the processor time of a round for scoring the answers of all peers that nobody vouches for; None where
        nothing is known yet.
        """
        if not self._is_known():
            return None
        counts = ANCHOR not in self._standings.values()
        return max(self._budget(counts), CONTRIBUTIONS * max(self._own_scoring))

    def scored_own(self, seconds: float) -> None:
        """Note what scoring some of our own answers has taken."""
        self._scoring += seconds

    # ── measuring
    def round_finished(self, own_rollouts: int, seconds: Mapping[str, float]) -> None:
        """Note the times of a round.

        Args:
            own_rollouts: number of our own.
            seconds: by phase, as in a `RoundReport`.
        """
        remote, self._rollouts = self._rollouts, 0
        self._own_scoring.append(self._scoring)
        self._scoring = 0.0
        self._own_seconds.append(sum(seconds.get(phase, 0.0) for phase in ("data", "generate", "train")))
        if remote:
            scoring = seconds.get("rewards", 0.0) * remote / (remote + own_rollouts)
            self._rollout_seconds.append((seconds.get("listen", 0.0) + scoring) / remote)

    def _say(self, left_out: int, of: int, round: int) -> None:
        if self._warned:
            return
        self._warned = True
        self._warn(
            f"round {round}: {left_out} of {of} contributions of other peers were left out, since to verify and score "
            f"them would take more than {SHARE:.0%} of the time of this peer's own work (counted: {BEYOND_BUDGET}). "
            "Likely cause: many peers that nobody vouches for, or contributions that are made to be large. Name the "
            "peers that you trust: communication.admission Allowlist or Registered, or --anchor ID"
        )
