"""Sizes of the project's images, and of the layers that a change of the code rebuilds: those from the first COPY on.

Builds missing images (as `make cluster-load` does), then reads the sizes from the engine. There is no claim: PyTorch
and CUDA determine the worker's size.

    python benchmarks/image_sizes.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hack" / "native-cluster"))

from harness import machine, publish

from native_cluster import docker


def sizes(image: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return uncompressed bytes of the image, and of the layers that a change of the code rebuilds."""
    command = [
        docker.client(),
        "history",
        "--no-trunc",
        "--human=false",
        "--format",
        "{{.Size}}\t{{.CreatedBy}}",
        image,
    ]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    layers = [(int(size), made_by) for size, _, made_by in (line.partition("\t") for line in lines)]
    code = 0
    for size, made_by in layers:  # the newest first
        code += size
        if "COPY pyproject.toml README.md" in made_by:
            break
    else:
        code = 0  # the image has no Python code of the project
    return {"image": image, "bytes": sum(size for size, _ in layers), "code_bytes": code}


def main() -> None:
    began = machine()
    with docker.engine() as found:
        environment = os.environ | found
        docker.build(list(docker.IMAGES), found)
        images = {name: sizes(image, environment) for name, image in docker.IMAGES.items()}
    publish("image_sizes", {"claims": [], "images": images}, began=began)


if __name__ == "__main__":
    main()
