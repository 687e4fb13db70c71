"""Changes of games that have rounds to lose: what waits, what restarts the peers, and what plays on after the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    EMPTY,
    NOW,
    apply_plan,
    changed,
    game_context,
    job_with,
    jobs,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_api.resource import GameResource
from swarmgame_operator.plan import Deletion, build_plan
from swarmgame_operator.snapshot import ChildFacts, ContainerFacts, Observed, ProgressFacts

CLAIM = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
SAVED = {"storage": {"checkpoints": CLAIM}}


def test_a_change_that_would_lose_rounds_waits_and_says_so_and_a_suspension_makes_it() -> None:
    resource, observed = changed({"peers": {"image": "example.dev/other:2"}})
    found = build_plan(resource, observed, DEFAULTS)
    assert (found.deletions, jobs(found)) == ((), [])
    assert reported(found)["Degraded"] == ("True", "ChangeWaits")
    assert reported(found)["Ready"] == ("True", "PeersReady")
    larger = valid_game({"peers": {"image": "example.dev/other:2", "replicas": 2}}, status=resource.status)
    assert jobs(build_plan(larger, observed, DEFAULTS)) == ["sums-peers"], "it is still scaled"
    stopped = valid_game({"suspend": True, "peers": {"image": "example.dev/other:2"}}, status=found.status)
    assert build_plan(stopped, observed, DEFAULTS).deletions == (Deletion("Job", "sums-peers", "Foreground"),)
    undone = valid_game(status=found.status, generation=3)
    assert reported(build_plan(undone, observed, DEFAULTS))["Degraded"] == ("False", "AsExpected")


@pytest.mark.parametrize("lost", [True, False])
def test_a_change_waits_for_peers_that_run_and_are_not_ready(lost: bool) -> None:
    resource, observed = changed({"peers": {"image": "example.dev/other:2"}})
    running_peer = (ContainerFacts("peer", running=True),)
    pods = tuple(replace(pod, ready=False, node_lost=lost, containers=running_peer) for pod in observed.pods)
    found = build_plan(resource, replace(observed, pods=pods), DEFAULTS)
    assert not found.deletions
    if not lost:  # else the node is the more serious problem
        assert reported(found)["Degraded"] == ("True", "ChangeWaits")
    waiting = tuple(replace(pod, containers=(ContainerFacts("peer", waiting="ImagePullBackOff"),)) for pod in pods)
    found = build_plan(resource, replace(observed, pods=waiting), DEFAULTS)
    assert found.deletions == (Deletion("Job", "sums-peers", "Foreground"),)


def test_a_change_of_peers_that_have_learnt_nothing_waits_for_nothing() -> None:
    resource, observed = changed({"peers": {"image": "example.dev/other:2"}})
    failing = replace(observed, pods=())
    assert build_plan(resource, failing, DEFAULTS).deletions == (Deletion("Job", "sums-peers", "Foreground"),)


NAMED = {"storage": {"checkpoints": {"claimName": "a"}}}
RENAMED = {"storage": {"checkpoints": {"claimName": "b"}}}


def on_claims(spec: dict[str, Any], before: dict[str, Any]) -> tuple[GameResource, Observed]:
    """Return a changed game whose peers run, in a namespace with the claims a and b."""
    existing = replace(EMPTY, claims=frozenset({"a", "b"}))
    resource, observed = running(valid_game(before), existing)
    return valid_game(spec, status=resource.status, generation=2), observed


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, SAVED, "not on a claim"),
        ({}, NAMED, "not on a claim"),
        (NAMED, RENAMED, "on the claim a, and new pods would have theirs on the claim b,"),
        (NAMED, SAVED, "on the claim a, and new pods would have theirs on the claim sums-checkpoints,"),
        (NAMED, {}, "on the claim a, and new pods would have theirs on no claim,"),
    ],
)
def test_a_change_of_where_checkpoints_are_waits_because_new_pods_would_begin_without_them(
    before: dict[str, Any], after: dict[str, Any], said: str
) -> None:
    resource, observed = on_claims(after, before)
    found = build_plan(resource, observed, DEFAULTS)
    assert not [each for each in found.deletions if each.kind == "Job"]
    degraded = next(each for each in found.status.conditions if each.type == "Degraded")
    assert (degraded.reason, said in degraded.message) == ("ChangeWaits", True), degraded.message
    undone = valid_game(before, status=found.status, generation=3)
    assert reported(build_plan(undone, observed, DEFAULTS))["Degraded"] == ("False", "AsExpected")


def test_another_claim_waits_also_while_no_peer_runs() -> None:
    resource, observed = on_claims(RENAMED, NAMED)
    found = build_plan(resource, replace(observed, pods=()), DEFAULTS)
    assert not [each for each in found.deletions if each.kind == "Job"]
    assert reported(found)["Degraded"] == ("True", "ChangeWaits")


def test_a_claim_that_is_named_by_its_template_before_stays_the_same_claim() -> None:
    named = {"storage": {"checkpoints": {"claimName": "sums-checkpoints"}}, "peers": {"image": "example.dev/other:2"}}
    resource, observed = changed(named, SAVED)
    observed = replace(observed, claims=frozenset({"sums-checkpoints"}))
    assert Deletion("Job", "sums-peers", "Foreground") in build_plan(resource, observed, DEFAULTS).deletions


def sized(size: str) -> dict[str, Any]:
    return {"storage": {"checkpoints": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": size}}}}}}}


def test_a_larger_claim_is_applied_and_restarts_no_peer() -> None:
    resource, observed = changed(sized("2Gi"), sized("1Gi"))
    found = build_plan(resource, observed, DEFAULTS)
    assert not found.deletions
    (claim,) = [child for child in found.children if child.kind == "PersistentVolumeClaim"]
    assert claim.apply_manifest["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert observed.job is not None
    resource, observed = changed(sized("1Gi"), sized("1Gi"))
    assert resource.game is not None
    earlier = replace(observed.job, template_hash=game_context(resource).earlier_template_hash)
    assert not build_plan(resource, replace(observed, job=earlier), DEFAULTS).deletions


def test_a_job_of_an_earlier_operator_gets_the_hash_without_sizes_so_that_its_claim_can_grow_twice() -> None:
    resource, observed = running(valid_game(sized("1Gi")))
    assert observed.job is not None
    context = game_context(resource)
    earlier = replace(observed.job, template_hash=context.earlier_template_hash)
    place = ("Job", "sums-peers")
    children = {**observed.children, place: replace(observed.children[place], intent_hash="of an earlier operator")}
    found = build_plan(resource, replace(observed, job=earlier, children=children), DEFAULTS)
    assert not found.deletions
    (job,) = [child for child in found.children if child.kind == "Job"]
    assert job.apply_manifest["metadata"]["annotations"]["swarmgame.dev/template-hash"] == context.template_hash


def test_a_job_whose_change_waits_keeps_its_hash_and_its_rounds() -> None:
    resource, observed = running(valid_game())
    assert observed.job is not None
    answered = replace(observed, progress=ProgressFacts(NOW, rounds_finished=99, max_rounds=100, checkpoint=90))
    resource = with_status(resource, build_plan(resource, answered, DEFAULTS).status)
    longer = valid_game({**with_rounds(200, {}), "peers": {"replicas": 3}}, status=resource.status, generation=2)
    found = build_plan(longer, answered, DEFAULTS)
    assert (found.deletions, reported(found)["Degraded"]) == ((), ("True", "ChangeWaits"))
    (job,) = [child for child in found.children if child.kind == "Job"]
    annotations = job.apply_manifest["metadata"]["annotations"]
    assert annotations["swarmgame.dev/template-hash"] == observed.job.template_hash
    assert (found.status.progress.max_rounds, found.status.progress.percentage) == (100, 99)
    for ended in (answered, observed):  # an operator that was restarted has no answer
        over = build_plan(with_status(longer, found.status), job_with(ended, ("Complete", "")), DEFAULTS)
        complete = next(each for each in over.status.conditions if each.type == "Complete")
        assert complete.message == "A peer has played all 100 rounds."
        assert (over.status.progress.round, over.status.progress.max_rounds) == (100, 100)


def test_the_claim_of_an_earlier_game_is_not_used_unless_the_game_names_it() -> None:
    place = ("PersistentVolumeClaim", "sums-checkpoints")
    kept = replace(EMPTY, children={place: ChildFacts(made_for="another", intent_hash="x")})
    resource, observed = settled(valid_game(SAVED), kept)
    assert observed.job is None
    found = build_plan(resource, observed, DEFAULTS)
    assert reported(found)["Degraded"] == ("True", "ClaimKept")
    assert reported(found)["Ready"] == ("False", "Blocked")
    assert not [child for child in found.children if child.kind == "PersistentVolumeClaim"]
    named = {"storage": {"checkpoints": {"claimName": "sums-checkpoints"}}}
    _, observed = settled(valid_game(named), replace(kept, claims=frozenset({"sums-checkpoints"})))
    assert observed.job is not None


def with_rounds(rounds: int, spec: dict[str, Any]) -> dict[str, Any]:
    base = valid_game().game
    assert base is not None
    return {
        **spec,
        "game": {**base.spec.game.model_dump(mode="json", by_alias=True, exclude_none=True), "maxRounds": rounds},
    }


def test_a_complete_game_with_more_rounds_plays_on_from_its_checkpoints() -> None:
    resource, observed = running(valid_game(SAVED))
    ended = job_with(replace(observed, pods=()), ("Complete", ""))
    resource = with_status(resource, build_plan(resource, ended, DEFAULTS).status)
    assert reported(resource.status)["Complete"] == ("True", "RoundsReached")
    longer = valid_game(with_rounds(200, SAVED), status=resource.status, generation=2)
    found = build_plan(longer, ended, DEFAULTS)
    assert reported(found)["Complete"] == ("False", "PlaysOn")
    assert found.deletions == (Deletion("Job", "sums-peers", "Foreground"),)
    assert found.status.completion_time is None
    longer = with_status(longer, found.status)
    assert build_plan(longer, ended, DEFAULTS).deletions == found.deletions, "until the old Job is gone"
    made = build_plan(longer, apply_plan(ended, found), DEFAULTS)
    assert jobs(made) == ["sums-peers"]
    again = apply_plan(apply_plan(ended, found), made)
    assert again.job is not None
    done = build_plan(with_status(longer, made.status), job_with(again, ("Complete", "")), DEFAULTS)
    assert reported(done)["Complete"] == ("True", "RoundsReached")
    assert done.status.progress.max_rounds == 200
    assert done.status.completion_time is not None


@pytest.mark.parametrize("rounds", [50, 100])
def test_a_complete_game_without_more_rounds_stays_complete(rounds: int) -> None:
    resource, observed = running(valid_game(SAVED))
    ended = job_with(replace(observed, pods=()), ("Complete", ""))
    resource = with_status(resource, build_plan(resource, ended, DEFAULTS).status)
    found = build_plan(valid_game(with_rounds(rounds, SAVED), status=resource.status, generation=2), ended, DEFAULTS)
    assert reported(found)["Complete"] == ("True", "RoundsReached")
    assert not found.deletions


def test_a_complete_game_without_checkpoints_stays_complete_and_says_why() -> None:
    resource, observed = running(valid_game())
    ended = job_with(replace(observed, pods=()), ("Complete", ""))
    resource = with_status(resource, build_plan(resource, ended, DEFAULTS).status)
    found = build_plan(valid_game(with_rounds(200, {}), status=resource.status, generation=2), ended, DEFAULTS)
    assert reported(found)["Complete"] == ("True", "RoundsReached")
    assert reported(found)["Degraded"] == ("True", "ChangeWaits")
    assert not found.deletions


@pytest.mark.parametrize(("before", "after"), [({}, SAVED), (NAMED, RENAMED), (NAMED, SAVED), ({}, NAMED)])
def test_a_complete_game_does_not_play_on_from_a_claim_without_its_checkpoints(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    resource, observed = on_claims(before, before)
    ended = job_with(replace(observed, pods=()), ("Complete", ""))
    resource = with_status(resource, build_plan(resource, ended, DEFAULTS).status)
    found = build_plan(valid_game(with_rounds(200, after), status=resource.status, generation=2), ended, DEFAULTS)
    assert reported(found)["Complete"] == ("True", "RoundsReached")
    assert reported(found)["Degraded"] == ("True", "ChangeWaits")
    assert not [each for each in found.deletions if each.kind == "Job"]


def test_a_complete_game_whose_claim_is_gone_does_not_play_on() -> None:
    resource, observed = running(valid_game(SAVED))
    ended = job_with(replace(observed, pods=()), ("Complete", ""))
    resource = with_status(resource, build_plan(resource, ended, DEFAULTS).status)
    place = ("PersistentVolumeClaim", "sums-checkpoints")
    gone = replace(ended, children={key: facts for key, facts in ended.children.items() if key != place})
    found = build_plan(valid_game(with_rounds(200, SAVED), status=resource.status, generation=2), gone, DEFAULTS)
    assert reported(found)["Complete"] == ("True", "RoundsReached")
