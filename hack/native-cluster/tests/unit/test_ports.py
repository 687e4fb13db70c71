"""Ports that are reserved for servers that start later."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from native_cluster import control_plane
from native_cluster.control_plane import free_ports


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Three ports that are no other's on this machine, as all that there are; none of them is reserved."""
    found = free_ports(3)
    monkeypatch.setattr(control_plane, "_PORTS", found)
    monkeypatch.setattr(control_plane, "_LOCKS", tmp_path / "ports")
    return found


def test_a_port_is_given_once_and_none_is_given_when_too_few_are_left(ports: list[int]) -> None:
    first, second = free_ports(1), free_ports(1)
    assert first != second
    with pytest.raises(OSError, match="2 free ports are needed, and 1 of "):
        free_ports(2)
    assert {*first, *second} < set(ports)


def test_a_port_that_another_program_uses_is_not_given(ports: list[int]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert sorted(free_ports(2)) == sorted(ports[1:])
    assert free_ports(1) == ports[:1], "what was only tried stays free"
