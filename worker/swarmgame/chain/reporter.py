"""The worker's side of a peer's `ChainReporter`: where it connects to, and the observer that reports each round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from swarmgame.chain.endpoint import ChainEndpoint, to_worker_error
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, PeerId, Rewards
from swarmgame.swarm.identity import split_address
from swarmgame_chain.errors import ChainRefused
from swarmgame_chain.messages import MAX_VOTES, Domain
from swarmgame_chain.reporter import ChainReporter, ReporterStatus

logger = logging.getLogger(__name__)


def make_reporter(
    endpoint: ChainEndpoint, identity: bytes, on_change: Callable[[ReporterStatus], None] = lambda status: None
) -> ChainReporter:
    """Return a reporter for the peer of a libp2p key (32 secret bytes)."""
    domain = Domain(endpoint.chain_id, endpoint.contract)
    return ChainReporter(endpoint.rpc, domain, identity, endpoint.gateway, on_change=on_change)


def start_reporter(reporter: ChainReporter) -> tuple[str, ...]:
    """Start a reporter; return the valid bootnodes on chain, none when the node does not answer.

    Raises:
        Refused: the node is of another chain, or there is no such contract; the message names it.
    """
    try:
        return tuple(filter(_is_valid, reporter.start()))
    except ChainRefused as error:
        raise to_worker_error(error) from error


class ChainObserver(Observer):
    """Reports each round: this peer's mean reward, and the peers whose groups it trained on most."""

    def __init__(self, reporter: ChainReporter) -> None:
        self._reporter = reporter

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self._reporter.report(report.round, report.reward, winners_of(report.external))


def winners_of(external: Mapping[PeerId, int]) -> tuple[PeerId, ...]:
    """Return the peers whose groups were trained on most, at most 8; of equals the lower id comes first."""
    ranked = sorted((peer for peer, groups in external.items() if groups > 0), key=lambda peer: (-external[peer], peer))
    return tuple(ranked[:MAX_VOTES])


def _is_valid(bootnode: str) -> bool:
    # The contract's managers may write any text there.
    try:
        split_address(bootnode)
    except ValueError as error:
        logger.warning("a bootnode of the chain is left out: %s", error)
        return False
    return True
