"""Write an image archive for containerd with only the layers that containerd does not have.

`docker save` writes six gigabytes for a worker of which one megabyte has changed. containerd keeps imported layers
uncompressed, under the hash that Docker calls a diff id, so an image on a known base needs only its top layers, a
configuration and a manifest. The top layers are read from the engine's folders, which needs an engine of this module's
own; their hashes differ from Docker's, their content does not. Invariant: the archive is a valid OCI archive together
with containerd's layers.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"


def write_archive(
    path: Path, image: str, inspected: Mapping[str, Any], configuration: bytes, size_of: Callable[[str], int | None]
) -> bool:
    """Write an OCI archive of an image.

    Args:
        path: to write.
        image: its name.
        inspected: the output of `docker image inspect`.
        configuration: its configuration, as Docker stores it.
        size_of: returns the bytes of a layer in containerd by digest, None when it is missing.

    Returns:
        False if the lowest layer is missing or the engine stores layers in another way; nothing is written then.
    """
    digests: list[str] = inspected["RootFS"]["Layers"]
    folders = _folders(inspected["GraphDriver"])
    known = 0
    while known < len(digests) and size_of(digests[known]) is not None:
        known += 1
    if known == 0 or len(folders) != len(digests):
        return False
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, tarfile.open(path, "w") as archive:
        layers = [{"mediaType": _LAYER, "digest": digest, "size": size_of(digest)} for digest in digests[:known]]
        for folder in folders[known:]:
            written = Path(scratch) / "layer.tar"
            _write_layer(written, folder)
            layers.append({"mediaType": _LAYER, **_add_file(archive, written)})
        changed = json.loads(configuration)
        changed["rootfs"]["diff_ids"] = [each["digest"] for each in layers]
        config = {"mediaType": _CONFIG, **_add(archive, json.dumps(changed).encode())}
        body = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
        manifest = {
            "mediaType": _MANIFEST,
            **_add(archive, json.dumps(body).encode()),
            "annotations": {"io.containerd.image.name": image},
        }
        _add(archive, json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode(), "index.json")
        _add(archive, b'{"imageLayoutVersion": "1.0.0"}', "oci-layout")
    return True


def _folders(driver: Mapping[str, Any]) -> list[Path]:
    """Return the layers' folders of overlay2, lowest layer first; empty for another driver."""
    if driver["Name"] != "overlay2":
        return []
    lower = [Path(each) for each in driver["Data"].get("LowerDir", "").split(":") if each]
    return [*reversed(lower), Path(driver["Data"]["UpperDir"])]


def _write_layer(path: Path, folder: Path) -> None:
    """Write a folder of overlay2 as a layer, with overlay's marks of deleted files in the layer's format."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as layer:
        for root, names, files in os.walk(folder):
            names.sort()
            for name in sorted([*names, *files]):
                source = Path(root) / name
                target = source.relative_to(folder)
                status = source.lstat()
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    layer.addfile(tarfile.TarInfo(str(target.with_name(f".wh.{name}"))))
                    continue
                layer.add(source, str(target), recursive=False)
                if stat.S_ISDIR(status.st_mode) and _is_opaque(source):
                    layer.addfile(tarfile.TarInfo(str(target / ".wh..wh..opq")))


def _is_opaque(folder: Path) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _add(archive: tarfile.TarFile, content: bytes, name: str | None = None) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        entry = tarfile.TarInfo(name or f"blobs/sha256/{digest}")
        entry.size = len(content)
        archive.addfile(entry, file)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def _add_file(archive: tarfile.TarFile, path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    archive.add(path, f"blobs/sha256/{digest}")
    return {"digest": f"sha256:{digest}", "size": path.stat().st_size}
