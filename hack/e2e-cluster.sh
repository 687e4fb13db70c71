#!/usr/bin/env bash
# Print the cluster that `make e2e` uses: kind where Docker can run it, else native. One line on stderr says why.
set -euo pipefail
seconds=${SWARMGAME_PROBE_SECONDS:-5} # how long a probe may take

use() {
  echo "e2e: cluster $1, because $2 (E2E=kind, E2E=native or E2E=current chooses another)" >&2
  echo "$1"
  exit 0
}

command -v docker > /dev/null || use native "there is no docker command"
timeout "$seconds" docker info > /dev/null 2>&1 || use native "no Docker daemon answers"
command -v kind > /dev/null || command -v go > /dev/null || use native "there is neither kind nor Go to build it"
if [ -n "$(timeout "$seconds" docker images --quiet kindest/node 2> /dev/null)" ]; then
  use kind "Docker runs and has kind's node image"
fi
# Where the registry cannot be reached, `docker manifest inspect` fails or hangs. It downloads no image.
timeout "$seconds" docker manifest inspect hello-world > /dev/null 2>&1 ||
  use native "no image registry can be reached"
use kind "Docker runs and reaches an image registry"
