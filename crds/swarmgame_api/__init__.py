"""The SwarmGame manifest as pydantic models: the single source of the CRD, of the local runner and of the operator."""

from swarmgame_api.errors import InvalidManifest, Problem
from swarmgame_api.load import dump_manifest, load_manifest, loads_manifest, parse_manifest
from swarmgame_api.manifest import API_VERSION, KIND, SwarmGame, SwarmGameSpec

__all__ = [
    "API_VERSION",
    "KIND",
    "InvalidManifest",
    "Problem",
    "SwarmGame",
    "SwarmGameSpec",
    "dump_manifest",
    "load_manifest",
    "loads_manifest",
    "parse_manifest",
]
