"""What a person sees when a run ends too early: one sentence with the cause, the place and the log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from running import run_to_end

pytestmark = pytest.mark.timeout(600)

JOIN = ("one more peer joins", "  swarmgame join ")
GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: broken}
spec:
  game:
    maxRounds: 4
    data: {use: images, with: {source: "sklearn://digits", questionsPerRound: 4}}
    rewards: {use: "rewards_of_a_test:Broken"}
    trainer:
      use: policy-gradient
      with: {module: cnn, actions: 10, options: {shape: [1, 8, 8]}, generations: 2}
  peers: {replicas: 1}
  storage: {checkpoints: {everyRounds: 1}}
"""
BROKEN = """
import sys

import swarmgame


class Broken(swarmgame.RewardManager):
    Config = swarmgame.Config

    def rewards(self, state):
        if state.round.number == 1:
            FAULT
        return {key: tuple(float(i) for i, _ in enumerate(group.rollouts)) for key, group in state.groups()}
"""


def write(folder: Path, fault: str) -> Path:
    (folder / "rewards_of_a_test.py").write_text(BROKEN.replace("FAULT", fault))
    (folder / "game.yaml").write_text(GAME)
    return folder / "game.yaml"


@pytest.mark.parametrize(
    ("fault", "error"),
    [('raise ValueError("my reward is broken")', "ValueError: my reward is broken"), ("sys.exit(0)", "SystemExit: 0")],
    ids=["raises", "exits with 0"],
)
def test_a_mistake_in_the_games_code_is_shown_with_its_line_and_not_tried_a_third_time(
    tmp_path: Path, fault: str, error: str
) -> None:
    game = write(tmp_path, fault)
    done = run_to_end("run", game, "--runs", tmp_path / "runs", "--no-report", expect=78)
    peer = tmp_path / "runs" / "broken" / "peers" / "0"
    sentence = f"{error} at {tmp_path / 'rewards_of_a_test.py'}:12, in rewards (in round 1)"
    shown = [line for line in done.stderr.splitlines() if not line.startswith(("preparing", "files:", *JOIN))]
    assert shown.pop(3).startswith("training reward: first round ")
    assert shown == [
        "peer 0 ended with exit code 1; restart 1 of at most 3",
        f"  {sentence}",
        f"  log: {peer / 'output.log'}",
        "peer 0 ended with exit code 78",
        f"  the game's own code fails here each time: {sentence}",
        f"  log: {peer / 'output.log'}",
    ]
    (event,) = [line for line in map(json.loads, done.stdout.splitlines()) if line.get("event") == "peer-ended"]
    assert (event["code"], event["message"], event["failure"]["of_game"]) == (1, sentence, True)
    assert json.loads((peer / "exit.json").read_text())["code"] == 78
    output = (peer / "output.log").read_text()
    assert output.count("Traceback") == 1
    assert not re.search("nanobind|FutureWarning", output)


def test_a_folder_that_becomes_read_only_ends_the_run_with_75_and_one_sentence(tmp_path: Path) -> None:
    game = write(tmp_path, "pass")
    peer = tmp_path / "runs" / "broken" / "peers" / "0"
    peer.mkdir(parents=True)
    (peer / "checkpoints").symlink_to("/sys/kernel")  # no process may create a folder there
    done = run_to_end("run", game, "--runs", tmp_path / "runs", "--no-report", expect=75)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("cannot be written: ") == 1
    assert re.search(r"peer 0 ended with exit code 75\n  \S*checkpoints/\S+ cannot be written: ", done.stderr)
    assert "restart" not in done.stderr
    assert not re.search("nanobind|FutureWarning|Traceback", (peer / "output.log").read_text())
