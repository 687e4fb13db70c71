"""Slither over the contract, in an environment of its own: it pins an older web3 than the one that the tests use.

`python contracts/slither.py` makes the environment once (under ~/.cache/swarmgame) and fails on any finding of medium
impact or more.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = ("slither-analyzer==0.11.6",)


def environment() -> Path:
    """The environment's folder; made when it is not there."""
    name = hashlib.sha256(f"{sys.version_info[:2]} {REQUIREMENTS}".encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "swarmgame" / f"slither-{name}"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (folder / ".ready").touch()
    return folder


def main() -> int:
    folder = environment()
    path = os.pathsep.join((str(HERE / "node_modules" / ".bin"), str(folder / "bin"), os.environ["PATH"]))
    command = [
        folder / "bin" / "slither",
        ".",
        "--filter-paths",
        "node_modules|test",
        "--fail-medium",
        "--foundry-out-directory",
        "out",
    ]
    return subprocess.run(command, cwd=HERE, env=os.environ | {"PATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
