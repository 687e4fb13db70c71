"""Check that a run of an example learned: `python examples/check.py runs/demo [--control]`.

Prints the held-out rewards before and after training with their standard errors. Exit code 0 when the change is at
least what the example should reach; with `--control`, when it is below that or within two standard errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

LEAST = {"quickstart": 0.03, "numerals": 0.1, "roles": 0.1, "kings-walk": 0.2, "adapters": 0.03}
"""Least change of the held-out reward, by the game's name."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--control", action="store_true", help="expect no change: the rewards were shuffled")
    options = parser.parse_args()
    summary = json.loads((options.run / "summary.json").read_text())
    least = LEAST[yaml.safe_load((options.run / "game.yaml").read_text())["metadata"]["name"]]
    held_out = summary["held_out"]["total"]
    risen = max(least, 2 * held_out["error"]) if options.control else least
    good = (held_out["difference"] < risen) if options.control else held_out["difference"] >= risen
    print(
        f"{options.run}: held-out {held_out['first']:.3f} → {held_out['last']:.3f}, change "
        f"{held_out['difference']:+.3f} ± {held_out['error']:.3f} (standard error; at least {risen:.3f} is learned), "
        f"{summary['rounds']} rounds in {summary['seconds']:.0f} s: {'as' if good else 'NOT as'} expected"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
