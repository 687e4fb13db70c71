#!/usr/bin/env bash
# Remove the kind cluster. Docker's images stay.
set -euo pipefail
source "$(dirname "$0")/common.sh"
kind delete cluster --name "$name"
