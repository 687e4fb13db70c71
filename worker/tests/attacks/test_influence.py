"""What a hostile peer can do to the policy of an honest one, with each defence and without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from language_rounds import contribution_of, round_of, scored, state_of, trainer, with_groups
from scripted_game import SHARE, TWO, Scripted
from scripted_game import manager as toy_manager
from scripted_game import remote as toy_contribution
from toys import ToyData, ToyTrainer

from swarmgame.game.author_records import AuthorRecords
from swarmgame.game.copies import SeenRollouts
from swarmgame.game.drift_watch import DriftWatch
from swarmgame.game.protocol import Exchange
from swarmgame.game.state import Contribution, FinishReason, GameState, Group, Prompt, Rollout, Round
from swarmgame.game.verification import RolloutVerifier
from swarmgame.swarm.codec import Limits, Malformed, decode, encode
from swarmgame.swarm.inbox import Inbox
from swarmgame.swarm.messages import Announcement
from swarmgame.trainer.grpo import denominators as denominators_module
from swarmgame.trainer.grpo.remote_bounds import RemoteBounds
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.rarity import Rarity


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


BOTH = pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])


def claiming(contribution: Contribution, by: float) -> Contribution:
    """The same rollouts by another peer, each token claimed exp(by) times as likely as it was."""

    def change(group: Group) -> Group:
        rollouts = tuple(
            replace(r, logprobs=tuple(min(0.0, logprob + by) for logprob in r.logprobs)) for r in group.rollouts
        )
        return replace(group, prompt=replace(group.prompt, token_ids=()), rollouts=rollouts)

    return with_groups(contribution, change)


def distinct(each: Rollout) -> float:
    """A reward that differs within every group."""
    return float(len(set(each.token_ids))) + len(each.text) / 100


# ── weights
@BOTH
def test_low_claims_gain_no_weight(cache: Path, monkeypatch: pytest.MonkeyPatch, defended: bool) -> None:
    learner = trainer(cache)
    if not defended:
        monkeypatch.setattr(denominators_module, "REMOTE_CAP", math.inf)
    own = contribution_of(learner, round_of())
    state = state_of(round_of(), [own, claiming(own, -1.2)])
    learner.train(state, scored(state, distinct))
    weights = [use.weight for key, uses in learner.last_update().items() if key.peer == "other" for use in uses]
    heaviest = max(weights)
    assert heaviest == pytest.approx(1.0) if defended else heaviest > 2.5


# ── size
@BOTH
def test_a_group_of_thousands_of_rollouts_is_refused_before_it_is_decoded(defended: bool) -> None:
    honest = toy_contribution("flood", 0)
    flood = replace(honest, groups=tuple(replace(group, rollouts=group.rollouts * 500) for group in honest.groups))
    shards = [shard.data for shard in encode(flood, "run")]
    assert sum(map(len, shards)) < 2000
    if defended:
        with pytest.raises(Malformed, match="2000 rollouts in a group, 4 at most") as refused:
            decode(shards, Limits(rollouts_per_group=4))
        assert refused.value.reason == "too-many-rollouts"
        assert decode([shard.data for shard in encode(honest, "run")], Limits(rollouts_per_group=4)).groups
    else:
        assert sum(len(group.rollouts) for group in decode(shards).groups) == 6000


# ── copies
def _long(contribution: Contribution, peer: str) -> Contribution:
    groups = tuple(
        Group(g.prompt, tuple(Rollout(str(at) * 40, (at,) * 40, (math.log(0.25),) * 40) for at in range(4)))
        for g in contribution.groups
    )
    return replace(contribution, peer=peer, groups=groups)


@BOTH
@pytest.mark.parametrize("victim", ["another peer", "this peer"])
def test_rollouts_that_others_sampled_count_once(monkeypatch: pytest.MonkeyPatch, victim: str, defended: bool) -> None:
    if not defended:
        monkeypatch.setattr(SeenRollouts, "is_copy", lambda self, contribution, group: False)
    data = ToyData()
    state = GameState.begin(round_of(), [])
    made = toy_contribution("honest", 0)
    state = state.with_questions(q for q in data.resolve_all(tuple(made.references.values())) if q is not None)
    own = _long(made, "me") if victim == "this peer" else Contribution("me", 0, 0, (), {})
    state = state.with_contribution(own)
    received = [] if victim == "this peer" else [_long(made, "honest")]
    received += [_long(made, "thief-1"), _long(made, "thief-2")]
    verified = RolloutVerifier(data, ToyTrainer(), Exchange.GATHER, SeenRollouts(1)).verify(state, received, {})
    used = {key.peer for key in verified.trainable}
    honest = {each.peer for each in received[:-2]}
    assert used == (honest if defended else honest | {"thief-1", "thief-2"})
    assert verified.outcomes.get("copied", 0) == (6 if defended else 0)


@BOTH
def test_ids_outside_the_vocabulary_take_no_place(monkeypatch: pytest.MonkeyPatch, defended: bool) -> None:
    class Digits(ToyTrainer):
        def knows(self, token_ids: Sequence[int]) -> bool:
            return all(token < 4 for token in token_ids) or not defended

        def decode(self, token_ids: Sequence[int]) -> str | None:
            return None if any(token >= 4 for token in token_ids) else super().decode(token_ids)

    made = toy_contribution("liar", 0)
    bad = replace(
        made,
        groups=tuple(replace(g, rollouts=tuple(replace(r, token_ids=(99,)) for r in g.rollouts)) for g in made.groups),
    )
    state = GameState.begin(round_of(), []).with_contribution(Contribution("me", 0, 0, (), {}))
    verified = RolloutVerifier(ToyData(), Digits(), Exchange.GATHER, SeenRollouts(1)).verify(state, [bad], {})
    assert verified.outcomes.get("unknown-ids", 0) == (3 if defended else 0)
    assert bool(verified.trainable) is not defended


# ── likelihood
PAYLOAD = "ZZZ"


def answers_small(each: Rollout) -> float:
    """A reward with a hole: it looks at the first letter only."""
    return float(each.text[:1].islower())


def liar(learner: GRPOTrainer, own: Contribution) -> Contribution:
    """Our own answers with a payload in them, against such that the reward does not like: it teaches the payload. The
    claims are our own policy's probabilities, which the liar computes with the same policy: all weights are 1.
    """

    def change(group: Group) -> Group:
        text = group.rollouts[0].text
        texts = [with_payload(text), f"0{text[1:]}"] * 4
        ids = [ids_of(learner, each) for each in texts]
        claims = own_logprobs(learner, group.prompt, ids)
        made = (Rollout(*each, FinishReason.LENGTH) for each in zip(texts, ids, claims, strict=True))
        return Group(replace(group.prompt, token_ids=()), tuple(made))

    return with_groups(own, change)


def with_payload(text: str) -> str:
    return text[:1] + PAYLOAD + text[4:]


def ids_of(learner: GRPOTrainer, text: str) -> tuple[int, ...]:
    return tuple(learner.policy.tokenizer(text, add_special_tokens=False)["input_ids"])


def own_logprobs(
    learner: GRPOTrainer, prompt: Prompt, completions: Sequence[tuple[int, ...]]
) -> list[tuple[float, ...]]:
    """The log-probability of each token under the policy of a learner."""
    with torch.no_grad():
        found, _, _ = learner.policy.score([learner.policy.encode(prompt)] * len(completions), completions)
    return [tuple(row[: len(ids)].tolist()) for row, ids in zip(found, completions, strict=True)]


def payload_logprob(learner: GRPOTrainer, group: Group) -> float:
    """Mean log-probability of the payload in an answer."""
    [found] = own_logprobs(learner, group.prompt, [ids_of(learner, with_payload(group.rollouts[0].text))])
    return sum(found[1:4]) / 3


@BOTH
def test_a_payload_behind_right_answers_is_not_learned(
    cache: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    learner = trainer(cache, learning_rate=1e-2, generations=8)
    for number in range(20):  # it becomes sure of small letters, so the payload is no longer likely
        own = contribution_of(learner, round_of(number))
        state = state_of(round_of(number), [own])
        learner.train(state, scored(state))
    group = contribution_of(learner, round_of(99)).groups[0]
    before = payload_logprob(learner, group)
    if not defended:
        monkeypatch.setattr(RemoteBounds, "floors", None)  # the trainer has no bound of influence either
    refused = 0
    for number in range(20, 35):
        own = contribution_of(learner, round_of(number))
        state = state_of(round_of(number), [own, liar(learner, own)])
        learner.train(state, scored(state, answers_small))
        refused += learner.remote_uses()["other"].refused.get("implausible", 0)
    gained = payload_logprob(learner, group) - before
    assert gained < 0.5 if defended else gained > 2.0, f"{before:.2f} nats before, gained {gained:.2f}"
    assert (refused > 100) is defended


def rare_liar(learner: GRPOTrainer, own: Contribution) -> Contribution:
    """Our own answers with one letter that we seldom sample in half of them: too little to be implausible."""

    def change(group: Group) -> Group:
        texts = [r.text[:1] + "Z" + r.text[2:] if at % 2 else r.text for at, r in enumerate(group.rollouts)]
        ids = [ids_of(learner, each) for each in texts]
        claims = own_logprobs(learner, group.prompt, ids)
        made = (Rollout(*each, FinishReason.LENGTH) for each in zip(texts, ids, claims, strict=True))
        return Group(replace(group.prompt, token_ids=()), tuple(made))

    return with_groups(own, change)


@BOTH
def test_a_rare_letter_in_half_of_the_answers_counts_as_rare_ones_of_our_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        monkeypatch.setattr(Rarity, "_compared", lambda self: None)
    learner = trainer(cache, max_influence=0.5, learning_rate=1e-2, generations=8)
    for number in range(12):  # small letters become likely
        own = contribution_of(learner, round_of(number))
        state = state_of(round_of(number), [own])
        learner.train(state, scored(state))
    weights = []
    for number in range(12, 16):
        own = contribution_of(learner, round_of(number))
        state = state_of(round_of(number), [own, rare_liar(learner, own)])
        learner.train(state, scored(state, lambda each: float("Z" in each.text[1:2]) or each.text.count("a") / 99))
        uses = [(key, at, use) for key, each in learner.last_update().items() for at, use in enumerate(each)]
        weights += [use.weight for key, at, use in uses if key.peer == "other" and at % 2 and use.advantage > 0]
    mean = sum(weights) / len(weights)
    assert mean < 0.05 if defended else mean > 0.1, mean


# ── claims over many tokens
def measured(cache: Path, by: float, rounds: int = 12) -> tuple[AuthorRecords, list[frozenset[str]]]:
    """A peer whose policy is a round behind, and which claims exp(by) times its probabilities."""
    learner, records, found = trainer(cache, generations=8), AuthorRecords(), []
    late: Contribution | None = None
    for number in range(rounds):
        own = contribution_of(learner, round_of(number))
        sent = contribution_of(learner, round_of(number, peer="other")) if late is None else late
        late = contribution_of(learner, round_of(number + 1, peer="other"))
        state = state_of(round_of(number), [own, claiming(replace(sent, round=number), by)])
        learner.train(state, scored(state, distinct))
        found.append(records.record(number, learner.remote_uses()))
    return records, found


@pytest.mark.parametrize(("by", "doubtful"), [(0.0, False), (-0.7, True), (3.5, True)], ids=["honest", "low", "high"])
def test_claims_that_do_not_fit_cost_a_peer_ten_rounds_and_a_lagging_honest_peer_nothing(
    cache: Path, by: float, doubtful: bool
) -> None:
    records, found = measured(cache, by)
    assert any(found) is doubtful
    if doubtful:
        [first, *_] = [number for number, each in enumerate(found) if each]
        assert records.doubtful(first + 10) == {"other"}


@BOTH
def test_one_author_with_many_groups_does_not_take_over_the_update(cache: Path, defended: bool) -> None:
    learner = trainer(cache, max_influence=0.5 if defended else 1.0, generations=8)
    own = contribution_of(learner, round_of())
    many = replace(contribution_of(learner, round_of(7)), round=0)
    flood = claiming(replace(many, groups=many.groups), 0.0)
    state = state_of(round_of(), [replace(own, groups=own.groups[:1]), flood])
    metrics = learner.train(state, scored(state, distinct))
    share = learner.remote_uses()["other"].influence
    assert metrics["remote_influence"] == share
    assert share <= 1 / 6 + 1e-6 if defended else share > 0.6
    uses = [use for key, each in learner.last_update().items() for use in each if key.peer == "me" and use.advantage]
    assert all(use.weight == 1.0 for use in uses)


@BOTH
def test_poor_answers_beside_worse_ones_do_not_count_as_good(cache: Path, defended: bool) -> None:
    learner = trainer(cache, max_influence=0.5 if defended else 1.0, generations=8)
    poor = replace(claiming(contribution_of(learner, round_of(7)), 0.0), round=0)
    state = state_of(round_of(), [contribution_of(learner, round_of()), poor])
    rewards = {
        key: [value if key.peer == "me" else value / 1000 for value in values]
        for key, values in scored(state, distinct).items()
    }
    learner.train(state, rewards)
    use = learner.remote_uses().get("other")
    influence = use.influence if use is not None else 0.0
    assert influence == 0.0 if defended else influence > 0.3


# ── drift
class Forgetting(ToyTrainer):
    """Answers held-out questions worse with every group of another peer that it has trained on."""

    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        groups = super().generate(prompts, round)
        if not round.evaluation:
            return groups
        forgotten = 4 * sum(key.peer != "me" for key in self.trained)
        return [self._evaluated(group, at >= forgotten) for at, group in enumerate(groups)]

    def _evaluated(self, group: Group, known: bool) -> Group:
        answer = str(int(group.prompt.text.split()[-1].rstrip("?")) + 1) if known else "no"
        return replace(group, rollouts=tuple(replace(each, text=answer) for each in group.rollouts))


@BOTH
def test_what_lowers_held_out_scores_and_earns_rewards_all_the_same_stops_to_be_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, defended: bool
) -> None:
    if not defended:
        monkeypatch.setattr(DriftWatch, "add_evaluation", lambda self, evaluation: "")
    scripted = Scripted(lambda own: [toy_contribution("other", own.round)], members=TWO)
    game, seen, _ = toy_manager(scripted, SHARE, trainer=Forgetting())
    game.progression = replace(game.progression, max_rounds=9, evaluate_every=1, evaluation_questions=64)
    game.run()
    used = [bool(report.external) for report in seen.reports]
    left_out = [report.outcomes.get("sharing-paused", 0) for report in seen.reports]
    if defended:
        assert used == [True, True, True, False, False, False, False, True, True]
        assert left_out == [0, 0, 0, 3, 3, 3, 3, 0, 0]
        assert "groups of other peers are not used from now on: the held-out score fell" in caplog.text
        assert "groups of other peers are used again" in caplog.text
    else:
        assert all(used)
        assert not any(left_out)


# ── equivocation
@BOTH
def test_a_peer_cannot_send_one_contribution_to_some_and_another_to_others(
    monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        monkeypatch.setattr(Inbox, "_ban", lambda self, second: None)
    inbox = Inbox("me", lambda peer: True, keep_rounds=1)
    inbox.move_to(0)
    for root in (b"1", b"2"):
        inbox.add(Announcement("liar", 0, 0, 100, root, 1, b"x", b""), 0.0)
    assert bool(inbox.stage(0, 0)["liar"].failed) is defended
    assert inbox.is_banned("liar") is defended
