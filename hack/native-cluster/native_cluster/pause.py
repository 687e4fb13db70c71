"""Make the image of a pod's first process from a static program, without Docker.

The format is that of `docker save`, which containerd imports.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from native_cluster.node import PAUSE
from native_cluster.tools import tool


def write_archive(path: Path) -> Path:
    """Write the image; the bytes are the same every time."""
    layer = _tar({"pause": (tool("pause").read_bytes(), 0o755)})
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(configuration).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]).encode()
    path.write_bytes(
        _tar({name: (configuration, 0o644), "layer.tar": (layer, 0o644), "manifest.json": (manifest, 0o644)})
    )
    return path


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
