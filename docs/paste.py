"""Paste the output of a run into README.md, between the marks: `python docs/paste.py runs/demo` after `make demo`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def rows_of(run: Path, index: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "peers" / str(index) / "metrics.jsonl").read_text().splitlines()]


def main(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    peers = [rows_of(run, index) for index in range(summary["peers"])]
    every = max(1, summary["rounds"] // 8)
    lines = [f"{'round':>6} {'reward':>7}   mean over {summary['peers']} peers and {every} rounds"]
    for start in range(0, summary["rounds"] - every + 1, every):
        rewards = [float(str(row["reward"])) for rows in peers for row in rows[start : start + every]]
        mean = sum(rewards) / len(rewards)
        lines.append(f"{start:>6} {mean:>7.3f}   {'█' * round(40 * mean)}")
    window, first, last = summary["window"], summary["first10"], summary["last10"]
    held_out = summary["held_out"]["total"]
    lines.append(
        f"held-out questions: {held_out['first']:.3f} before training, {held_out['last']:.3f} after, "
        f"change {held_out['difference']:+.3f} ± {held_out['error']:.3f} (standard error)"
    )
    ends = f"first {window} rounds {first:.3f}, last {window} rounds {last:.3f}"
    lines.append(f"training reward: {ends}, rise {summary['rise']:+.3f}")
    cost = f"{summary['rounds']} rounds in {summary['seconds']:.0f} s, {summary['tokens']:,} tokens"
    lines.append(f"{cost}, {summary['external']:,} external groups trained on")
    image = ROOT / "docs" / "images" / "quickstart.png"
    image.parent.mkdir(exist_ok=True)
    shutil.copyfile(run / "plots" / "reward.png", image)
    pasted = "\n".join(
        [BEGIN, "```text", *lines, "```", "", "![mean reward by round](docs/images/quickstart.png)", END]
    )
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    readme.write_text(head + pasted + rest.split(END)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
