# Sourced by up.sh and down.sh: the cluster's name, its kubeconfig, and `kind` on the PATH.
name=${1:-swarmgame-e2e}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
kubeconfig=${SWARMGAME_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/swarmgame}/kind/kubeconfig
mkdir -p "$(dirname "$kubeconfig")"

if ! command -v kind > /dev/null; then # Go builds it once into the cache
  make --silent -C "$root" cluster-tools-kind >&2
  find_kind='from native_cluster import tools; print(tools.tool("kind").parent)'
  PATH=$(PYTHONPATH=$root/hack/native-cluster "$root/.venv/bin/python" -c "$find_kind"):$PATH
fi
