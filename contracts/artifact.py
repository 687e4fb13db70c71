"""The compiled contract that is shipped, `artifacts/SwarmCoordinator.json`: ABI, creation code and the compiler's
settings.

`python contracts/artifact.py` rebuilds it, `--check` compares it with what the sources give and fails when they
differ. Needs the toolchain (`make toolchain`); users of the artifact do not. Invariant: the file is a function of
`src/`, package-lock.json and foundry.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARTIFACT = HERE / "artifacts" / "SwarmCoordinator.json"
FORGE = HERE / "node_modules" / ".bin" / "forge"


def build() -> str:
    """The artifact's text, from the sources.

    Raises:
        subprocess.CalledProcessError: the sources do not compile.
    """
    environment = os.environ | {"FOUNDRY_PROFILE": "release"}
    subprocess.run([FORGE, "build", "--skip", "test", "--silent"], cwd=HERE, env=environment, check=True)
    built = json.loads((HERE / "out" / "release" / "SwarmCoordinator.sol" / "SwarmCoordinator.json").read_text())
    settings = built["metadata"]["settings"]
    names = ("optimizer", "evmVersion", "viaIR", "metadata")
    artifact = {
        "contract": "SwarmCoordinator",
        "compiler": built["metadata"]["compiler"]["version"],
        "settings": {name: settings[name] for name in names if name in settings},
        "size": len(built["deployedBytecode"]["object"]) // 2 - 1,
        "bytecode": built["bytecode"]["object"],
        "abi": sorted(
            built["abi"], key=lambda entry: (entry["type"], entry.get("name", ""), json.dumps(entry["inputs"]))
        ),
    }
    return json.dumps(artifact, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    text = build()
    if arguments == ["--check"]:
        same = ARTIFACT.exists() and ARTIFACT.read_text() == text
        print(
            "the artifact is what the sources give"
            if same
            else f"{ARTIFACT} differs from the sources; run python {Path(__file__).name}"
        )
        return 0 if same else 1
    if arguments:
        print("expected no argument, or --check", file=sys.stderr)
        return 64
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text(text)
    print(f"{ARTIFACT.relative_to(HERE.parent)}: {json.loads(text)['size']} bytes of code")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
