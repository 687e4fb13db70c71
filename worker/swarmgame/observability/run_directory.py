"""The folder of a run, `runs/<name>/`: its files, its lock, and the game that it belongs to.

    game.yaml            the resolved manifest            run.json      progress of the run
    source.json          the folder of the game's file
    peers/<i>/           peer.key metrics.jsonl warnings.jsonl skipped.jsonl log.jsonl checkpoints/ exports/ rollouts/
                         http.json exit.json output.log
    report.html  plots/  summary.json                     lock          held by the runner while it lives
    chain/               a chain of its own, and standing.json: the last state of the chain

Nothing here starts a process. Invariant: at most one runner holds a run, and a run never changes its game: a folder of
another game is refused, not overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from swarmgame.errors import BadData, BadUsage, Temporary, writing
from swarmgame_api.sampler import is_vllm
from swarmgame_api.yaml_io import dump_document

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class PeerDirectory:
    """The files of one peer: the interface between it and its runner."""

    root: Path

    @property
    def key(self) -> Path:
        return self.root / "peer.key"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def warnings(self) -> Path:
        return self.root / "warnings.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def output(self) -> Path:
        """The standard output and standard error of the process."""
        return self.root / "output.log"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def exports(self) -> Path:
        """Models that the peer wrote: `round-00000200`, after that many rounds."""
        return self.root / "exports"

    @property
    def rollouts(self) -> Path:
        """The archive of rollouts, a Parquet file a round."""
        return self.root / "rollouts"

    @property
    def http(self) -> Path:
        return self.root / "http.json"

    @property
    def options(self) -> Path:
        """The manifest with every default, those of the `with` blocks included."""
        return self.root / "options.yaml"

    @property
    def run_name(self) -> str:
        """The name of the run that this folder is part of; empty for a peer by itself."""
        return self.root.parent.parent.name if self.root.parent.name == "peers" else ""

    @property
    def exit(self) -> Path:
        """How the last process of this peer ended, by its own record: `{"code": 78, "message": "…", …}`."""
        return self.root / "exit.json"

    @property
    def previous_exit(self) -> Path:
        """The record of the process before it, if that one failed."""
        return self.root / "exit.previous.json"

    @property
    def skipped(self) -> Path:
        """A JSON line for each time that the peer left out rounds."""
        return self.root / "skipped.jsonl"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a run.

    Args:
        peers: how many took part last.
        max_rounds: of the last start.
        finished: whether every peer has finished all of them.
        seconds: wall-clock time of all starts, preparation included.
    """

    peers: int
    max_rounds: int
    finished: bool
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's folder. Creating the object touches no file."""

    root: Path

    @classmethod
    def of(cls, runs: Path, name: str) -> RunDirectory:
        """Return the folder of the run with this name.

        Raises:
            BadUsage: the name could leave the folder, or is not valid.
        """
        if not NAME.fullmatch(name):
            raise BadUsage(
                f"{name!r} cannot name a run; use lower-case letters, digits, '-' and '.', at most 63 of them"
            )
        return cls((runs / name).absolute())

    def peer(self, index: int) -> PeerDirectory:
        return PeerDirectory(self.root / "peers" / str(index))

    def peers(self) -> dict[int, PeerDirectory]:
        """Return every peer that has a folder here, by index."""
        folder = self.root / "peers"
        found = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        return {index: self.peer(index) for index in sorted(found)}

    @property
    def manifest(self) -> Path:
        return self.root / "game.yaml"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def chain(self) -> Path:
        return self.root / "chain"

    @property
    def chain_standing(self) -> Path:
        """The last state of the run's chain; absent without one."""
        return self.chain / "standing.json"

    @property
    def _source(self) -> Path:
        return self.root / "source.json"

    @property
    def _progress(self) -> Path:
        return self.root / "run.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run. The folder is created when missing; the lock ends with the process, however it dies.

        Raises:
            Temporary: another runner holds it.
            NotWritable: the disk is full, or the folder is read-only.
        """
        with ExitStack() as stack:
            with writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.root / "lock").open("a+", encoding="utf-8"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise Temporary(
                    f"the run {self.root.name} is held by another process ({holder}); wait for it, stop it, or choose "
                    "another --name"
                ) from None
            with writing(self.root / "lock"):
                lock.truncate(0)
                lock.write(str(os.getpid()))
                lock.flush()
            yield

    def clear(self) -> None:
        """Remove everything but the lock, if the folder is a run.

        Raises:
            BadUsage: the folder holds something else.
        """
        found = {path.name for path in self.root.iterdir()} - {"lock"}
        if found and "game.yaml" not in found:
            raise BadUsage(f"{self.root} is not a run (it has no game.yaml), so --fresh leaves it alone")
        with writing(self.root):
            for name in found:
                path = self.root / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def refuse_other_game(self, manifest: Mapping[str, Any]) -> None:
        """Check that the manifest is the one that the run began with. Rounds, number of peers, and where it runs may
        differ.

        Raises:
            BadUsage: the folder belongs to another game; names the differences.
        """
        if not self.manifest.exists():
            return
        differing = list(_differences(_essence(_read_yaml(self.manifest)), _essence(manifest)))
        if differing:
            shown = "; ".join(differing[:5]) + (f"; and {len(differing) - 5} more" if len(differing) > 5 else "")
            raise BadUsage(
                f"the run {self.root.name} was begun with another game: {shown}. "
                "Go on with the old one, choose another --name, or begin again with --fresh"
            )

    def keep_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the resolved manifest, for the reader and for the next start."""
        write_atomically(self.manifest, dump_document(dict(manifest)))

    def keep_source(self, folder: Path) -> None:
        """Record the folder of the game's file: the game's own modules are there."""
        write_atomically(self._source, json.dumps({"folder": str(folder.absolute())}) + "\n")

    def source(self) -> Path | None:
        """Return the folder of the game's file, as the run was started last; None where it is not known."""
        try:
            return Path(json.loads(self._source.read_text(encoding="utf-8"))["folder"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadData(f"{self._source} cannot be read: {error}") from error

    def progress(self) -> RunProgress | None:
        """Return the progress of the run; None for one that has not begun."""
        try:
            found = json.loads(self._progress.read_text(encoding="utf-8"))
            return RunProgress(**found)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise BadData(
                f"{self._progress} cannot be read ({error}); remove it, and the run goes on from its checkpoints"
            ) from error

    def record_progress(self, progress: RunProgress) -> None:
        """Write the progress of the run."""
        write_atomically(self._progress, json.dumps(asdict(progress)) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never half of it.

    Raises:
        NotWritable: the disk is full, or the folder is read-only; the old text stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BadData(f"{path} does not hold a manifest")
    return found


def _essence(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what identifies a game: its data, rewards, trainer, model and stages, not its length, its size, what
    it exports, or where it runs and generates. A revision of the model may be named later: the checkpoint knows its
    files.
    """
    spec = manifest.get("spec", {})
    game = {
        key: value
        for key, value in spec.get("game", {}).items()
        if key not in {"maxRounds", "evaluation", "progression"}
    }
    trainer = game.get("trainer")
    if isinstance(trainer, Mapping) and isinstance(trainer.get("with"), Mapping):
        left_out = {"sharding"} if trainer.get("use") == "grpo" else set()
        if is_vllm(trainer["with"].get("sampler")):
            left_out.add("sampler")
        kept = {key: value for key, value in trainer["with"].items() if key not in left_out}
        game["trainer"] = {**trainer, "with": kept}
    model = spec.get("model")
    if isinstance(model, Mapping):
        model = {key: value for key, value in model.items() if key not in ("export", "revision")}
    return {"game": game, "model": model}


def _differences(before: Any, now: Any, path: str = "spec") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}")
    elif before != now:
        yield f"{path} was {before!r} and is {now!r}"
