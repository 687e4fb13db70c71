"""Print the exact requirements of extras of pyproject.toml, which an image installs before the code.

`requirements.py worker,chain` prints all of them, `--only torch` only this one. A layer made from this output is
rebuilt when the output changes, not with every change of pyproject.toml.
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
    requirements = set(project["dependencies"])
    for extra in arguments.extras.split(","):
        requirements |= set(project["optional-dependencies"][extra])
    for line in sorted(requirements):
        name = re.split(r"[^A-Za-z0-9_.-]", line)[0]
        if arguments.only in ("", name):
            print(f"{name}=={exact[name]}" if name in exact else line)


if __name__ == "__main__":
    main()
