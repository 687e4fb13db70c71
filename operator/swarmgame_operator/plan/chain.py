"""The gateway to the chain, and in mode Dev the chain itself.

Both stay while the game is suspended and after its end, until it is deleted: reports may still be in transit, and what
was reported stays readable. Invariant: only the gateway mounts the wallet and the RPC's address.
"""

from __future__ import annotations

from swarmgame_operator.plan.game_context import CHAIN_PORT, GATEWAY_PORT, GameContext
from swarmgame_operator.plan.plan_types import Child, Manifest
from swarmgame_operator.plan.pod import (
    container,
    http_port,
    http_probe,
    mount,
    pod_spec,
    pod_template,
    scratch,
    small,
    value,
    volume,
    waiting_probe,
)
from swarmgame_operator.plan.services import DEV_CHAIN_ID, bootnode_address, chain_rpc, contract, every_address
from swarmgame_operator.plan.storage import READ_BY_GROUP

GATEWAY = "gateway"
CHAIN = "chain"
WALLET = "/etc/swarmgame/wallet"
RPC = "/etc/swarmgame/rpc"
STATE = "/state"


def chain(game: GameContext) -> tuple[Child, ...]:
    """Return the children that the game's coordination mode needs."""
    if not game.has_chain:
        return ()
    return (*([_dev_chain(game)] if game.spec.coordination.mode == "Dev" else []), _gateway(game))


def _gateway(game: GameContext) -> Child:
    coordination = game.spec.coordination
    environment = [
        value("HOME", "/tmp"),
        value("SWARMGAME_GATEWAY_HOST", every_address(game)),
        value("SWARMGAME_GATEWAY_PORT", str(GATEWAY_PORT)),
        value("SWARMGAME_GATEWAY_QUORUM", f"{game.spec.game.progression.quorum_fraction:g}"),
        value("SWARMGAME_GATEWAY_BOOTNODES", bootnode_address(game)),
        value("SWARMGAME_CHAIN_MODE", coordination.mode),
        value("SWARMGAME_CHAIN_CONTRACT", contract(game)),
    ]
    volumes, mounts = [scratch()], [mount("tmp", "/tmp")]
    if coordination.mode == "Dev":
        # Every transaction has its own block, and there are no others: a second confirmation would never come.
        environment += [
            value("SWARMGAME_CHAIN_ID", str(DEV_CHAIN_ID)),
            value("SWARMGAME_CHAIN_RPC", chain_rpc(game)),
            value("SWARMGAME_GATEWAY_CONFIRMATIONS", "1"),
        ]
    else:
        environment += [
            value("SWARMGAME_CHAIN_ID", str(coordination.chain_id)),
            value("SWARMGAME_CHAIN_RPC_FILE", f"{RPC}/url"),
            value("SWARMGAME_CHAIN_KEY_FILE", f"{WALLET}/key"),
            value("SWARMGAME_GATEWAY_CONFIRMATIONS", str(coordination.confirmations)),
        ]
        for name, reference, key, path in (
            ("rpc", coordination.rpc_secret_ref, "url", RPC),
            ("wallet", coordination.wallet_secret_ref, "key", WALLET),
        ):
            if reference is not None:
                items = [{"key": key, "path": key}]
                volumes.append(
                    volume(name, secret={"secretName": reference.name, "items": items, "defaultMode": READ_BY_GROUP})
                )
                mounts.append(mount(name, path, readOnly=True))
    pod = container(
        game,
        GATEWAY,
        game.defaults.gateway_image,
        command=["swarmgame-gateway"],
        env=environment,
        ports=[http_port(GATEWAY_PORT)],
        resources=small("256Mi", "50m"),
        volumeMounts=mounts,
        startupProbe=waiting_probe(GATEWAY_PORT),
        readinessProbe=http_probe("/readyz", periodSeconds=5, failureThreshold=3, timeoutSeconds=5),
        livenessProbe=http_probe("/healthz", periodSeconds=20, failureThreshold=6, timeoutSeconds=10),
    )
    spec: Manifest = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # two gateways would race for the wallet's nonces
        "selector": {"matchLabels": game.selector("gateway")},
        "template": pod_template(game, "gateway", pod_spec(game, containers=[pod], volumes=volumes)),
    }
    return Child(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": game.metadata(GATEWAY, "gateway"), "spec": spec}
    )


def _dev_chain(game: GameContext) -> Child:
    probe = {"tcpSocket": {"port": "rpc"}}
    pod = container(
        game,
        CHAIN,
        game.defaults.chain_image,
        args=[
            *("--host", every_address(game), "--port", str(CHAIN_PORT), "--chain-id", str(DEV_CHAIN_ID)),
            *("--state", f"{STATE}/anvil.json", "--state-interval", "5"),
        ],
        env=[value("HOME", "/tmp")],
        ports=[{"name": "rpc", "containerPort": CHAIN_PORT, "protocol": "TCP"}],
        resources=small("512Mi", "50m"),
        volumeMounts=[mount("tmp", "/tmp"), mount("state", STATE)],
        # anvil listens within a second, and a probe that fails before is a Warning.
        readinessProbe={**probe, "initialDelaySeconds": 3, "periodSeconds": 2, "failureThreshold": 3},
        livenessProbe={**probe, "periodSeconds": 20, "failureThreshold": 6},
    )
    spec: Manifest = {
        "replicas": 1,
        # The chain's state goes with its pod, so a newer operator's template waits until somebody deletes the pod.
        "updateStrategy": {"type": "OnDelete"},
        "serviceName": game.name(CHAIN),
        "selector": {"matchLabels": game.selector("chain")},
        "template": pod_template(
            game, "chain", pod_spec(game, containers=[pod], volumes=[scratch(), volume("state", emptyDir={})])
        ),
    }
    return Child(
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": game.metadata(CHAIN, "chain"), "spec": spec}
    )
