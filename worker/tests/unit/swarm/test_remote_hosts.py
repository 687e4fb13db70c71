"""From which host a peer is connected, and how many peers of one host count."""

from __future__ import annotations

import asyncio

import pytest

from swarmgame.swarm.counted_peers import CountedPeers, CountingRules, Standing
from swarmgame.swarm.transports import remote_hosts
from swarmgame.swarm.transports.remote_hosts import RemoteHosts, host_of


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("/ip4/192.0.2.7/tcp/31000", "192.0.2.7"),
        ("/ip4/127.0.0.1/tcp/31000", ""),
        ("/ip6/::1/tcp/31000", ""),
        ("/ip6/2001:db8:0:1:aaaa::1/tcp/31000", "2001:db8:0:1::/64"),
        ("/ip6/2001:db8:0:1:bbbb::2/udp/31000/quic", "2001:db8:0:1::/64"),
        ("/ip6/2001:db8:0:2::1/tcp/31000", "2001:db8:0:2::/64"),
        ("/ip6/::ffff:192.0.2.7/tcp/31000", "192.0.2.7"),
        ("/ip6zone/eth0/ip6/fe80::1/tcp/31000", "fe80::/64"),
        ("/dns4/example.org/tcp/31000", "/dns4/example.org/tcp/31000"),
        ("/ip4/nonsense/tcp/31000", "/ip4/nonsense/tcp/31000"),
        ("", ""),
    ],
)
def test_a_host_is_an_address_or_a_network_of_ipv6_and_this_machine_has_none(address: str, host: str) -> None:
    assert host_of(address) == host


class Daemon:
    """Lists connections, and counts how often it is asked."""

    def __init__(self) -> None:
        self.open: dict[str, list[str]] = {}
        self.lists = 0

    async def connections(self) -> list[tuple[str, str]]:
        self.lists += 1
        await asyncio.sleep(0)
        return [(peer, address) for peer, addresses in self.open.items() for address in addresses]


async def test_many_peers_are_found_with_one_list_and_a_known_peer_costs_none() -> None:
    daemon = Daemon()
    daemon.open = {f"peer-{number}": [f"/ip4/192.0.2.{number}/tcp/1"] for number in range(40)}
    hosts = RemoteHosts(daemon.connections, (OSError,))
    await asyncio.gather(*(hosts.meet(peer) for peer in daemon.open))
    assert {hosts.host(f"peer-{number}") for number in range(40)} == {f"192.0.2.{number}" for number in range(40)}
    await hosts.meet("peer-3")
    assert daemon.lists == 1


async def test_a_peer_keeps_the_host_of_its_first_connection_and_one_without_a_connection_has_none() -> None:
    daemon = Daemon()
    hosts = RemoteHosts(daemon.connections, (OSError,))
    daemon.open = {"eve": ["/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.9/tcp/1", "/ip4/192.0.2.8/tcp/1"]}
    await hosts.meet("eve")
    daemon.open = {"eve": ["/ip4/203.0.113.1/tcp/1"]}
    await hosts.meet("bob")
    assert (hosts.host("eve"), hosts.host("bob")) == ("192.0.2.8", None)


async def test_a_daemon_that_does_not_answer_leaves_a_peer_without_a_host() -> None:
    async def fails() -> list[tuple[str, str]]:
        raise OSError("gone")

    hosts = RemoteHosts(fails, (OSError,))
    await hosts.meet("eve")
    assert hosts.host("eve") is None


async def test_the_hosts_of_few_thousand_peers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_hosts, "MAX_PEERS", 3)
    daemon = Daemon()
    hosts = RemoteHosts(daemon.connections, (OSError,))
    for number in range(5):
        daemon.open = {f"peer-{number}": [f"/ip4/192.0.2.{number}/tcp/1"]}
        await hosts.meet(f"peer-{number}")
    assert [hosts.host(f"peer-{number}") is None for number in range(5)] == [True, True, False, False, False]


def test_a_peer_that_was_never_connected_itself_does_not_count_until_it_is() -> None:
    connected: set[str] = set()
    rules = CountingRules(frozenset({"ann"}), address=lambda peer: "" if peer in connected else None)
    counted = CountedPeers(rules).start().observe(["ann", "key"], 0)
    for number in range(5):
        counted = counted.judge(number, {"ann", "key"}, {"ann"}, number + 1)
    assert (counted.standing("ann"), counted.standing("key")) == (Standing.ANCHOR, Standing.PROBATION)
    connected.add("key")
    assert counted.judge(5, {"ann", "key"}, {"ann"}, 6).standing("key") is Standing.COUNTED
    alone = CountedPeers(CountingRules(address=lambda peer: None)).observe(["key"], 0)
    assert not alone.weights(["key"])
