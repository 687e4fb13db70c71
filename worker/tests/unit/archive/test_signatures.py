"""An archived contribution is compared with what its author signed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from archived_games import RUN, packed, record, signed, with_text
from contributions import make_contribution

from swarmgame import Contribution
from swarmgame.archive.rows import contributions_of, round_rows
from swarmgame.archive.signatures import Proof, proof_of
from swarmgame.game.protocol import Origin
from swarmgame.swarm.identity import Identity


@pytest.fixture
def author(tmp_path: Path) -> Identity:
    return Identity.load_or_create(tmp_path / "author.key")


def proof(contribution: Contribution, origin: Origin | None, run: str = RUN) -> Proof:
    head, rows = round_rows(record(make_contribution("me"), [contribution], origins=[origin] if origin else []))
    received = list(contributions_of(head, rows))[1]
    return proof_of(*received, run)


def test_what_an_author_signed_is_recognised_also_after_decoding(author: Identity) -> None:
    contribution = make_contribution(author.peer)
    assert proof(packed(contribution), signed(author, contribution)) is Proof.SIGNED


def test_other_rows_under_the_same_signature_are_not_taken_for_signed(author: Identity) -> None:
    contribution = make_contribution(author.peer)
    origin = signed(author, contribution)
    assert proof(with_text(contribution, "something else"), origin) is Proof.UNKNOWN
    fewer = replace(contribution, groups=contribution.groups[:2])
    assert proof(fewer, origin) is Proof.UNKNOWN


@pytest.mark.parametrize("forgery", ["another run", "another author", "another shard", "a changed message"])
def test_a_forgery_is_named(author: Identity, tmp_path: Path, forgery: str) -> None:
    contribution = make_contribution(author.peer)
    origin = signed(author, contribution)
    if forgery == "another run":
        assert proof(contribution, origin, run="other-1") is Proof.FORGED
    elif forgery == "another author":
        other = Identity.load_or_create(tmp_path / "other.key")
        assert proof(replace(contribution, peer=other.peer), origin) is Proof.FORGED
    elif forgery == "another shard":
        assert proof(contribution, replace(origin, shards=(b"\0" * 32, *origin.shards[1:]))) is Proof.FORGED
    else:
        message = origin.announcement[:-1] + bytes([origin.announcement[-1] ^ 1])
        assert proof(contribution, replace(origin, announcement=message)) is Proof.FORGED


def test_a_backend_without_signatures_is_named_as_such() -> None:
    assert proof(make_contribution("other"), None) is Proof.ABSENT
