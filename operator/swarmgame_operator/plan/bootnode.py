"""The bootnode: one small pod whose address never changes, because its key and its Service do not.

It holds no model and no game state: without it, only new peers wait. Invariant: two bootnodes never run with one key
(strategy Recreate).
"""

from __future__ import annotations

from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.plan_types import Child, Manifest
from swarmgame_operator.plan.pod import (
    container,
    from_field,
    http_port,
    mount,
    p2p_port,
    pod_spec,
    pod_template,
    scratch,
    slow_start_probes,
    small,
    value,
    volume,
)
from swarmgame_operator.plan.services import own_address
from swarmgame_operator.plan.storage import BOOTNODE_KEY, GAME, IDENTITY, READ_BY_GROUP

DEPLOYMENT = "bootnode"
CONTAINER = "bootnode"


def bootnode(game: GameContext, *, running: bool) -> tuple[Child, ...]:
    """Return its Deployment, with no pod while the game is suspended or over."""
    if not game.has_bootnode:
        return ()
    spec: Manifest = {
        "replicas": int(running),
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": game.selector("bootnode")},
        "template": pod_template(
            game,
            "bootnode",
            pod_spec(
                game,
                terminationGracePeriodSeconds=10,
                containers=[_container(game)],
                volumes=[
                    scratch(),
                    volume("game", configMap={"name": game.name("game")}),
                    volume("identity", secret={"secretName": game.name("bootnode-key"), "defaultMode": READ_BY_GROUP}),
                ],
            ),
        ),
    }
    return (
        Child(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": game.metadata(DEPLOYMENT, "bootnode"),
                "spec": spec,
            }
        ),
    )


def _container(game: GameContext) -> Manifest:
    return container(
        game,
        CONTAINER,
        game.worker_image,
        args=["pod", "bootnode"],
        env=[
            from_field("POD_IP", "status.podIP"),
            value("HOME", "/tmp"),
            value("SWARMGAME_GAME", f"{GAME}/game.yaml"),
            value("SWARMGAME_IDENTITY", f"{IDENTITY}/{BOOTNODE_KEY}"),
            value("SWARMGAME_ANNOUNCE", own_address(game)),
        ],
        ports=[p2p_port(game), http_port()],
        resources=small("512Mi", "50m"),
        volumeMounts=[
            mount("tmp", "/tmp"),
            mount("game", GAME, readOnly=True),
            mount("identity", IDENTITY, readOnly=True),
        ],
        **slow_start_probes(),
    )
