"""Tools: when a tool counts as built, and the message when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from native_cluster import tools


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "modules"
    shutil.copytree(tools.MODULES, copy)
    monkeypatch.setattr(tools, "MODULES", copy)
    monkeypatch.setenv("SWARMGAME_TEST_CACHE", str(tmp_path / "cache"))
    return copy


def pretend(name: str) -> Path:
    path = tools._path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("program")
    return path


def test_a_missing_tool_is_named_with_the_command_that_builds_it(modules: Path) -> None:
    with pytest.raises(tools.NotBuilt, match=r"etcd is not built(.|\n)*make cluster-tools"):
        tools.tool("etcd")
    assert tools.missing(["etcd", "helm"]) == ["etcd", "helm"]


def test_a_changed_sum_makes_its_module_stale_and_no_other(modules: Path) -> None:
    built = {name: pretend(name) for name in ("etcd", "helm")}
    assert {name: tools.tool(name) for name in built} == built
    with (modules / "etcd" / "go.sum").open("a") as file:
        file.write("one more line\n")
    assert tools.missing(["etcd", "helm"]) == ["etcd"]


def test_without_go_the_message_says_so_and_built_tools_stay(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    pretend("etcd")
    tools.build(["etcd"])
    with pytest.raises(tools.NotBuilt, match="no `go` on the PATH to build helm"):
        tools.build(["etcd", "helm"])


def test_a_failed_build_leaves_no_file(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho half > "$2"\nexit 1\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:/bin:/usr/bin")
    with pytest.raises(tools.NotBuilt, match="helm could not be built"):
        tools.build(["helm"])
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_every_tool_has_a_module_with_exact_versions() -> None:
    for name, tool in tools.TOOLS.items():
        text = (tools.MODULES / tool.module / "go.mod").read_text()
        assert "latest" not in text, name
        assert (tools.MODULES / tool.module / "main.go").exists() or tool.package in text, name
    assert {*tools.API_SERVER, *tools.NODE, *tools.CHARTS} <= set(tools.TOOLS)
