# shellcheck shell=bash
# Sourced by up.sh, load.sh and down.sh: the cluster's name, its kubeconfig, and `kind` on the PATH.
# KIND_CLUSTER_NAME is kind's own variable.
name=${KIND_CLUSTER_NAME:-swarmgame}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck disable=SC2034 # the scripts that source this file use it
kubeconfig=${SWARMGAME_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/swarmgame}/kind/$name.kubeconfig
release=$(sed -n "s/^# Node images of kind's release \(v[0-9.]*\),.*/\1/p" "$here/nodes.txt")

fail() {
  echo "error: $1" >&2
  exit 1
}

find_kind() { # a kind on the PATH, else one that Go has built into the cache
  command -v kind > /dev/null && return
  command -v go > /dev/null && [ -x "$root/.venv/bin/python" ] ||
    fail "there is no kind: install $release (https://kind.sigs.k8s.io/docs/user/quick-start/#installation), or Go to build it"
  make --silent -C "$root" cluster-tools-kind >&2
  local program='from native_cluster import tools; print(tools.tool("kind").parent)'
  PATH=$(PYTHONPATH=$root/hack/native-cluster "$root/.venv/bin/python" -c "$program"):$PATH
}

require_docker() {
  command -v docker > /dev/null || fail "there is no docker command: https://docs.docker.com/engine/install/"
  docker info > /dev/null 2>&1 || fail "no Docker daemon answers: start Docker, or set DOCKER_HOST"
}

exists() { # whether the cluster exists; kind prints "No kind clusters found." on stderr
  kind get clusters 2> /dev/null | grep -x "$name" > /dev/null # -q would end kind's output early, which pipefail reports
}

export KIND_EXPERIMENTAL_PROVIDER=docker # images come from Docker, also where podman is installed
require_docker
find_kind
