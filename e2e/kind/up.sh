#!/usr/bin/env bash
# Make a kind cluster unless it exists, and load the project's images. The last line is the path of its kubeconfig.
set -euo pipefail
source "$(dirname "$0")/common.sh"

if ! kind get clusters | grep -qx "$name"; then
  kind create cluster --name "$name" --config "$root/e2e/kind/cluster.yaml" --kubeconfig "$kubeconfig" --wait 180s
fi
kind export kubeconfig --name "$name" --kubeconfig "$kubeconfig"

anvil=$root/contracts/node_modules/@foundry-rs/anvil-linux-amd64
[ -d "$anvil" ] || make -C "$root" toolchain
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
for image in operator worker chain; do # the names are the chart's defaults
  context=$root
  [ "$image" = chain ] && context=$anvil
  docker build --file "$root/docker/$image.Dockerfile" --tag "ghcr.io/swarmgame/$image:$version" "$context"
  kind load docker-image --name "$name" "ghcr.io/swarmgame/$image:$version"
done
echo "$kubeconfig"
