"""What assigns the roles: the built-in managers, one of the author's, and what is no assignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from swarmgame import Role, RoleManager
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.roles import Drawn, Rotating
from swarmgame.runtime.assembly import local_modules, roles_of
from swarmgame_api import loads_manifest
from swarmgame_api.manifest import SwarmGame

TWO = (Role("white", share=0.5), Role("black"))
MEMBERS = ("a", "b", "c", "d")


def roles(manager: RoleManager, number: int, members: Sequence[str] = MEMBERS) -> str:
    """Return the first letters of the roles, by member."""
    round = manager.round(5, 1, members[0], number, tuple(members))
    assert list(round.roles) == sorted(members)
    assert round.role == round.roles[members[0]]
    return "".join(role[0] for role in round.roles.values())


def test_roles_by_rank_stay_and_rotating_ones_move_on_by_one_member_a_round() -> None:
    assert [roles(RoleManager(TWO), number) for number in range(3)] == ["wwbb"] * 3
    assert [roles(Rotating(TWO), number) for number in range(5)] == ["wwbb", "wbbw", "bbww", "bwwb", "wwbb"]
    assert roles(Rotating(TWO), 3, ("a",)) == "w"


def test_drawn_roles_keep_their_numbers_and_change_each_round_alike_on_every_peer() -> None:
    found = [roles(Drawn(TWO), number) for number in range(60)]
    assert all(sorted(each) == list("bbww") for each in found)
    assert len(set(found)) == 6
    assert found == [roles(Drawn(TWO), number, MEMBERS) for number in range(60)]
    other = [Drawn(TWO).round(5, 1, "d", number, MEMBERS).roles for number in range(3)]
    assert other == [Drawn(TWO).round(5, 1, "a", number, MEMBERS).roles for number in range(3)]


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (None, r"Odd\.assign returned None; expected a mapping of peers to names of roles"),
        ({"a": "white"}, r"Odd\.assign returned None for member b; expected a name for each member"),
        ({"a": "white", "b": 1}, r"Odd\.assign returned 1 for member b; expected a name for each member"),
        ({"a": "white", "b": "queen"}, r"returned the role 'queen'; expected one of spec.game.roles"),
    ],
)
def test_what_is_no_assignment_is_an_error_that_names_class_and_member(returned: Any, found: str) -> None:
    class Odd(RoleManager):
        def assign(self, members: Sequence[str], number: int = 0, seed: int = 0) -> Mapping[str, str]:
            return returned  # type: ignore[no-any-return]

    with pytest.raises(BadGame, match=found):
        Odd(TWO).round(5, 1, "a", 0, ("a", "b"))


def test_an_error_of_an_assignment_comes_with_the_authors_line() -> None:
    class Failing(RoleManager):
        def assign(self, members: Sequence[str], number: int = 0, seed: int = 0) -> Mapping[str, str]:
            return {members[7]: "white"}

    with pytest.raises(BadGame, match=r"Failing failed in assign: IndexError: .* at .*test_role_managers\.py"):
        Failing(TWO).round(5, 1, "a", 0, ("a", "b"))


def manifest(manager: str) -> SwarmGame:
    return loads_manifest(
        "apiVersion: swarmgame.dev/v1alpha1\nkind: SwarmGame\nmetadata: {name: roles}\n"
        "spec:\n  game:\n    maxRounds: 1\n    data: {use: text}\n    rewards: {use: exact}\n"
        "    trainer: {use: grpo}\n    roles: [{name: white, count: 1}, {name: black}]\n"
        f"    roleManager: {manager}\n  peers: {{replicas: 2}}\n"
    )


def test_a_manager_of_ones_own_is_found_beside_the_manifest_with_its_options(tmp_path: Path) -> None:
    (tmp_path / "own_roles.py").write_text(
        "from swarmgame import Config, RoleManager\n"
        "class Swapping(RoleManager):\n"
        "    class Config(Config):\n"
        "        every: int = 1\n"
        "    def assign(self, members, number=0, seed=0):\n"
        "        names = self._names(len(members))\n"
        "        swapped = number // self.config.every % 2\n"
        "        return dict(zip(sorted(members), reversed(names) if swapped else names))\n"
    )
    with local_modules(tmp_path):
        manager = roles_of(manifest("{use: 'own_roles:Swapping', with: {every: 2}}"))
        assert [roles(manager, number, ("a", "b")) for number in range(4)] == ["wb", "wb", "bw", "bw"]
        with pytest.raises(InvalidManifest, match=r"spec\.game\.roleManager\.with\.ever"):
            roles_of(manifest("{use: 'own_roles:Swapping', with: {ever: 2}}"))
        with pytest.raises(InvalidManifest, match=r"spec\.game\.roleManager\.use .*subclass of swarmgame\.RoleManager"):
            roles_of(manifest("{use: 'swarmgame.rewards.exact:ExactRewards'}"))


@pytest.mark.parametrize(("name", "found"), [("by-rank", RoleManager), ("rotating", Rotating), ("drawn", Drawn)])
def test_built_in_managers_have_plain_names(name: str, found: type[RoleManager]) -> None:
    assert type(roles_of(manifest(f"{{use: {name}}}"))) is found
