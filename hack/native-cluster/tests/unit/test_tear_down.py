"""Taking the cluster down: what cannot be removed keeps nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from native_cluster import cluster, daemons, network, node, policies


def test_rules_that_cannot_be_removed_keep_no_network_and_no_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def fails() -> None:
        done.append("policies")
        raise RuntimeError("`ipset list -name` failed: Kernel error received: Invalid argument")

    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setattr(cluster, "directory", lambda: state)
    monkeypatch.setattr(daemons, "running", lambda directory: {})
    monkeypatch.setattr(daemons, "without_file", lambda directory: [])
    monkeypatch.setattr(policies, "tear_down", fails)
    monkeypatch.setattr(network, "tear_down", lambda directory: done.append("network"))
    monkeypatch.setattr(node, "sweep", lambda: done.append("containers"))
    with pytest.raises(RuntimeError):
        cluster._down()
    assert done == ["network", "containers", "policies"]
    assert not state.exists()
