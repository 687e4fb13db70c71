"""Every example runs, and learns: the numbered folders are documentation that cannot go stale."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import TOKEN, hub_stand_in
from running import EXAMPLES, ROOT, environment, metrics, run_to_end
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(600)


def rise(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["rise"])


def test_every_example_has_a_test() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == [
        "01-quickstart",
        "02-multistage-math",
        "03-digits",
    ]


def test_the_quickstart_plays_and_shares(tmp_path: Path) -> None:
    """CI runs the complete example, with its rise and its control, as the demo."""
    done = run_to_end("run", EXAMPLES / "01-quickstart" / "game.yaml", "--rounds=4", "--runs", tmp_path)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert sum(len(row["external"]) for index in range(4) for row in metrics(tmp_path / "quickstart", index)) > 0
    assert (tmp_path / "quickstart" / "report.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def exported_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `demo` and `quickstart` of two peers, with adapters, evaluations and exports."""
    folder = tmp_path_factory.mktemp("exporting")
    game = EXAMPLES / "01-quickstart" / "game.yaml"
    settings = {
        "game.evaluation.everyRounds": "2",
        "game.evaluation.questions": "4",
        "game.trainer.with.lora.rank": "4",
        "model.export.everyRounds": "2",
        "storage.checkpoints.everyRounds": "2",
    }
    changes = [f"--set={path}={value}" for path, value in settings.items()]
    run_to_end(
        "run", game, "--rounds=6", "--peers=2", *changes, "--runs", folder / "runs", "--name=demo", "--no-report"
    )
    shutil.copytree(folder / "runs" / "demo", folder / "runs" / "quickstart")
    return folder / "runs"


@pytest.fixture
def exporting(exported_runs: Path, tmp_path: Path) -> Path:
    """A folder whose `runs` are those."""
    (tmp_path / "runs").symlink_to(exported_runs)
    return tmp_path


def commands_of(page: Path, start: str) -> list[str]:
    """Return the commands of a page's sh blocks, and in its tables, that begin with a text; without remarks."""
    text = page.read_text()
    found = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found += re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    return [re.sub(r"\s{2,}#.*", "", line) for line in found if line.startswith(start)]


def in_folder(folder: Path, *arguments: str, **variables: str) -> str:
    """Run a Python module or code in a folder, as a reader of the guide would; return its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment(), **variables},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readmes_model_is_exported_and_answers_through_a_pipeline(exporting: Path) -> None:
    (export,) = commands_of(ROOT / "README.md", ".venv/bin/swarmgame export")
    assert in_folder(exporting, "-m", "swarmgame", *shlex.split(export)[1:]) == "my-model\n"
    (answer,) = commands_of(ROOT / "README.md", ".venv/bin/python -c")
    assert "generated_text" in in_folder(exporting, *shlex.split(answer)[1:])


def test_peers_export_during_the_game_what_the_command_exports_afterwards(exporting: Path) -> None:
    run = exporting / "runs" / "demo"
    for index in range(2):
        exports = run / "peers" / str(index) / "exports"
        assert [path.name for path in sorted(exports.iterdir())] == ["round-00000004", "round-00000006"]
    by_peer = load_file(run / "peers" / "1" / "exports" / "round-00000006" / "model.safetensors")
    in_folder(exporting, "-m", "swarmgame", "export", "demo", "again", "--peer=1")
    by_command = load_file(exporting / "again" / "model.safetensors")
    assert by_peer.keys() == by_command.keys()
    assert all(torch.equal(by_peer[name], by_command[name]) for name in by_peer)


def test_every_command_and_the_code_of_the_guide_to_exports_runs(exporting: Path) -> None:
    page = ROOT / "docs" / "guide" / "export.md"
    with hub_stand_in() as hub:
        for line in commands_of(page, "swarmgame export quickstart"):
            in_folder(exporting, "-m", "swarmgame", *shlex.split(line)[1:], HF_TOKEN=TOKEN, HF_ENDPOINT=hub.address)
        assert "model.safetensors" in hub.models["me/my-model"]["files"]
    chosen = {name: json.loads((exporting / name / "swarmgame.json").read_text()) for name in "abcde"}
    assert [(each["peer"], each["rounds"]) for each in (chosen["a"], chosen["b"], chosen["e"])] == [
        (0, 6),
        (1, 6),
        (1, 4),
    ]
    rows = {index: metrics(exporting / "runs" / "demo", index) for index in range(2)}
    best = {
        index: max(row["evaluation"]["average"]["all"] for row in rows[index] if row["evaluation"]) for index in rows
    }
    reward = {name: rows[c["peer"]][c["rounds"] - 1]["evaluation"]["average"]["all"] for name, c in chosen.items()}
    assert reward["c"] == max(best.values())
    assert (chosen["d"]["peer"], reward["d"]) == (1, best[1])
    fetched = exporting / "sums-run"  # as from a cluster: game.yaml and the peers' folders, no more
    shutil.copytree(exporting / "runs" / "demo" / "peers", fetched / "peers")
    shutil.copy(exporting / "runs" / "demo" / "game.yaml", fetched)
    (line,) = commands_of(page, "swarmgame export sums-run")
    in_folder(exporting, "-m", "swarmgame", *shlex.split(line)[1:])
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert "generated_text" in in_folder(exporting, "-c", code)


def test_the_multistage_game_learns_in_three_stages(tmp_path: Path) -> None:
    run_to_end("run", EXAMPLES / "02-multistage-math" / "game.yaml", "--runs", tmp_path)
    run = tmp_path / "multistage-math"
    assert rise(run) > 0.1
    assert all(len(row["stage_rewards"]) == 3 for row in metrics(run, 0))
    assert list((run / "plots").glob("*.png"))


def test_digits_are_learned_without_a_language_model(tmp_path: Path) -> None:
    run_to_end("run", EXAMPLES / "03-digits" / "game.yaml", "--runs", tmp_path)
    run = tmp_path / "digits"
    assert rise(run) > 0.3
    assert sum(len(row["external"]) for row in metrics(run, 0)) > 10


def test_the_game_in_the_readme_plays(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code, manifest = (re.search(rf"```{kind}\n(.*?)```", readme, re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None
    assert manifest is not None
    (tmp_path / "sums.py").write_text(code.group(1))
    (tmp_path / "game.yaml").write_text(manifest.group(1))
    run_to_end("run", tmp_path / "game.yaml", "--rounds=2", "--peers=2", "--runs", tmp_path / "runs", "--no-report")
    assert [row["round"] for row in metrics(tmp_path / "runs" / "sums", 1)] == [0, 1]


def test_two_ranks_a_peer_play_the_same_game(tmp_path: Path) -> None:
    game = EXAMPLES / "03-digits" / "game.yaml"
    run_to_end("run", game, "--rounds=5", "--peers=2", "--processes-per-peer=2", "--runs", tmp_path, "--no-report")
    for index in range(2):
        rows = metrics(tmp_path / "digits", index)
        assert [row["round"] for row in rows] == list(range(5))
        assert all(row["policy_version"] == row["round"] + 1 for row in rows)
