"""What must hold between fields: every rule accepts one manifest and refuses another, at the place and in the words of the table."""

from __future__ import annotations

import pytest

from swarmgame_api import InvalidManifest, loads_manifest
from swarmgame_api.reference import MINIMAL
from swarmgame_api.rules import all_rules, all_transitions, change_problems

pytestmark = pytest.mark.unit

CLAIM = "{spec: {resources: {requests: {storage: 1Gi}}}}"
EXTERNAL = (
    "coordination={mode: External, chainId: 1, contractAddress: '0x00000000000000000000000000000000000000aa',"
    " rpcSecretRef: {name: rpc}, walletSecretRef: {name: wallet}}"
)
MODULE = "{name: a, configMapRef: {name: a}, mountPath: /a}"

Case = tuple[str, str, list[str], list[str]]

CASES: list[Case] = [
    # path of the problem, words it contains, overrides that are refused, overrides that are accepted
    ("metadata.name", "at most 52", [f"metadata.name={'a' * 53}"], [f"metadata.name={'a' * 52}"]),
    ("metadata.name", "without dots", ["metadata.name=a.b"], ["metadata.name=a-b"]),
    ("spec.model.revision", "no revision unless", ["model.revision=main"], ["model.uri=hf://a/b", "model.revision=main"]),
    (
        "spec.game.roles",
        "at most 1",
        ["game.roles=[{name: a, share: 0.6}, {name: b, share: 0.5}]"],
        ["game.roles=[{name: a, share: 0.5}, {name: b, share: 0.5}]"],
    ),
    (
        "spec.game.roles",
        "every role once",
        ["game.roles=[{name: a, count: 1}, {name: a, count: 1}]"],
        ["game.roles=[{name: a, count: 1}, {name: b, count: 1}]"],
    ),
    ("spec.game.roles", "takes the rest", ["game.roles=[{name: a}, {name: b}]"], ["game.roles=[{name: a}, {name: b, count: 1}]"]),
    ("spec.game.roles[0]", "not both", ["game.roles=[{name: a, share: 0.5, count: 1}]"], ["game.roles=[{name: a, share: 0.5}]"]),
    (
        "spec.game.roles",
        "at most peers.replicas",
        ["game.roles=[{name: a, count: 3}, {name: b, count: 2}]"],
        ["game.roles=[{name: a, count: 4}]"],
    ),
    ("spec.game.modules", "every module once", [f"game.modules=[{MODULE}, {MODULE.replace('/a', '/b')}]"], [f"game.modules=[{MODULE}]"]),
    (
        "spec.game.modules",
        "mountPath of its own",
        [f"game.modules=[{MODULE}, {MODULE.replace('name: a, c', 'name: b, c')}]"],
        [f"game.modules=[{MODULE}, {MODULE.replace('name: a, c', 'name: b, c').replace('/a', '/b')}]"],
    ),
    ("spec.game.modules[0]", "exactly one", ["game.modules=[{name: a, mountPath: /a}]"], [f"game.modules=[{MODULE}]"]),
    (
        "spec.communication.initialPeers",
        "closed",
        ["communication={backend: TorchDistributed, initialPeers: [/dns4/a/tcp/1/p2p/16U]}"],
        ["communication={backend: Hivemind, initialPeers: [/dns4/a/tcp/1/p2p/16U]}"],
    ),
    ("spec.coordination", "chainId, contractAddress", ["coordination={mode: External, chainId: 1}"], [EXTERNAL]),
    ("spec.coordination.mode", "mode External where", ["coordination={mode: Dev, chainId: 1}"], ["coordination.mode=Dev"]),
    (
        "spec.communication.admission",
        "no chain",
        ["communication.admission=Registered"],
        ["communication.admission=Registered", "coordination.mode=Dev"],
    ),
    ("spec.completion.policy", "no chain", ["completion.policy=Coordinator"], ["completion.policy=Coordinator", "coordination.mode=Dev"]),
    ("spec.peers.replicas", "from minReplicas to", ["peers={replicas: 1, minReplicas: 2}"], ["peers={replicas: 0, minReplicas: 2}"]),
    (
        "spec.peers.replicas",
        "from minReplicas to",
        ["peers={replicas: 3, maxReplicas: 2}"],
        ["peers={replicas: 2, minReplicas: 2, maxReplicas: 2}"],
    ),
    (
        "spec.peers.minReplicas",
        "at most maxReplicas",
        ["peers={replicas: 0, minReplicas: 3, maxReplicas: 2}"],
        ["peers={replicas: 0, minReplicas: 2, maxReplicas: 2}"],
    ),
    ("spec.peers.env[0]", "not both", ["peers.env=[{name: A, value: b, valueFrom: {}}]"], ["peers.env=[{name: A, value: b}]"]),
    ("spec.storage.cache", "one of claimName", ["storage.cache={claimName: a, emptyDir: {}}"], ["storage.cache.claimName=a"]),
    (
        "spec.storage.cache",
        "one of claimName",
        [f"storage.cache={{claimName: a, claimTemplate: {CLAIM}}}"],
        [f"storage.cache.claimTemplate={CLAIM}"],
    ),
    (
        "spec.storage.checkpoints",
        "one of claimName",
        ["storage.checkpoints={claimName: a, emptyDir: {}}"],
        ["storage.checkpoints.emptyDir={}"],
    ),
    (
        "spec.storage.cache.claimTemplate.spec.resources.requests",
        "under storage",
        ["storage.cache.claimTemplate={spec: {resources: {requests: {size: 1Gi}}}}"],
        [f"storage.cache.claimTemplate={CLAIM}"],
    ),
    (
        "spec.storage.checkpoints.claimTemplate.spec.resources.requests",
        "under storage",
        ["storage.checkpoints.claimTemplate={spec: {resources: {requests: {size: 1Gi}}}}"],
        [f"storage.checkpoints.claimTemplate={CLAIM}"],
    ),
    (
        "spec.storage.checkpoints.retentionPolicy",
        "cannot be retained",
        ["storage.checkpoints={emptyDir: {}, retentionPolicy: {whenFinished: Delete}}"],
        ["storage.checkpoints={claimName: a, retentionPolicy: {whenFinished: Delete}}"],
    ),
    (
        "spec.storage.checkpoints.retentionPolicy",
        "cannot be retained",
        ["storage.checkpoints.retentionPolicy={}"],
        ["storage.checkpoints.retentionPolicy={whenDeleted: Delete, whenFinished: Delete}"],
    ),
]


@pytest.mark.parametrize(("path", "words", "refused", "accepted"), CASES)
def test_a_rule_refuses_one_manifest_and_accepts_another(path: str, words: str, refused: list[str], accepted: list[str]) -> None:
    with pytest.raises(InvalidManifest) as caught:
        loads_manifest(MINIMAL, refused)
    found = [problem for problem in caught.value.problems if problem.path == path and words in problem.expected]
    assert len(found) == 1, caught.value
    loads_manifest(MINIMAL, accepted)


def test_every_rule_of_the_table_is_among_the_cases() -> None:
    for path, _, rule in all_rules():
        covered = [
            case
            for case in CASES
            if case[1] in rule.expected and (case[0].replace("[0]", "[*]").startswith(path) or path.startswith("spec.game"))
        ]
        assert covered, f"{path}: {rule.expected}"


def test_every_rule_has_a_cel_expression_that_speaks_of_itself_and_balances_its_brackets() -> None:
    for path, _, rule in all_rules():
        assert "self" in rule.cel
        assert rule.cel.count("(") == rule.cel.count(")"), path
    for _, _, transition in all_transitions():
        assert "oldSelf" in transition.cel


def test_rules_about_metadata_stand_at_the_root_where_the_api_server_allows_them() -> None:
    rooted = [rule.cel for path, _, rule in all_rules() if path == ""]
    assert rooted
    assert all("self.metadata.name" in cel for cel in rooted)


CHANGES: list[tuple[str, list[str], list[str], bool]] = [
    ("spec.managedBy", [], ["managedBy=example.dev/other"], False),
    ("spec.managedBy", ["managedBy=example.dev/other"], ["managedBy=example.dev/other", "peers.replicas=2"], True),
    ("spec.game", [], ["game.maxRounds=5"], False),
    ("spec.game", [], ["game.trainer.with.generations=3"], False),
    ("spec.game", ["suspend=true"], ["suspend=true", "game.maxRounds=5"], True),
    ("spec.game", [], ["suspend=true"], True),
    ("spec.coordination", ["coordination.mode=Dev"], ["coordination.mode=None"], False),
    ("spec.coordination", [], ["coordination.mode=Dev"], True),
]


@pytest.mark.parametrize(("path", "before", "after", "allowed"), CHANGES)
def test_what_is_immutable_may_not_change_and_the_rest_may(path: str, before: list[str], after: list[str], allowed: bool) -> None:
    problems = change_problems(loads_manifest(MINIMAL, before), loads_manifest(MINIMAL, after))
    assert [problem.path for problem in problems] == ([] if allowed else [path])
