"""Experiment trackers: what each library reads back, and what a failing one does to a game."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_game import Scripted, manager

from swarmgame import ComponentContext
from swarmgame.config import Config
from swarmgame.errors import InvalidManifest
from swarmgame.game.manager import Progression
from swarmgame.game.report import Observer
from swarmgame.game.state import Sampling
from swarmgame.observability.tracker import Tracker
from swarmgame.observability.trackers.tensorboard import TensorBoardTracker
from swarmgame.report.tables import option_rows
from swarmgame.runtime.assembly import check, resolved_data
from swarmgame.runtime.observers import make_trackers
from swarmgame_api import loads_manifest

SUPPORT = Path(__file__).parents[2] / "support"
GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: sums}
spec:
  game:
    maxRounds: 4
    data: {use: "toys:ToyData"}
    rewards: {use: "toys:ToyRewards"}
    trainer: {use: "toys:ToyTrainer"}
  observability:
    trackers: [TRACKER]
"""
PROGRESSION = Progression(max_rounds=4, evaluate_every=2, evaluation_questions=6, evaluation_sampling=Sampling(4))
PLAY = """
import json, os, sys, time
from pathlib import Path
from scripted_game import Scripted, manager
from swarmgame.game.manager import Progression
from swarmgame.game.state import Sampling
from swarmgame.runtime.assembly import check
from swarmgame.runtime.observers import make_trackers
from swarmgame_api import loads_manifest
manifest, folder, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
progression = Progression(max_rounds=4, evaluate_every=2, evaluation_questions=6, evaluation_sampling=Sampling(4))
for _ in range(times):
    second = int(time.time())
    if (child := os.fork()) != 0:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            sys.exit(code)
        while int(time.time()) == second:  # wandb names a folder by the second in which a run began
            time.sleep(0.05)
        continue
    game = loads_manifest(manifest)
    trackers = make_trackers(game, check(game, folder), "sums", 3, folder / "peer")
    played, seen, _ = manager(Scripted(), progression)
    played.observers += trackers
    played.run()
    print(json.dumps([report.as_json() for report in seen.reports]))
    break
"""


class Recorder(Tracker):
    """Keeps what it is given."""

    Config = Config

    def __init__(self, context: ComponentContext | None = None, fails_at: int = -1) -> None:
        super().__init__(Config(), context or ComponentContext())
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.fails_at = fails_at
        self.opened = self.closed = 0

    def open(self, first_round: int) -> None:
        self.opened += 1

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("no space left")
        self.logged.append((step, dict(values)))

    def close_run(self) -> None:
        self.closed += 1


def play(*trackers: Observer, first_round: int | None = None) -> list[dict[str, Any]]:
    game, seen, _ = manager(Scripted(), PROGRESSION)
    game.observers += trackers
    game.run(first_round)
    return [report.as_json() for report in seen.reports]


def in_a_process(tracker: str, folder: Path, times: int = 1, **environment: str) -> list[dict[str, Any]]:
    """Play a game with a tracker, each time in a process of its own: these libraries keep state of a process. The
    processes are forks of one that has imported everything else. Return the reports of the first.
    """
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PLAY, GAME.replace("TRACKER", tracker), str(folder), str(times)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert len(others) == times - 1
    return json.loads(first)  # type: ignore[no-any-return]


def test_an_evaluation_stands_at_the_number_of_rounds_before_it() -> None:
    recorder = Recorder()
    reports = play(recorder)
    assert [(step, "reward/mean" in values, "held_out/all" in values) for step, values in recorder.logged] == [
        (0, False, True),
        (1, True, False),
        (2, True, False),
        (2, False, True),
        (3, True, False),
        (4, True, False),
        (4, False, True),
    ]
    first, last = recorder.logged[0][1], recorder.logged[-1][1]
    assert first["held_out/all"] == reports[0]["first_evaluation"]["average"]["all"]
    assert first["held_out_sampled/pass_at_4"] == reports[0]["first_evaluation"]["sampled"]["pass_at"]["4"]
    assert last["held_out_error/all"] == reports[3]["evaluation"]["errors"]["all"]
    assert recorder.logged[1][1]["trainer/groups_trained"] == reports[0]["metrics"]["groups_trained"]
    assert (recorder.opened, recorder.closed) == (1, 1)


def test_a_tracker_that_fails_is_off_with_one_warning_and_the_game_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    failing, healthy = Recorder(fails_at=2), Recorder()
    with caplog.at_level(logging.WARNING):
        assert len(play(failing, healthy)) == 4
    assert [step for step, _ in failing.logged] == [0, 1]
    assert len(healthy.logged) == 7
    [record] = [each for each in caplog.records if "Recorder failed" in each.message]
    assert "OSError: no space left" in record.message
    assert "metrics.jsonl" in record.message


def test_tensorboard_reads_back_every_number_and_hides_rounds_that_are_played_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    context = ComponentContext(directory=tmp_path, name="sums", manifest={"spec": {"game": {"seed": 7}}})
    for first_round in (None, 2):
        tracker = TensorBoardTracker(TensorBoardTracker.Config(), context)
        reports = play(tracker, first_round=first_round)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rewards = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert [step for step, _ in rewards] == [1, 2, 3, 4]
    assert [value for _, value in rewards[2:]] == pytest.approx([report["reward"] for report in reports], abs=1e-6)
    assert [event.step for event in events.Scalars("held_out/all")] == [0, 2, 4]
    assert "seed: 7" in events.Tensors("manifest/text_summary")[0].tensor_proto.string_val[0].decode()


def test_rounds_that_were_logged_before_a_crash_are_not_logged_again(tmp_path: Path) -> None:
    context = ComponentContext(directory=tmp_path)
    # Round 2 is logged in part: the process ends in it, and the checkpoint is of round 1.
    first, other = Recorder(context, fails_at=3), Recorder(context)
    play(first)
    again = Recorder(context)
    play(again, first_round=1)
    assert [step for step, _ in first.logged] == [0, 1, 2, 2]
    assert [step for step, _ in again.logged] == [3, 4, 4]
    assert first.run_key() == again.run_key()
    # Without a checkpoint the game begins again, and this tracker has everything.
    play(other)
    assert other.logged == []


def test_tensorboard_writes_where_it_is_told(tmp_path: Path) -> None:
    context = ComponentContext(directory=tmp_path / "peer", name="sums", index=3)
    play(TensorBoardTracker(TensorBoardTracker.Config(directory=str(tmp_path / "logs")), context))
    assert list((tmp_path / "logs" / "sums" / "peer-3").glob("events.out.tfevents.*"))


def test_wandb_keeps_every_number_offline_in_one_run_after_a_resume(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    reports = in_a_process("{use: wandb, with: {mode: offline, project: p, tags: [a]}}", tmp_path, times=2)
    files = sorted((tmp_path / "peer" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # the id of the run is in the name
    records = []
    for data in wandb_records(files[0].read_bytes()):
        record = Record()
        record.ParseFromString(data)
        records.append(record)
    [run] = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.run_group, run.display_name) == ("p", "sums", "sums-peer-3")
    config = {entry.key: json.loads(entry.value_json) for entry in run.config.update}
    assert config["spec"]["game"]["maxRounds"] == 4
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    rewards = [(row["round"], row["reward/mean"]) for row in rows if "reward/mean" in row]
    assert rewards == [(report["round"] + 1, pytest.approx(report["reward"])) for report in reports]
    assert [row["round"] for row in rows if "held_out/all" in row] == [0, 2, 4]


def test_wandb_without_a_key_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    environment = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    with pytest.raises(AssertionError, match=r"InvalidManifest.*WANDB_API_KEY.*mode: offline"):
        in_a_process("{use: wandb, with: {mode: online}}", tmp_path, **environment)


def test_trackio_keeps_every_number_in_a_local_database(tmp_path: Path) -> None:
    reports = in_a_process("{use: trackio, with: {directory: ../track}}", tmp_path)
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as S; [run] = S.get_runs('sums'); "
        "print(json.dumps([run, S.get_logs('sums', run), S.get_run_config('sums', run)]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "track")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    run, logs, config = json.loads(done.stdout)
    assert run.startswith("sums-peer-3-")
    assert config["spec"]["game"]["maxRounds"] == 4
    rewards = [(row["step"], row["reward/mean"]) for row in logs if "reward/mean" in row]
    assert rewards == [(report["round"] + 1, pytest.approx(report["reward"])) for report in reports]
    assert [row["step"] for row in logs if "held_out/all" in row] == [0, 2, 4]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_not_installed_is_one_sentence_with_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.setattr("swarmgame.observability.tracker.find_spec", lambda package: None)
    with pytest.raises(InvalidManifest, match=rf"trackers\[0\].use.*pip install 'swarmgame\[{name}\]'"):
        check(loads_manifest(GAME.replace("TRACKER", f"{{use: {name}}}")), tmp_path)


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("{use: tensorbord}", r"trackers\[0\].use is \"tensorbord\".*did you mean \"tensorboard\""),
        ("{use: wandb, with: {mode: of-line}}", r"trackers\[0\].with.mode"),
        ("{use: 'toys:ToyData'}", r"trackers\[0\].use.*Tracker"),
    ],
    ids=["unknown name", "unknown value", "not a tracker"],
)
def test_a_wrong_tracker_is_found_before_anything_starts(
    tracker: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))
    with pytest.raises(InvalidManifest, match=message):
        check(loads_manifest(GAME.replace("TRACKER", tracker)), tmp_path)


def test_a_tracker_knows_the_run_and_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))
    game = loads_manifest(GAME.replace("TRACKER", "{use: tensorboard}"))
    resolved = check(game, tmp_path)
    [tracker] = make_trackers(game, resolved, "first", 2, tmp_path)
    assert (tracker.context.name, tracker.context.index, tracker.directory) == ("first", 2, tmp_path)
    options = resolved_data(game, resolved)
    options["spec"]["peers"] = {
        key: value for key, value in options["spec"]["peers"].items() if key not in ("env", "podTemplate")
    }
    assert tracker.context.manifest == options
    assert tracker.context.manifest["spec"]["observability"]["trackers"][0]["with"] == {"directory": ""}
    assert tracker.context.manifest["spec"]["game"]["data"]["with"] == {"questions": 3, "shared": False}


def test_variables_of_the_pods_reach_no_tracker_and_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))
    peers = "  peers: {env: [{name: TOKEN, value: hunter2}]}"
    game = loads_manifest(GAME.replace("TRACKER", "{use: tensorboard}") + peers)
    resolved = check(game, tmp_path)
    [tracker] = make_trackers(game, resolved, "first", 2, tmp_path)
    assert "hunter2" not in json.dumps(tracker.context.manifest)
    rows = dict(option_rows(resolved_data(game, resolved)))
    assert (rows["peers.env[0].name"], rows["peers.env[0].value"]) == ("TOKEN", "(hidden)")


def test_a_run_keeps_its_key_and_a_fresh_one_gets_another(tmp_path: Path) -> None:
    first, again, fresh = (
        Recorder(ComponentContext(directory=tmp_path / folder)).run_key() for folder in ("a", "a", "b")
    )
    assert first == again != fresh


def test_the_manifests_and_names_of_the_guide_are_right() -> None:
    guide = (Path(__file__).parents[4] / "docs/guide/trackers.md").read_text(encoding="utf-8")
    fragments = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(fragments) == 2
    for fragment in fragments:
        manifest = yaml.safe_load(GAME.replace("[TRACKER]", "[]"))
        manifest["spec"] |= yaml.safe_load(fragment)["spec"]
        assert loads_manifest(yaml.safe_dump(manifest)).spec.observability.trackers
    recorder = Recorder()
    play(recorder)
    groups = {name.split("/")[0] for _, values in recorder.logged for name in values if "/" in name}
    assert groups <= set(re.findall(r"`([a-z_]+)/", guide))
    assert set(re.findall(r"^\| `([a-z]+)` \| `pip", guide, re.MULTILINE)) == {"tensorboard", "wandb", "trackio"}


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file: a LevelDB log (blocks of 32 KiB) after seven bytes of header."""
    block, head = 32_768, struct.Struct("<IHB")
    position, parts = 7, b""
    while position + head.size <= len(data):
        left = block - position % block
        if left < head.size:
            position += left
            continue
        _, length, kind = head.unpack_from(data, position)
        if kind == 0:
            return
        position += head.size
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # complete, or the last of several parts
            yield parts
            parts = b""
