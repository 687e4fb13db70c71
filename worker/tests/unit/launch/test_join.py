"""What `swarmgame join` refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.errors import BadUsage
from swarmgame.launch.join import refuse_own_address
from swarmgame.swarm.identity import Identity, dial_address
from swarmgame.swarm.network_options import NetworkOptions


def test_a_copy_of_the_members_key_cannot_join_by_its_address(tmp_path: Path) -> None:
    key = tmp_path / "peer.key"
    own = dial_address(Identity.load_or_create(key).peer, 4001)
    other = dial_address(Identity.named("bob").peer, 4002)
    with pytest.raises(BadUsage, match="has the id of this peer's own key") as caught:
        refuse_own_address(NetworkOptions(key, initial_peers=(own,)))
    assert str(key) in str(caught.value)
    assert "--identity FILE" in str(caught.value)
    for peers in ((own, other), (other,), ()):
        refuse_own_address(NetworkOptions(key, initial_peers=peers))
    refuse_own_address(NetworkOptions(tmp_path / "new.key", initial_peers=(own,)))
