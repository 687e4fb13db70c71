"""Unparsed answers of an API server, for discovery and schemas, which the client library does not model."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from api_servers import ApiServer

from native_cluster import tools


def get(server: ApiServer, path: str) -> Any:
    """Return the JSON of a path."""
    command = [str(tools.tool("kubectl")), "--kubeconfig", str(server.kubeconfig), "get", "--raw", path]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
