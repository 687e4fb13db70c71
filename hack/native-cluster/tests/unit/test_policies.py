"""Network policies: which lines of iptables-save are kube-router's, and when the table that is left is empty."""

from __future__ import annotations

import pytest

from native_cluster import policies

OTHERS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -m comment --comment "kube-router is not this" -j RETURN
COMMIT
"""
OURS = (
    ":KUBE-ROUTER-INPUT - [0:0]\n",
    ":KUBE-NWPLCY-DEFAULT - [0:0]\n",
    '-A INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT\n',
    "-A KUBE-ROUTER-FORWARD -d 10.244.0.7/32 -j KUBE-POD-FW-AAAA\n",
    "-A KUBE-POD-FW-AAAA -m set --match-set KUBE-SRC-BBBB src -j RETURN\n",
)


def test_only_kube_routers_lines_are_taken_out() -> None:
    lines = OTHERS.splitlines(keepends=True)
    mixed = "".join([*lines[:-1], *OURS, lines[-1]])
    assert policies.without_rules(mixed) == OTHERS
    assert policies.without_rules(OTHERS) == OTHERS


@pytest.mark.parametrize(
    ("saved", "empty"),
    [
        ("", True),
        ("*filter\n:INPUT ACCEPT [3:9]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", True),
        ("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n", False),
        ("*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\nCOMMIT\n", False),
        ("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n", False),
        (OTHERS, False),
    ],
)
def test_a_table_is_empty_without_rules_chains_and_policies(saved: str, empty: bool) -> None:
    assert policies.is_empty(saved) is empty
