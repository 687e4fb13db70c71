"""A whole game whose peers generate with a server each: started by the peers, killed, started again, and gone with the
run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from running import ROOT, kill, metrics, run_to_end, running, wait_until

pytestmark = pytest.mark.timeout(600)

STAND_IN = ROOT / "worker/tests/support/vllm_stand_in.py"
GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: served}
spec:
  game:
    maxRounds: 4
    data:
      use: reasoning-gym
      with:
        environments: [{name: spell_backward, config: {min_word_len: 3, max_word_len: 4}}]
        questionsPerRound: 2
    rewards: {use: reasoning-gym}
    trainer:
      use: grpo
      with: {generations: 4, maxNewTokens: 6, maxPromptTokens: 200, beta: 0.01, sampler: %s}
    sharing: {externalGroups: 2}
    progression: {quorum: "100%%", stageDeadlineSeconds: 300}
  model: {uri: "builtin://tiny?accuracy=0&layers=1&hidden=32"}
  peers: {replicas: 2}
  storage: {checkpoints: {everyRounds: 1}}
"""


def game(folder: Path, **sampler: object) -> Path:
    path = [str(ROOT / name) for name in ("crds", "contracts", "worker")]
    command = ["env", f"PYTHONPATH={os.pathsep.join(path)}", sys.executable, str(STAND_IN)]
    (folder / "game.yaml").write_text(GAME % json.dumps({"engine": "vllm", "command": command, **sampler}))
    return folder / "game.yaml"


def servers(run: Path, index: int | None = None) -> list[int]:
    """The stand-ins that serve a run's models on this machine; with an index, that of one peer, told by the log that
    it writes.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            log = os.readlink(entry / "fd" / "1")
        except OSError:
            continue
        if arguments[1:2] == [str(STAND_IN).encode()] and log.startswith(
            f"{run}/peers/{'' if index is None else f'{index}/'}"
        ):
            found.append(int(entry.name))
    return found


def test_a_game_is_played_with_a_server_for_every_peer_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    run = tmp_path / "served"
    run_to_end("run", game(tmp_path), "--runs", tmp_path, "--no-report")
    for index in range(2):
        rows = metrics(run, index)
        assert [row["round"] for row in rows] == [0, 1, 2, 3]
        for row in rows:
            assert row["metrics"]["engine_requests"] == 2
            assert row["metrics"]["engine_retries"] == row["metrics"]["engine_stale"] == 0
            assert row["metrics"]["mismatch_kl"] < 1e-5
            assert row["policy_version"] == row["round"] + 1
        assert rows[-1]["metrics"]["engine_pushes"] == 1
        assert "stand-in for vLLM" in (run / "peers" / str(index) / "vllm.log").read_text()
    assert servers(run) == []


def test_a_killed_server_is_started_again_with_the_weights_and_the_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "served"
    with running("run", game(tmp_path), "--rounds=1000000", "--runs", tmp_path, "--no-report") as runner:
        wait_until(lambda: min(len(metrics(run, index)) for index in range(2)) >= 2, "both have played", runner)
        [victim] = servers(run, 0)
        kill(victim)
        before = len(metrics(run, 0))
        wait_until(lambda: len(metrics(run, 0)) >= before + 4, "the peer plays on", runner)
        rows = metrics(run, 0)
        assert [row["round"] for row in rows] == list(range(len(rows)))
        # Each round needs one push. One more shows that the new process got the weights that the old one had; a kill
        # during the training saves it.
        _, again, log = (run / "peers/0/log.jsonl").read_text().partition("starting it again")
        assert again
        assert "pushed policy-" in log
        assert sum(row["metrics"]["engine_pushes"] for row in rows) >= len(rows)
        assert all(row["metrics"]["mismatch_kl"] < 1e-5 for row in rows)
        assert "resuming" not in (run / "peers/0/log.jsonl").read_text()
        [successor] = servers(run, 0)
        assert successor != victim
        pids = servers(run)
    wait_until(lambda: servers(run) == [], f"no server outlives the run, of {pids}", None)


def test_without_vllm_the_run_ends_with_78_and_writes_nothing(tmp_path: Path) -> None:
    done = run_to_end("run", game(tmp_path, command=["no-such-vllm"]), "--runs", tmp_path, expect=78)
    assert 'spec.game.trainer.with.sampler.command is ["no-such-vllm"]; expected a program on PATH' in done.stderr
    assert "uv tool install vllm" in done.stderr
    assert not (tmp_path / "served").exists()
