#!/usr/bin/env bash
# Removes the kind cluster; docker's images stay.
set -euo pipefail
kind delete cluster --name "${1:-swarmgame-e2e}"
