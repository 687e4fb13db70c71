#!/usr/bin/env bash
# Print the cluster that `make e2e` uses: kind where Docker can run it, else native. One line on stderr says why.
set -euo pipefail
seconds=${SWARMGAME_PROBE_SECONDS:-5} # how long a probe may take

use() {
  echo "e2e: cluster $1, because $2 (E2E=kind, E2E=native or E2E=current chooses another)" >&2
  echo "$1"
  exit 0
}

probe() { # COMMAND: for a limited time, where there is `timeout`; macOS has none
  if command -v timeout > /dev/null; then timeout "$seconds" "$@"; else "$@"; fi
}

command -v docker > /dev/null || use native "there is no docker command"
probe docker info > /dev/null 2>&1 || use native "no Docker daemon answers"
for program in kind kubectl helm; do
  command -v "$program" > /dev/null || command -v go > /dev/null || use native "there is neither $program nor Go to build it"
done
if [ -n "$(probe docker images --quiet kindest/node 2> /dev/null)" ]; then
  use kind "Docker runs and has kind's node image"
fi
# Where the registry cannot be reached, `docker manifest inspect` fails or hangs. It downloads no image.
probe docker manifest inspect hello-world > /dev/null 2>&1 ||
  use native "no image registry can be reached"
use kind "Docker runs and reaches an image registry"
