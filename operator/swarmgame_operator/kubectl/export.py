"""Models and checkpoints of a game, copied from its peers to this machine.

A peer's folder is read in its own pod while that runs. Once it is gone, a short-lived pod mounts the game's claim,
read-only, and is deleted afterwards; what was in an emptyDir is gone with its pod. Files come as a tar stream through
`kubectl exec`, which knows every way to log in. Invariant: FOLDER is complete or not changed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarmgame_operator.plan.pod import container_security, mount, pod_security, small, volume
from swarmgame_operator.plan.storage import CHECKPOINTS

NOT_FOUND, UNAVAILABLE, NOT_WRITTEN, BAD_USAGE, BAD_CONFIG = 66, 69, 73, 64, 78
PEER_FOLDER = f"{CHECKPOINTS}/peer"
RECORD = "swarmgame.json"
LIFETIME_SECONDS = 3600
CONTAINER = "export"
OWN = re.compile(r"(app|batch)\.kubernetes\.io/|swarmgame\.dev/|kueue\.x-k8s\.io/|(controller-uid|job-name)$")
"""Labels and annotations of the operator, of Jobs and of queues."""
Object = dict[str, Any]

LIST = """
import json, pathlib, sys
found = {}
for number, place in (pair.split("=", 1) for pair in sys.argv[1:]):
    place = pathlib.Path(place)
    if number == "*":
        peers = {int(each.name): each for each in place.iterdir() if each.name.isdigit()}
    else:
        peers = {int(number): place}
    for index, folder in peers.items():
        exports = {}
        for each in folder.glob("exports/round-*/swarmgame.json"):
            try:
                exports[str(each.parent)] = json.loads(each.read_bytes())
            except (OSError, ValueError) as error:
                print(f"{each}: {error}", file=sys.stderr)
        checkpoints = sorted(str(each.parent) for each in folder.glob("checkpoints/round-*/manifest.json"))
        found[index] = {"folder": str(folder), "exports": exports, "checkpoints": checkpoints}
print(json.dumps(found))
"""
"""Prints what each peer has; arguments: INDEX=FOLDER, or *=FOLDER for a folder that holds all peers' by index."""

SEND = """
import pathlib, sys, tarfile
last = ("swarmgame.json", "manifest.json")
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    for source, name in (pair.split("=", 1) for pair in sys.argv[1:]):
        source = pathlib.Path(source)
        files = [each for each in source.rglob("*") if each.is_file()] if source.is_dir() else [source]
        for each in sorted(files, key=lambda each: (each.name in last, each)):
            inside = each.relative_to(source) if source.is_dir() else ""
            archive.add(each, str(pathlib.PurePosixPath(name, inside)), recursive=False)
"""
"""Writes files as a tar stream, the file that marks a folder as complete last; arguments: SOURCE=NAME."""


class ExportError(Exception):
    """A failure as one line for the user, and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Place:
    """A pod in which files are read.

    Args:
        pod, container: where the commands run.
        folders: arguments of LIST.
    """

    pod: str
    container: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What one peer has: its folder, its exports with their records, and its checkpoints, each by path."""

    place: Place
    peer: int
    folder: str
    exports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ()


# ── pure: where the files are, the pod, the choice


def claim_of(game: Mapping[str, Any] | None, name: str) -> str:
    """Return the claim with a game's checkpoints; empty where they are in an emptyDir.

    Args:
        game: None for a deleted game, whose claim may be kept.
    """
    if game is None:
        return f"{name}-checkpoints"
    checkpoints = ((game.get("spec") or {}).get("storage") or {}).get("checkpoints") or {}
    if checkpoints.get("claimName"):
        return str(checkpoints["claimName"])
    return f"{name}-checkpoints" if checkpoints.get("claimTemplate") else ""


def running_places(pods: Sequence[tuple[int | None, Mapping[str, Any]]]) -> dict[int, Place]:
    """Return the place of each peer whose pod runs, by index, from pairs of index and pod."""
    found = {}
    for index, pod in sorted(pods, key=lambda each: str(each[1]["metadata"]["creationTimestamp"])):
        running = (pod.get("status") or {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
        if index is not None and running:
            container = pod["spec"]["containers"][0]["name"]
            found[index] = Place(pod["metadata"]["name"], container, (f"{index}={PEER_FOLDER}",))
    return found


def reader_pod(game: str, claim: str, image: str, template: Mapping[str, Any]) -> Object:
    """Return the pod that mounts a claim read-only. It fits the restricted Pod Security standard, as peers do, and
    ends by itself.

    Args:
        template: of the peers' pods, for what the platform asks for: labels, annotations, the registry's Secrets,
            nodes, a user, the container's security, a limit of CPU.
    """
    peers: Mapping[str, Any] = template.get("spec") or {}
    labels, annotations = (
        {key: text for key, text in ((template.get("metadata") or {}).get(name) or {}).items() if not OWN.match(key)}
        for name in ("labels", "annotations")
    )
    containers: Sequence[Mapping[str, Any]] = peers.get("containers") or ()
    security = next((each.get("securityContext") for each in containers if each.get("name") == "peer"), None)
    resources = small("256Mi", "50m")
    if any("cpu" in (each.get("resources") or {}).get("limits", {}) for each in containers):
        resources["limits"]["cpu"] = "500m"
    near = {"labelSelector": {"matchLabels": {"swarmgame.dev/game": game}}, "topologyKey": "kubernetes.io/hostname"}
    spec: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFETIME_SECONDS,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": peers.get("securityContext") or pod_security(),
        # A claim that is mounted on one node (ReadWriteOnce) can be mounted again there only.
        "affinity": {
            "podAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": near}]
            }
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "command": ["python3", "-c", f"import time; time.sleep({LIFETIME_SECONDS})"],
                "securityContext": security or container_security(),
                "resources": resources,
                "volumeMounts": [mount("checkpoints", CHECKPOINTS, readOnly=True)],
            }
        ],
        "volumes": [volume("checkpoints", persistentVolumeClaim={"claimName": claim})],
    }
    for name in ("imagePullSecrets", "nodeSelector", "tolerations", "runtimeClassName", "priorityClassName"):
        if peers.get(name):
            spec[name] = peers[name]
    labels["swarmgame.dev/export-of"] = game
    metadata = {"generateName": f"{game}-export-", "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def waiting_reason(pod: Mapping[str, Any]) -> str:
    """Return why a pod does not run yet: of its container, else of its scheduling."""
    status = pod.get("status") or {}
    for each in status.get("containerStatuses") or ():
        if waiting := (each.get("state") or {}).get("waiting"):
            return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")
    for condition in status.get("conditions") or ():
        if condition.get("status") == "False" and condition.get("message"):
            return f"{condition.get('reason', '')}: {condition['message']}".strip(": ")
    return str(status.get("phase") or "no status yet")


def choose_export(found: Sequence[Found], peer: int | None, *, best: bool) -> tuple[Found, str]:
    """Return the newest export of a peer (by default of the first), or with `best` the one whose held-out evaluation
    is the best.

    Raises:
        ExportError: there is none.
    """
    chosen = [(each, path, record) for each in found for path, record in each.exports.items()]
    if not chosen:
        raise ExportError(
            NOT_FOUND,
            "no export yet: with spec.model.export the peers write them; `--checkpoint` fetches a checkpoint, of "
            "which `swarmgame export` makes one",
        )
    if best:
        evaluated = [
            (reward, each, path) for each, path, record in chosen if (reward := _evaluation(record)) is not None
        ]
        if not evaluated:
            raise ExportError(
                NOT_FOUND, "no export has a held-out evaluation (spec.game.evaluation); choose with --peer"
            )
        reward, each, path = max(evaluated, key=lambda one: (one[0], one[2], -one[1].peer))
        return each, path
    index = min(each.peer for each, _, _ in chosen) if peer is None else peer
    of_peer = [(path, each) for each, path, _ in chosen if each.peer == index]
    path, each = max(of_peer, key=lambda one: one[0])
    return each, path


def choose_checkpoint(found: Sequence[Found]) -> tuple[Found, list[str]]:
    """Return the first peer that has a checkpoint, and arguments of SEND that make a run's folder of it.

    Raises:
        ExportError: there is none.
    """
    each = next((each for each in sorted(found, key=lambda each: each.peer) if each.checkpoints), None)
    if each is None:
        raise ExportError(NOT_FOUND, "no checkpoint yet: the first comes after storage.checkpoints.everyRounds")
    inside = f"peers/{each.peer}"
    newest = each.checkpoints[-1]
    return each, [
        f"{each.folder}/metrics.jsonl={inside}/metrics.jsonl",
        f"{newest}={inside}/checkpoints/{newest.rpartition('/')[2]}",
    ]


def _evaluation(record: Mapping[str, Any]) -> float | None:
    rows = [row for row in record.get("evaluations") or () if row.get("rounds") == record.get("rounds")]
    return float(rows[0]["reward"]) if rows else None


# ── effects: commands in a pod, and the folder


@dataclass(frozen=True)
class Executor:
    """Runs Python in a container, by `kubectl exec`.

    Args:
        program: kubectl's name or path.
        context: of the kubeconfig; empty for the current one.
    """

    namespace: str
    context: str = ""
    program: str = "kubectl"

    async def list(self, place: Place) -> list[Found]:
        """Return what the peers in a place have.

        Raises:
            ExportError: the command could not be run there.
        """
        done = await asyncio.to_thread(self._finished, place, LIST, place.folders)
        try:
            peers = json.loads(done)
        except ValueError as error:
            raise ExportError(UNAVAILABLE, f"pod {place.pod} gave no list of its files: {error}") from error
        return [
            Found(place, int(index), each["folder"], each["exports"], tuple(each["checkpoints"]))
            for index, each in sorted(peers.items())
        ]

    async def fetch(self, place: Place, sources: Sequence[str], folder: Path) -> None:
        """Unpack files of a place into a folder.

        Args:
            sources: arguments of SEND.

        Raises:
            ExportError: the stream broke off.
            OSError: the folder cannot be written.
        """
        await asyncio.to_thread(self._fetch, place, sources, folder)

    def _fetch(self, place: Place, sources: Sequence[str], folder: Path) -> None:
        with self._started(place, SEND, sources) as process:
            assert process.stdout is not None
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    archive.extractall(folder, filter="data")
                process.stdout.read()
                broken = ""
            except tarfile.TarError as error:
                broken = str(error)
            finally:
                process.stdout.close()
                stderr = process.stderr.read().decode("utf-8", "replace") if process.stderr is not None else ""
        if process.returncode or broken:
            raise ExportError(UNAVAILABLE, f"the copy from pod {place.pod} broke off: {_last_line(stderr) or broken}")

    def _finished(self, place: Place, script: str, arguments: Sequence[str]) -> bytes:
        with self._started(place, script, arguments) as process:
            stdout, stderr = process.communicate()
        if process.returncode:
            reason = _last_line(stderr.decode("utf-8", "replace"))
            raise ExportError(UNAVAILABLE, f"pod {place.pod} could not be read: {reason}")
        return stdout

    def _started(self, place: Place, script: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        chosen = [f"--context={self.context}"] if self.context else []
        inside = [place.pod, f"--namespace={self.namespace}", f"--container={place.container}"]
        command = [self.program, "exec", *chosen, *inside, "--", "python3", "-c", script, *arguments]
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise ExportError(BAD_CONFIG, f"{self.program} is not installed: files are copied with it") from error


def refuse_used_folder(folder: Path, *, force: bool) -> None:
    """Check that a folder may be written: it is missing or empty or, with `force`, an export.

    Raises:
        ExportError: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ExportError(BAD_USAGE, f"{folder} is not a folder")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not (folder / RECORD).is_file():
        raise ExportError(BAD_USAGE, f"{folder} is not empty and holds no earlier export: name another folder")
    if used and not force:
        raise ExportError(BAD_USAGE, f"{folder} holds an earlier export: replace it with --force")


async def save(executor: Executor, place: Place, sources: Sequence[str], folder: Path, complete: str) -> None:
    """Fetch files into a new folder, and give it its name when it is complete.

    Args:
        complete: a file that is sent last, relative to the folder.

    Raises:
        ExportError: the copy broke off, or the folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        await executor.fetch(place, sources, temporary)
        if not (temporary / complete).is_file():
            raise ExportError(UNAVAILABLE, f"the copy from pod {place.pod} has no {complete}: it was deleted meanwhile")
        earlier = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if (folder / RECORD).is_file():
            folder.rename(earlier)
        temporary.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        raise ExportError(NOT_WRITTEN, f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
