"""The termination message: one line from which Kubernetes shows why a container ended.

The kubelet reads the file after the container has ended and puts its text into the pod's status. Outside a pod nothing
is written, unless the environment names a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_VARIABLE = "SWARMGAME_TERMINATION_LOG"
MAX_CHARACTERS = 1_024
"""The kubelet takes 4096 bytes; a character has at most four."""


def write_termination_message(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Write a message as one line to the termination log. A log that cannot be written is reported, not raised."""
    named = environment.get(TERMINATION_VARIABLE)
    path = Path(named) if named else TERMINATION_LOG
    if not named and not path.exists():
        return
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())[:MAX_CHARACTERS]
    try:
        path.write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)
