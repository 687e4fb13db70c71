#!/usr/bin/env bash
# A kind cluster with the project's images. Calling it again is cheap: what is there stays. Ends with the path of its kubeconfig.
set -euo pipefail
name=${1:-swarmgame-e2e}
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${SWARMGAME_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/swarmgame}
kubeconfig=$cache/kind/kubeconfig
mkdir -p "$cache/kind"

if ! kind get clusters | grep -qx "$name"; then
  kind create cluster --name "$name" --config "$root/e2e/kind/cluster.yaml" --kubeconfig "$kubeconfig" --wait 180s
fi
kind export kubeconfig --name "$name" --kubeconfig "$kubeconfig"

anvil=$root/contracts/node_modules/@foundry-rs/anvil-linux-amd64
[ -d "$anvil" ] || make -C "$root" toolchain
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
for image in operator worker chain; do # under the names that the chart has by default
  context=$root
  [ "$image" = chain ] && context=$anvil
  docker build --file "$root/docker/$image.Dockerfile" --tag "ghcr.io/swarmgame/$image:$version" "$context"
  kind load docker-image --name "$name" "ghcr.io/swarmgame/$image:$version"
done
echo "$kubeconfig"
