"""A separate environment for GenRL: `gensyn-genrl` 0.3.0 as published, with its versions, outside the checkout.

GenRL and SwarmGame need different versions of shared libraries. GenRL's code is unchanged: `exports.py` adds the name
that hivemind 1.1.12 no longer exports. The folder's name has the hash of `requirements.txt`. Invariant: a folder with
the `complete` mark was installed from exactly these requirements.

`python benchmarks/genrl/environment.py` makes the environment ahead of time, and prints the path of its Python.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSTALL_SECONDS = 1800


def environment() -> Path:
    """Return the Python of the environment, which is made first if it is missing.

    Raises:
        SystemExit: the requirements could not be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swarmgame"
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + f"{sys.version_info[:2]}".encode()).hexdigest()[:12]
    folder = cache / f"genrl-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing GenRL 0.3.0 in {folder} (several gigabytes, once)", file=sys.stderr)
        _install(folder, python)
        (folder / "complete").touch()
    return python


def _install(folder: Path, python: Path) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    venv.create(folder, with_pip=uv is None)
    installer = (
        [uv, "pip", "install", "--quiet", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install", "--quiet"]
    )
    finished = subprocess.run([*installer, "--no-deps", "-r", str(REQUIREMENTS)], timeout=INSTALL_SECONDS, check=False)
    if finished.returncode:
        raise SystemExit(
            f"GenRL's environment could not be installed in {folder}: the installer ended with {finished.returncode}"
        )


if __name__ == "__main__":
    print(environment())
