"""Seconds of a round with `trainer.with.overlap` and without, in one run, the arms in turn.

Two peers, processes of one thread each, play the quickstart with completions of 48 tokens over hivemind by `swarmgame
run`. There are two games: `judged` waits 0.1 s in each call of its rewards, as for a remote judge; `plain` waits only
for the other peer, and shows the cost of overlap. A round's seconds are its slowest peer's; the first rounds of each
run are dropped. Claims: a judged round is at least 1.05 times as fast with overlap (generation is about a tenth of
it); a plain round is at most 5 % slower.
Run as `python benchmarks/overlap.py`; `--smoke` is quick and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness import SMOKE_SETTINGS, claim, machine, publish, summary

HERE = Path(__file__).parent
GAME = HERE.parent / "examples" / "01-quickstart" / "game.yaml"
PEERS, TOKENS, DROPPED = 2, 48, 4
SMOKE_PEERS, SMOKE_TOKENS, SMOKE_DROPPED = 1, 4, 1
JUDGE_SECONDS = 0.1
GAMES = {
    "judged": ("game.rewards.use=judge:JudgedRewards", f"game.rewards.with.seconds={JUDGE_SECONDS}"),
    "plain": (),
}
ARMS = {"without": False, "with": True}
PARTS = ("data", "generate", "exchange", "listen", "rewards", "train")


def play(game: str, overlap: bool, rounds: int, folder: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """Play one run; return, for each round that counts, the slowest peer's seconds and the lag of its rollouts."""
    peers, tokens, dropped = (SMOKE_PEERS, SMOKE_TOKENS, SMOKE_DROPPED) if smoke else (PEERS, TOKENS, DROPPED)
    settings = [
        f"game.trainer.with.maxNewTokens={tokens}",
        f"game.trainer.with.minNewTokens={tokens}",
        f"game.trainer.with.overlap={str(overlap).lower()}",
        "game.progression.quorum=100%",
        *GAMES[game],
        *(SMOKE_SETTINGS if smoke else ()),
    ]
    command = [
        sys.executable,
        "-m",
        "swarmgame",
        "run",
        str(GAME),
        f"--peers={peers}",
        f"--rounds={rounds + dropped}",
        "--no-report",
    ]
    command += [f"--set={setting}" for setting in settings] + ["--runs", str(folder), "--name", "run", "--fresh"]
    paths = [str(HERE / "swarm"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    if ran.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
        )
    metrics = [
        [json.loads(line) for line in (folder / f"run/peers/{peer}/metrics.jsonl").read_text().splitlines()]
        for peer in range(peers)
    ]
    played = list(zip(*metrics, strict=True))[dropped:]
    return [
        {
            "seconds": {part: max(row["seconds"].get(part, 0.0) for row in rows) for part in ("round", *PARTS)},
            "lag": statistics.mean(row["metrics"].get("policy_lag", 0.0) for row in rows),
            "reward": statistics.mean(row["reward"] for row in rows),
        }
        for rows in played
    ]


def figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": summary([row["seconds"]["round"] for row in rounds]),
        "parts": {part: round(statistics.median(row["seconds"][part] for row in rounds), 4) for part in PARTS},
        "lag": round(statistics.mean(row["lag"] for row in rounds), 3),
        "reward": round(statistics.mean(row["reward"] for row in rounds), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one peer, two short rounds an arm, nothing written")
    parser.add_argument("--repeats", type=int, default=4, help="runs of each arm and game")
    parser.add_argument("--rounds", type=int, default=24, help="rounds of a run that count")
    given = parser.parse_args()
    games, repeats, rounds = (["judged"], 1, 1) if given.smoke else (list(GAMES), given.repeats, given.rounds)
    began = machine()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {game: defaultdict(list) for game in games}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for game in games:
                for arm, overlap in ARMS.items():
                    found[game][arm] += play(game, overlap, rounds, Path(folder), smoke=given.smoke)
    measured = {game: {arm: figures(rows) for arm, rows in arms.items()} for game, arms in found.items()}
    ratios = {
        game: arms["without"]["seconds"]["median"] / arms["with"]["seconds"]["median"]
        for game, arms in measured.items()
    }
    claims = [claim("a judged round: times as fast with overlap", ratios["judged"], at_least=1.05)]
    if "plain" in ratios:
        claims.append(claim("a plain round: times as fast with overlap", ratios["plain"], at_least=0.95))
    peers, tokens = (SMOKE_PEERS, SMOKE_TOKENS) if given.smoke else (PEERS, TOKENS)
    shape = {"peers": peers, "new_tokens": tokens, "judge_seconds": JUDGE_SECONDS, "threads": 1}
    publish("overlap", {"claims": claims, "shape": shape, "games": measured}, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
