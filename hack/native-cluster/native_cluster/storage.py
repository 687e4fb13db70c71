"""Provision a folder of this host for each PersistentVolumeClaim, as the default storage class of a small cluster.

Runs as a process (`python -m native_cluster.storage KUBECONFIG`) that reconciles all claims twice a second, which is
cheap for one node. Invariant: a volume that is released under the policy Delete is removed with its folder.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from native_cluster.node import NAME, STATE

if TYPE_CHECKING:
    from kubernetes import client

CLASS = "standard"
PROVISIONER = "swarmgame.dev/folder"
_SECONDS = 0.5


def objects() -> list[dict[str, object]]:
    """Return the storage class."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": CLASS, "annotations": default},
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
        }
    ]


def volume(claim: client.V1PersistentVolumeClaim) -> dict[str, object]:
    """Return the volume of a claim, of the type `local`, whose files get the pod's fsGroup."""
    name = f"pvc-{claim.metadata.uid}"
    affinity = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    return {
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "capacity": {"storage": claim.spec.resources.requests["storage"]},
            "accessModes": claim.spec.access_modes,
            "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": claim.metadata.namespace, "name": claim.metadata.name, "uid": claim.metadata.uid},
            "local": {"path": str(_folder(name))},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [affinity]}]}},
        },
    }


def reconcile(core: client.CoreV1Api) -> None:
    """Create volumes for pending claims, and remove released ones."""
    volumes = {each.metadata.name: each for each in core.list_persistent_volume().items}
    for claim in core.list_persistent_volume_claim_for_all_namespaces().items:
        if (
            claim.status.phase == "Pending"
            and claim.spec.storage_class_name == CLASS
            and f"pvc-{claim.metadata.uid}" not in volumes
        ):
            _folder(f"pvc-{claim.metadata.uid}").mkdir(parents=True, exist_ok=True)
            core.create_persistent_volume(volume(claim))
    for name in _released(volumes):
        core.delete_persistent_volume(name)
        shutil.rmtree(_folder(name), ignore_errors=True)


def main() -> None:
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    core = client.CoreV1Api(config.new_client_from_config(config_file=sys.argv[1]))
    while True:
        try:
            reconcile(core)
        except (client.ApiException, HTTPError) as error:
            print(f"will retry: {error}", flush=True)
        time.sleep(_SECONDS)


def _released(volumes: dict[str, client.V1PersistentVolume]) -> Iterator[str]:
    for name, each in volumes.items():
        ours = (each.metadata.annotations or {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
        if (
            ours
            and each.status.phase in {"Released", "Failed"}
            and each.spec.persistent_volume_reclaim_policy == "Delete"
        ):
            yield name


def _folder(name: str) -> Path:
    return STATE / "volumes" / name


if __name__ == "__main__":
    main()
