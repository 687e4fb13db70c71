#!/usr/bin/env bash
# Make a kind cluster unless it exists. Prints only the path of its kubeconfig on stdout:
#   export KUBECONFIG=$(hack/kind/up.sh)
# KUBERNETES chooses the version (default: the newest in nodes.txt), KIND_CLUSTER_NAME the name, KIND_NODE_REPOSITORY a
# mirror of kindest/node. In the nodes: HTTP_PROXY, HTTPS_PROXY and NO_PROXY (kind passes them), certificates of
# SSL_CERT_FILE, and REGISTRY_MIRROR, the address of a mirror of docker.io.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

versions() {
  sed -n 's/^v\([0-9.]*\) .*/\1/p' "$here/nodes.txt"
}

node_image() { # VERSION, such as 1.34 or 1.34.11: the image by digest
  local line
  line=$(grep -E "^v${1//./\\.}(\.[0-9]+)? " "$here/nodes.txt" | sed -n 1p || true)
  [ -n "$line" ] || fail "hack/kind/nodes.txt has no node image of Kubernetes $1; it has $(versions | tr '\n' ' ')"
  echo "${KIND_NODE_REPOSITORY:-kindest/node}:${line/ /@}"
}

create() { # IMAGE
  local version=${1%%@*} minor
  version=${version##*:v}
  minor=${version#1.}
  minor=${minor%%.*}
  # https://kubernetes.io/blog/2025/12/17/kubernetes-v1-35-release/#removal-of-cgroup-v1-support
  if [ "$minor" -ge 35 ] && [ "$(docker info --format '{{.CgroupVersion}}')" = 1 ]; then
    fail "Kubernetes $version does not run on cgroup v1, which Docker has here: make kind-up KUBERNETES=1.34"
  fi
  local found
  found=$(kind version | sed -n 's/^kind \(v[0-9.]*\).*/\1/p')
  [ "$found" = "$release" ] ||
    echo "note: this is kind $found; the node images are of $release, with other releases they work as a rule" >&2
  kind create cluster --name "$name" --image "$1" --config "$here/cluster.yaml" --kubeconfig "$kubeconfig" --wait 180s >&2
}

trust_and_mirror() { # NODE: certificates and the mirror of this host, for images that the node pulls
  local trusted=/etc/swarmgame-host.crt # a copy that is made last: a restart of containerd again would delay pods
  if [ -n "${SSL_CERT_FILE:-}" ] && ! docker exec --interactive "$1" cmp --silent - "$trusted" < "$SSL_CERT_FILE" >&2; then
    docker cp "$SSL_CERT_FILE" "$1:/usr/local/share/ca-certificates/host.crt" >&2
    docker exec "$1" update-ca-certificates >&2
    docker exec "$1" systemctl restart containerd >&2
    docker exec "$1" cp /usr/local/share/ca-certificates/host.crt "$trusted" >&2
  fi
  if [ -n "${REGISTRY_MIRROR:-}" ]; then
    # https://kind.sigs.k8s.io/docs/user/local-registry/ and containerd's docs/hosts.md
    docker exec "$1" mkdir -p /etc/containerd/certs.d/docker.io >&2
    printf '[host."%s"]\n  capabilities = ["pull", "resolve"]\n' "$REGISTRY_MIRROR" |
      docker exec --interactive "$1" cp /dev/stdin /etc/containerd/certs.d/docker.io/hosts.toml >&2
  fi
}

image=$(node_image "${KUBERNETES:-$(versions | sed -n 1p)}")
mkdir -p "$(dirname "$kubeconfig")"
if exists; then
  runs=$(docker inspect --format '{{.Config.Image}}' "$name-control-plane")
  if [ -n "${KUBERNETES:-}" ] && [ "${runs##*@}" != "${image##*@}" ]; then
    fail "the cluster $name runs $runs, not $image: make kind-down, or another KIND_CLUSTER_NAME"
  fi
  kind export kubeconfig --name "$name" --kubeconfig "$kubeconfig" >&2
else
  create "$image"
fi
for node in $(kind get nodes --name "$name"); do trust_and_mirror "$node"; done
echo "$kubeconfig"
