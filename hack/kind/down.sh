#!/usr/bin/env bash
# Remove the kind cluster and its kubeconfig. Docker's images stay.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
kind delete cluster --name "$name" --kubeconfig "$kubeconfig" >&2
rm -f "$kubeconfig"
