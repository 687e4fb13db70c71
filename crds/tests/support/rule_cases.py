"""For every rule and every transition a refused and an accepted manifest, for files and for an API server."""

from __future__ import annotations

from swarmgame_api.manifest import Metadata
from swarmgame_api.rules import PlacedRule, PlacedTransition, all_rules, all_transitions

CLAIM = "{spec: {resources: {requests: {storage: 1Gi}}}}"
EXTERNAL = (
    "coordination={mode: External, chainId: 1, contractAddress: '0x00000000000000000000000000000000000000aa',"
    " rpcSecretRef: {name: rpc}, walletSecretRef: {name: wallet}}"
)
TORCH = "communication.backend=TorchDistributed"
PEER = "16Uiu2HAmVCwrTeM4wAVSFjFYBgpmHgprXqLRJfFTZ9gVTFp4aHuL"
MODULE = "{name: a, configMapRef: {name: a}, mountPath: /a}"

Case = tuple[str, str, list[str], list[str]]

CASES: list[Case] = [
    # path of the problem, text it contains, overrides that are refused, overrides that are accepted
    ("metadata.name", "at most 52", [f"metadata.name={'a' * 53}"], [f"metadata.name={'a' * 52}"]),
    ("metadata.name", "without dots", ["metadata.name=a.b"], ["metadata.name=a-b"]),
    (
        "spec.model.revision",
        "no revision unless",
        ["model.revision=main"],
        ["model.uri=hf://a/b", "model.revision=main"],
    ),
    (
        "spec.podDefaults.env[0]",
        "not both",
        ["podDefaults.env=[{name: A, value: b, valueFrom: {}}]"],
        ["podDefaults.env=[{name: A, value: b}]"],
    ),
    (
        "spec.podDefaults.env",
        "every variable once",
        ["podDefaults.env=[{name: A, value: a}, {name: A, value: b}]"],
        ["podDefaults.env=[{name: A, value: a}, {name: B, value: b}]"],
    ),
    (
        "spec.podDefaults.env",
        "no variable that differs by pod",
        ["podDefaults.env=[{name: SWARMGAME_IDENTITY, value: a}]"],
        ["podDefaults.env=[{name: HTTPS_PROXY, value: 'http://proxy:3128'}]"],
    ),
    (
        "spec.podDefaults.resources",
        "no devices",
        ['podDefaults.resources={limits: {nvidia.com/gpu: "1"}}'],
        ["podDefaults.resources={limits: {cpu: 500m}}"],
    ),
    (
        "spec.podTemplates.initializer",
        "nothing without a claim",
        ["podTemplates.initializer={spec: {hostNetwork: false}}"],
        ["podTemplates.initializer={spec: {hostNetwork: false}}", "storage.cache={claimName: a}"],
    ),
    (
        "spec.model.export.atEnd",
        "nothing would be exported",
        ["model.export.atEnd=false"],
        ["model.export.atEnd=false", "model.export.everyRounds=5"],
    ),
    (
        "spec.game.roles",
        'at most "100%"',
        ["game.roles=[{name: a, share: 51%}, {name: b, share: 50%}]"],
        ["game.roles=[{name: a, share: 50%}, {name: b, share: 50%}]"],
    ),
    (
        "spec.game.roles",
        "every role once",
        ["game.roles=[{name: a, count: 1}, {name: a, count: 1}]"],
        ["game.roles=[{name: a, count: 1}, {name: b, count: 1}]"],
    ),
    (
        "spec.game.roles",
        "takes the rest",
        ["game.roles=[{name: a}, {name: b}]"],
        ["game.roles=[{name: a}, {name: b, count: 1}]"],
    ),
    (
        "spec.game.roles[0]",
        "not both",
        ["game.roles=[{name: a, share: 50%, count: 1}]"],
        ["game.roles=[{name: a, share: 50%}]"],
    ),
    (
        "spec.game.roles",
        "at most peers.replicas",
        ["game.roles=[{name: a, count: 3}, {name: b, count: 2}]"],
        ["game.roles=[{name: a, count: 4}]"],
    ),
    (
        "spec.game.modules",
        "every module once",
        [f"game.modules=[{MODULE}, {MODULE.replace('/a', '/b')}]"],
        [f"game.modules=[{MODULE}]"],
    ),
    (
        "spec.game.modules",
        "mountPath of its own",
        [f"game.modules=[{MODULE}, {MODULE.replace('name: a, c', 'name: b, c')}]"],
        [f"game.modules=[{MODULE}, {MODULE.replace('name: a, c', 'name: b, c').replace('/a', '/b')}]"],
    ),
    ("spec.game.modules[0]", "exactly one", ["game.modules=[{name: a, mountPath: /a}]"], [f"game.modules=[{MODULE}]"]),
    (
        "spec.communication.initialPeers",
        "is fixed",
        ["communication={backend: TorchDistributed, initialPeers: [/dns4/a/tcp/1/p2p/16U]}"],
        ["communication={backend: Hivemind, initialPeers: [/dns4/a/tcp/1/p2p/16U]}"],
    ),
    (
        "spec.communication.allowedPeers",
        "at least one id",
        ["communication.admission=Allowlist"],
        [f"communication={{admission: Allowlist, allowedPeers: [{PEER}]}}"],
    ),
    (
        "spec.communication.admission",
        "Allowlist where",
        [f"communication.allowedPeers=[{PEER}]"],
        [f"communication={{admission: Allowlist, allowedPeers: [{PEER}]}}"],
    ),
    ("spec.coordination", "chainId, contractAddress", ["coordination={mode: External, chainId: 1}"], [EXTERNAL]),
    (
        "spec.coordination.mode",
        "mode External where",
        ["coordination={mode: Dev, chainId: 1}"],
        ["coordination.mode=Dev"],
    ),
    (
        "spec.communication.admission",
        "no chain",
        ["communication.admission=Registered"],
        ["communication.admission=Registered", "coordination.mode=Dev"],
    ),
    (
        "spec.completion.policy",
        "no chain",
        ["completion.policy=Coordinator"],
        ["completion.policy=Coordinator", "coordination.mode=Dev"],
    ),
    (
        "spec.bootnode.expose",
        "has no bootnode",
        ["communication.backend=TorchDistributed", "bootnode.expose=NodePort"],
        ["communication.backend=TorchDistributed", "bootnode.enabled=true"],
    ),
    ("spec.peers.replicas", "at most 64", [TORCH, "peers.replicas=65"], [TORCH, "peers.replicas=64"]),
    (
        "spec.peers.replicas",
        "from minReplicas to",
        ["peers={replicas: 1, minReplicas: 2}"],
        ["peers={replicas: 0, minReplicas: 2}"],
    ),
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
    (
        "spec.peers.env",
        "every variable once",
        ["peers.env=[{name: A, value: b}, {name: A}]"],
        ["peers.env=[{name: A}, {name: B}]"],
    ),
    (
        "spec.peers.env[0]",
        "not both",
        ["peers.env=[{name: A, value: b, valueFrom: {}}]"],
        ["peers.env=[{name: A, value: b}]"],
    ),
    (
        "spec.storage.cache",
        "one of claimName",
        ["storage.cache={claimName: a, emptyDir: {}}"],
        ["storage.cache.claimName=a"],
    ),
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

# path of the problem, overrides before, overrides after, whether that change is allowed
CHANGES: list[tuple[str, list[str], list[str], bool]] = [
    ("spec.managedBy", [], ["managedBy=example.dev/other"], False),
    ("spec.managedBy", ["managedBy=example.dev/other"], ["managedBy=example.dev/other", "peers.replicas=2"], True),
    ("spec.game", [], ["game.maxRounds=5"], False),
    ("spec.game", [], ["game.trainer.with.generations=3"], False),
    ("spec.game", ["suspend=true"], ["suspend=true", "game.maxRounds=5"], True),
    ("spec.game", [], ["game.maxRounds=900000"], True),
    ("spec.game", [], ["game.maxRounds=900000", "game.trainer.with.generations=3"], False),
    ("spec.game", [], ["game.maxRounds=900000", "game.seed=3"], False),
    ("spec.game", [], ["game.maxRounds=900000", "game.evaluation={everyRounds: 5, questions: 4}"], False),
    ("spec.game", [], ["game.maxRounds=900000", "game.sharing.externalGroups=3"], False),
    ("spec.game", [], ["suspend=true"], True),
    ("spec.peers.replicas", [TORCH], [TORCH, "peers.replicas=2"], False),
    ("spec.peers.replicas", [TORCH], [TORCH, "peers.replicas=0"], True),
    ("spec.peers.replicas", [TORCH, "peers.replicas=0"], [TORCH, "peers.replicas=2"], True),
    ("spec.peers.replicas", [TORCH, "suspend=true"], [TORCH, "suspend=true", "peers.replicas=2"], True),
    ("spec.peers.replicas", [], ["peers.replicas=2"], True),
    ("spec.coordination", ["coordination.mode=Dev"], ["coordination.mode=None"], False),
    ("spec.coordination", [], ["coordination.mode=Dev"], True),
]


def place_of(placed: PlacedRule | PlacedTransition) -> str:
    """Return the path of its problem in a file."""
    rule = placed.rule if isinstance(placed, PlacedRule) else placed.transition
    path = "metadata" if placed.owner is Metadata else placed.path
    return ".".join(part for part in (path, rule.field) if part)


def rule_of(path: str, text: str) -> PlacedRule:
    """Return the rule of a case."""
    (placed,) = (
        rule for rule in all_rules() if place_of(rule) == path.replace("[0]", "[*]") and text in rule.rule.expected
    )
    return placed


def transition_of(path: str) -> PlacedTransition:
    """Return the transition of a case."""
    (placed,) = (transition for transition in all_transitions() if place_of(transition) == path)
    return placed
