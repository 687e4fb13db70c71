"""Prints what an image installs before it knows the code: the exact requirements of some extras of pyproject.toml.

`requirements.py worker,chain` prints all of them, `--only torch` just the one. A layer that is made from this output is
built again only when the output changes, not with every change of pyproject.toml.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("extras")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    exact = dict(line.split("==") for line in Path("constraints.txt").read_text().split())
    wanted = set(project["dependencies"])
    for extra in arguments.extras.split(","):
        wanted |= set(project["optional-dependencies"][extra])
    for line in sorted(wanted):
        name = re.split(r"[^A-Za-z0-9_.-]", line)[0]
        if arguments.only in ("", name):
            print(f"{name}=={exact[name]}" if name in exact else line)


if __name__ == "__main__":
    main()
