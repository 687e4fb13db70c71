"""Records of other peers: whose claims do not fit their rollouts."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from scripted_game import SHARE, TWO, Scripted, manager, remote
from toys import ToyTrainer

from swarmgame.game.author_records import (
    BAND,
    DOUBTFUL_ROUNDS,
    LARGEST_RATIO,
    LEAST_TOKENS,
    MAX_AUTHORS,
    AuthorRecords,
    RemoteUse,
)
from swarmgame.game.state import PeerId


def use(mean: float, tokens: int = LEAST_TOKENS) -> RemoteUse:
    return RemoteUse(tokens=tokens, ratios=mean * tokens)


@pytest.mark.parametrize(("mean", "doubtful"), [(1.0, False), (0.1, False), (1.4, False), (0.04, True), (1.6, True)])
def test_an_author_whose_mean_ratio_is_outside_the_band_is_left_out_for_ten_rounds(mean: float, doubtful: bool) -> None:
    records = AuthorRecords()
    assert records.record(4, {"liar": use(mean), "honest": use(1.0)}) == ({"liar"} if doubtful else set())
    left_out = [number for number in range(40) if records.doubtful(number)]
    assert left_out == (list(range(15)) if doubtful else [])
    assert not doubtful or left_out[-1] == 4 + DOUBTFUL_ROUNDS
    assert "honest" not in records.doubtful(5)


def test_there_is_no_verdict_over_few_tokens_and_what_is_older_counts_less() -> None:
    records = AuthorRecords()
    assert not records.record(0, {"liar": use(2.0, 600)})
    assert records.record(1, {"liar": use(2.0, 600)}) == {"liar"}
    assert not records.record(20, {"liar": use(2.0, 900)})  # it begins again
    turned = AuthorRecords()
    turned.record(0, {"late": use(1.0, 100_000)})
    found = [number for number in range(1, 30) if turned.record(number, {"late": use(2.0, 10_000)})]
    assert found[0] <= 5


def test_records_are_bounded_and_a_resumed_peer_has_the_same() -> None:
    records = AuthorRecords()
    for number in range(MAX_AUTHORS + 100):
        records.record(number, {f"peer-{number}": use(2.0)})
    state = records.state_dict()
    assert len(state["authors"]) == MAX_AUTHORS
    again = AuthorRecords()
    again.load_state_dict(json.loads(json.dumps(state)))
    assert again.state_dict() == state
    assert again.doubtful(1100) == records.doubtful(1100) != frozenset()


class Measuring(ToyTrainer):
    """Finds that the claims of one peer are far too low, and that some of its rollouts are implausible."""

    def remote_uses(self) -> Mapping[PeerId, RemoteUse]:
        used = {key.peer for key in self.trained} - {"me"}
        self.trained = []
        return {peer: RemoteUse(0.25, 2000, 3900.0, {"implausible": 2}) for peer in used}


def test_the_loop_leaves_a_doubtful_author_out_says_so_and_counts_it(caplog: pytest.LogCaptureFixture) -> None:
    scripted = Scripted(lambda own: [remote("other", own.round)], members=TWO)
    game, seen, _ = manager(scripted, SHARE, trainer=Measuring())
    game.progression = replace(game.progression, max_rounds=13)
    game.run()
    assert [report.round for report in seen.reports if report.external] == [0, 11]
    first, second = seen.reports[:2]
    assert (first.influence, first.refused) == ({"other": 0.25}, {"other": {"implausible": 2}})
    assert first.outcomes["implausible"] == 2
    assert (second.influence, second.refused) == ({}, {"other": {"doubtful-author": 1}})
    assert second.outcomes["doubtful-author"] == 1
    assert [policy.avoided for policy in scripted.policies[:2]] == [frozenset(), {"other"}]
    assert "groups of peer other are not used for 10 rounds" in caplog.text


@pytest.mark.parametrize("ours", [0.05, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("theirs", [0.05, 0.3, 0.7, 0.97])
def test_groups_with_different_rewards_do_not_make_an_honest_peer_doubtful(ours: float, theirs: float) -> None:
    """The worst case: answers of one token, right or wrong, and only groups with both are used."""
    rng, total, tokens = random.Random(0), 0.0, 0
    right, wrong = min(LARGEST_RATIO, ours / theirs), min(LARGEST_RATIO, (1 - ours) / (1 - theirs))
    while tokens < 20_000:
        group = [rng.random() < theirs for _ in range(8)]
        if 0 < sum(group) < 8:
            total += sum(right if each else wrong for each in group)
            tokens += 8
    assert BAND[0] < total / tokens < BAND[1]
