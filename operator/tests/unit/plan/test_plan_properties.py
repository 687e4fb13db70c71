"""Properties of all plans, for random games and snapshots."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_fixtures import DEFAULTS, EMPTY, NOW, apply_plan, failed_pod, ready_pod, valid_game, waiting_pod, with_status

from swarmgame_api.resource import GameResource, read_status, status_document
from swarmgame_api.status import REASONS
from swarmgame_operator.plan import Plan, build_plan
from swarmgame_operator.plan.reconcile_context import TERMINAL
from swarmgame_operator.snapshot import (
    ChainFacts,
    DryRunFacts,
    JobCondition,
    JobFacts,
    Observed,
    PodFacts,
    ProgressFacts,
    WorkloadFacts,
)

CLAIM = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def games(draw: st.DrawFn) -> GameResource:
    """A valid game of any shape and name."""
    replicas = draw(st.integers(0, 5))
    mode = draw(st.sampled_from(["None", "Dev", "External"]))
    coordination: dict[str, Any] = {"mode": mode}
    if mode == "External":
        coordination |= {
            "chainId": 1,
            "contractAddress": "0x" + "00" * 20,
            "rpcSecretRef": {"name": "rpc"},
            "walletSecretRef": {"name": "wallet"},
        }
    peers: dict[str, Any] = {"replicas": replicas}
    if draw(st.booleans()):
        peers["podTemplate"] = {
            "spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "peer", "env": [{"name": "A", "value": "1"}]}]}
        }
    if draw(st.booleans()):
        peers["resources"] = {"limits": {"nvidia.com/gpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}
    checkpoints: dict[str, Any] = draw(st.sampled_from([{}, CLAIM]))
    if checkpoints:
        checkpoints = {**checkpoints, "retentionPolicy": {"whenFinished": draw(st.sampled_from(["Retain", "Delete"]))}}
    spec: dict[str, Any] = {
        "suspend": draw(st.booleans()),
        "coordination": coordination,
        "peers": peers,
        "bootnode": {
            "enabled": draw(st.booleans()),
            "expose": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"])),
        },
        "identity": {"retentionPolicy": draw(st.sampled_from(["Retain", "Delete"]))},
        "storage": {"cache": draw(st.sampled_from([{}, CLAIM, {"claimName": "shared"}])), "checkpoints": checkpoints},
        "podDefaults": draw(
            st.sampled_from(
                [None, {"labels": {"team": "a"}, "env": [{"name": "A", "value": "1"}], "arbitraryUser": True}]
            )
        ),
        "networkPolicy": {"mode": draw(st.sampled_from(["None", "Isolated"]))},
        "completion": {
            "policy": draw(st.sampled_from(["AnyPeer", "AllPeers"] + (["Coordinator"] if mode != "None" else [])))
        },
        "failurePolicy": {"maxFailedPeers": draw(st.integers(0, 9))},
        "model": draw(
            st.sampled_from([None, {"uri": "builtin://tiny"}, {"uri": "hf://a/b", "secretRef": {"name": "hub"}}])
        ),
        "ttlSecondsAfterFinished": draw(st.sampled_from([None, 0, 60])),
        "activeDeadlineSeconds": draw(st.sampled_from([None, 1, 86_400])),
    }
    labels = {"kueue.x-k8s.io/queue-name": "research"} if draw(st.booleans()) else {}
    return valid_game(spec, name=draw(st.from_regex(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", fullmatch=True)), labels=labels)


EXISTING = replace(
    EMPTY,
    secrets={"rpc": frozenset({"url"}), "wallet": frozenset({"key"}), "hub": frozenset({"token"})},
    claims=frozenset({"shared"}),
)


@st.composite
def pods(draw: st.DrawFn) -> tuple[PodFacts, ...]:
    kinds = [
        ready_pod,
        lambda index: failed_pod(index, 1),
        lambda index: failed_pod(index, 78, "spec.game is wrong"),
        lambda index: failed_pod(index, 137, reason="OOMKilled"),
        lambda index: waiting_pod(index, "ImagePullBackOff"),
        lambda index: PodFacts(f"pod-{index}", "peer", index, unschedulable="no node"),
    ]
    return tuple(draw(st.sampled_from(kinds))(index) for index in draw(st.lists(st.integers(0, 6), max_size=5)))


@st.composite
def snapshots(draw: st.DrawFn) -> Observed:
    """A random snapshot, possible or not."""
    conditions = draw(
        st.lists(
            st.builds(
                JobCondition,
                st.sampled_from(["Complete", "Failed", "SuccessCriteriaMet", "FailureTarget", "Suspended"]),
                st.sampled_from(["", "PodFailurePolicy", "FailedIndexes", "MaxFailedIndexesExceeded"]),
            ),
            max_size=2,
        )
    )
    jobs = st.builds(
        JobFacts,
        st.just("sums-peers"),
        deleting=st.booleans(),
        suspended=st.booleans(),
        parallelism=st.integers(1, 5) | st.just(2**31 - 1),
        completions=st.integers(1, 5),
        completed_indexes=st.sampled_from(["", "0", "0-2", "1,3"]),
        failed_indexes=st.sampled_from(["", "0", "2-4", "-1", "²", "1-99999999999", "x-y"]),
        template_hash=st.sampled_from(["", "another"]),
        conditions=st.just(tuple(conditions)),
    )
    chains = st.builds(
        ChainFacts,
        problem=st.sampled_from(["", "timeout"]),
        wallet_empty=st.booleans(),
        chain_id=st.sampled_from([None, 1, 5, 31337]),
        registered=st.integers(0, 5),
        round=st.integers(-1, 200),
        last_block=st.integers(0, 9),
    )
    answers = st.builds(
        ProgressFacts,
        st.just(NOW),
        rounds_finished=st.integers(0, 120),
        stage=st.integers(-1, 3),
        round_finished=st.sampled_from(
            [None, datetime(1970, 1, 1, tzinfo=UTC), NOW - timedelta(days=1), NOW, NOW + timedelta(days=360_000)]
        ),
        checkpoint=st.sampled_from([None, -1, 0, 50, 2**31 - 1]),
        metrics=st.dictionaries(st.text(min_size=1, max_size=80), st.floats(), max_size=40),
    )
    return replace(
        EXISTING,
        job=draw(st.none() | jobs),
        initializer=draw(st.none() | jobs),
        pods=draw(pods()),
        workloads=draw(st.sampled_from([(), (WorkloadFacts("Deployment", "sums-bootnode", 1),)])),
        chain=draw(st.none() | chains),
        progress=draw(st.none() | answers),
        now=NOW + timedelta(seconds=draw(st.integers(0, 100_000))),
    )


def rest(resource: GameResource, observed: Observed) -> tuple[GameResource, Observed, list[Plan]]:
    """Plan and carry out until nothing is left to do. Dry runs succeed."""
    done = []
    for _ in range(12):
        found = build_plan(resource, observed, DEFAULTS)
        done.append(found)
        if found.dry_run is not None:
            observed = replace(observed, dry_run=DryRunFacts(found.dry_run.hash))
        elif not (found.keys or found.children or found.deletions):
            return with_status(resource, found.status), observed, done
        observed = apply_plan(observed, found, resource.name)
        resource = with_status(resource, found.status)
        if observed.initializer is not None:
            observed = replace(
                observed, initializer=replace(observed.initializer, conditions=(JobCondition("Complete"),))
            )
    raise AssertionError("the plans do not settle")


@SETTINGS
@given(games(), snapshots())
def test_a_plan_is_a_function_of_what_it_is_given(resource: GameResource, observed: Observed) -> None:
    assert build_plan(resource, observed, DEFAULTS) == build_plan(resource, observed, DEFAULTS)


@SETTINGS
@given(games())
def test_a_plan_that_was_carried_out_is_followed_by_one_with_nothing_to_do(resource: GameResource) -> None:
    resource, observed, _ = rest(resource, EXISTING)
    again = build_plan(resource, observed, DEFAULTS)
    assert (again.keys, again.children, again.deletions, again.dry_run, again.events) == ((), (), (), None, ())
    assert again.status == resource.status


@SETTINGS
@given(games(), games())
def test_a_changed_game_settles_and_leaves_nothing_behind(before: GameResource, after: GameResource) -> None:
    """Any game may become any other; in the end it has the objects of a new game."""
    after = replace(after, name=before.name)
    resource, observed, _ = rest(before, EXISTING)
    _, changed, _ = rest(with_status(after, resource.status), observed)
    _, new, _ = rest(after, EXISTING)
    lasting = {"Secret", "PersistentVolumeClaim"}
    assert {key for key in changed.children if key[0] not in lasting} - {("Job", f"{after.name}-initializer")} == {
        key for key in new.children if key[0] not in lasting
    } - {("Job", f"{after.name}-initializer")}


@SETTINGS
@given(games())
def test_the_objects_of_a_game_obey_the_rules_of_names_owners_and_jobs(resource: GameResource) -> None:
    _, _, done = rest(resource, EXISTING)
    written = [
        manifest
        for each in done
        for child in each.children
        for manifest in (child.apply_manifest, child.create_manifest)
        if manifest is not None
    ]
    written += [keys.secret for each in done for keys in each.keys]
    for manifest in written:
        metadata = manifest["metadata"]
        assert len(metadata["name"]) <= 63
        assert metadata["namespace"] == resource.namespace
        assert metadata["labels"]["swarmgame.dev/game"] == resource.name
        owned = bool(metadata.get("ownerReferences"))
        assert owned or manifest["kind"] in ("Secret", "PersistentVolumeClaim")
        if manifest["kind"] == "Job" and "completions" in manifest.get("spec", {}):
            spec = manifest["spec"]
            assert spec["completions"] == spec["parallelism"] >= 1
            assert spec["maxFailedIndexes"] <= spec["completions"]


@SETTINGS
@given(games())
def test_fields_of_other_controllers_are_written_only_when_a_job_is_created(resource: GameResource) -> None:
    _, _, done = rest(resource, EXISTING)
    for each in done:
        for child in each.children:
            if child.kind == "Job":
                assert "template" not in child.apply_manifest.get("spec", {})
                assert "suspend" not in child.apply_manifest.get("spec", {})


@SETTINGS
@given(games())
def test_no_manifest_holds_what_could_be_a_secret(resource: GameResource) -> None:
    _, _, done = rest(resource, EXISTING)
    for each in done:
        for keys in each.keys:
            assert not {"data", "stringData"} & set(keys.secret)
        for child in each.children:
            text = json.dumps([child.apply_manifest, child.create_manifest])
            assert '"stringData"' not in text
            assert child.kind != "Secret"


@SETTINGS
@given(games(), snapshots(), st.booleans())
def test_any_status_can_be_stored_and_read_back(resource: GameResource, observed: Observed, own: bool) -> None:
    if own:
        resource = replace(resource, name="sums")
    found = build_plan(resource, observed, DEFAULTS)
    assert read_status(json.loads(json.dumps(status_document(found.status)))) == found.status
    for condition in found.status.conditions:
        assert condition.reason in REASONS[condition.type]


@SETTINGS
@given(games(), st.lists(snapshots(), min_size=2, max_size=5))
def test_an_end_is_final_whatever_is_observed_later(resource: GameResource, observations: list[Observed]) -> None:
    resource = replace(resource, name="sums")
    ended = None
    for observed in observations:
        found = build_plan(resource, observed, DEFAULTS)
        ends = [each for each in found.status.conditions if each.type in TERMINAL]
        assert len(ends) <= 1
        assert ended is None or ends == ended
        ended = ends or None
        if ended:
            assert not any(child.create_manifest is not None and child.kind == "Job" for child in found.children)
        resource = with_status(resource, found.status)


@SETTINGS
@given(games(), st.lists(snapshots(), min_size=2, max_size=4))
def test_a_transition_time_moves_only_with_the_status(resource: GameResource, observations: list[Observed]) -> None:
    resource = replace(resource, name="sums")
    for observed in observations:
        old = {each.type: each for each in resource.status.conditions}
        found = build_plan(resource, observed, DEFAULTS)
        for condition in found.status.conditions:
            before = old.get(condition.type)
            if before is not None:
                moved = before.last_transition_time != condition.last_transition_time
                assert not moved or before.status != condition.status
        resource = with_status(resource, found.status)
