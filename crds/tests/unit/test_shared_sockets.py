"""Addresses of a machine: what a host means, and HOST:PORT as a text."""

from __future__ import annotations

import errno
import socket

import pytest

from swarmgame_common.sockets import (
    EVERY_ADDRESS,
    host_and_port,
    listening_socket,
    plain_address,
    split_host_and_port,
)


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    try:
        listening_socket("::1", 0).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@needs_ipv6
def test_every_address_is_one_port_of_both_families() -> None:
    with listening_socket(EVERY_ADDRESS, 0) as listener:
        port = listener.getsockname()[1]
        assert reaches("127.0.0.1", port)
        assert reaches("::1", port)


@needs_ipv6
def test_one_address_is_reached_at_that_address_alone() -> None:
    with listening_socket("::1", 0) as listener:
        assert reaches("::1", listener.getsockname()[1])
        assert not reaches("127.0.0.1", listener.getsockname()[1])
    with listening_socket("127.0.0.1", 0) as listener:
        assert not reaches("::1", listener.getsockname()[1])


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_ipv6_is_reached_over_ipv4(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], **options: object) -> socket.socket:
        if options.get("family") == socket.AF_INET6:
            raise OSError(number, "no IPv6")
        return create(address, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    with listening_socket(EVERY_ADDRESS, 0) as listener:
        assert listener.family is socket.AF_INET
        assert reaches("127.0.0.1", listener.getsockname()[1])


def test_a_port_that_is_taken_is_an_error_and_not_another_family() -> None:
    with listening_socket(EVERY_ADDRESS, 0) as taken, pytest.raises(OSError, match="in use"):
        listening_socket(EVERY_ADDRESS, taken.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("10.0.0.1", "10.0.0.1:80"),
        ("peer-0.swarm", "peer-0.swarm:80"),
        ("::1", "[::1]:80"),
        ("fd00::7", "[fd00::7]:80"),
    ],
)
def test_an_ipv6_address_stands_in_brackets_before_its_port(host: str, text: str) -> None:
    assert host_and_port(host, 80) == text
    assert split_host_and_port(text) == (host, 80)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:x", "::1:80", "[::1]", "[host]:80", "[]:80"])
def test_another_text_is_no_host_and_port(text: str) -> None:
    assert split_host_and_port(text) is None


@pytest.mark.parametrize(
    ("host", "plain"),
    [("::ffff:10.0.0.1", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("fd00::7", "fd00::7"), ("", ""), ("a%b", "a%b")],
)
def test_an_ipv4_address_is_the_same_over_a_socket_of_either_family(host: str, plain: str) -> None:
    assert plain_address(host) == plain
