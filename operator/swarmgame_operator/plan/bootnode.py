"""The bootnode: one small pod whose address never changes, because its key and its Service do not.

It holds no model and no game state: losing it costs new peers a wait, and nobody else anything. Invariant: there is
never a second one with its key.
"""

from __future__ import annotations

from swarmgame_operator.plan.identity import BOOTNODE_KEY
from swarmgame_operator.plan.outcome import Child, Manifest
from swarmgame_operator.plan.pod import (
    container,
    from_field,
    http_port,
    mount,
    p2p_port,
    patient_probes,
    pod_spec,
    scratch,
    small,
    value,
    volume,
)
from swarmgame_operator.plan.setting import HTTP_PORT, Setting
from swarmgame_operator.plan.storage import GAME, IDENTITY, READ_BY_GROUP

DEPLOYMENT = "bootnode"
CONTAINER = "bootnode"


def bootnode(setting: Setting, *, running: bool) -> tuple[Child, ...]:
    """Its Deployment; with no pod while the game is suspended or over."""
    if not setting.has_bootnode:
        return ()
    spec: Manifest = {
        "replicas": int(running),
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": setting.selector("bootnode")},
        "template": {
            "metadata": {"labels": setting.labels("bootnode")},
            "spec": pod_spec(
                setting,
                terminationGracePeriodSeconds=10,
                containers=[_container(setting)],
                volumes=[
                    scratch(),
                    volume("game", configMap={"name": setting.name("game")}),
                    volume(
                        "identity", secret={"secretName": setting.name("bootnode-key"), "defaultMode": READ_BY_GROUP}
                    ),
                ],
            ),
        },
    }
    return (
        Child(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": setting.metadata(DEPLOYMENT, "bootnode"),
                "spec": spec,
            }
        ),
    )


def _container(setting: Setting) -> Manifest:
    port = setting.spec.communication.port
    return container(
        setting,
        CONTAINER,
        setting.worker_image,
        args=["pod", "bootnode"],
        env=[
            from_field("POD_IP", "status.podIP"),
            value("HOME", "/tmp"),
            value("SWARMGAME_GAME", f"{GAME}/game.yaml"),
            value("SWARMGAME_IDENTITY", f"{IDENTITY}/{BOOTNODE_KEY}"),
            value("SWARMGAME_PORT", str(port)),
            value("SWARMGAME_HTTP_HOST", "0.0.0.0"),
            value("SWARMGAME_HTTP_PORT", str(HTTP_PORT)),
            value("SWARMGAME_ANNOUNCE", f"/ip4/$(POD_IP)/tcp/{port}"),
            value("SWARMGAME_INITIAL_PEERS", " ".join(setting.spec.communication.initial_peers)),
        ],
        ports=[p2p_port(setting), http_port()],
        resources=small("512Mi", "50m"),
        volumeMounts=[
            mount("tmp", "/tmp"),
            mount("game", GAME, readOnly=True),
            mount("identity", IDENTITY, readOnly=True),
        ],
        **patient_probes(),
    )
