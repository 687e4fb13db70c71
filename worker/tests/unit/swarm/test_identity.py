"""Keys, peer ids and signatures."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.errors import BadData
from swarmgame.swarm.identity import Identity, dial_address, listen_addresses, public_key_of, split_address, verify
from swarmgame.swarm.network_options import host_for_peers


def test_a_missing_key_file_is_made_readable_by_its_owner_alone_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "peer.key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes()[:4].hex() == "08021220"
    assert len(path.read_bytes()) == 36
    assert Identity.load_or_create(path) == made
    assert [entry.name for entry in path.parent.iterdir()] == ["peer.key"]


def test_concurrent_creators_of_a_key_file_get_one_key(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: Identity.load_or_create(path).peer, range(32)))
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x01\x12\x20" + bytes(32), b"\x08\x02\x12\x20" + bytes(32), b"\x08\x02\x12\x20" + b"x" * 31]
)
def test_a_file_that_is_not_a_secp256k1_key_is_refused_by_name_and_left_unchanged(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "peer.key"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"peer\.key"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_the_peer_id_of_a_known_key_is_that_of_the_libp2p_specification() -> None:
    # The secp256k1 vector of libp2p/specs, peer-ids.md: its public key protobuf.
    public = bytes.fromhex("08021221037777e994e452c21604f91de093ce415f5432f701dd8cd1a7a6fea0e630bfca99")[4:]
    identity = Identity(bytes.fromhex("0802122053DADF1D5A164D6B4ACDB15E24AA4C5B1D3461BDBD42ABEDB0A4404D56CED8FB")[4:])
    assert identity.public_key == public
    assert identity.peer.startswith("16Uiu2HA")
    assert public_key_of(identity.peer) == public


def test_a_signature_holds_for_its_signer_and_its_message_only_and_is_always_the_same() -> None:
    ann, bob = Identity.named("ann"), Identity.named("bob")
    signature = ann.sign(b"hello")
    assert signature == ann.sign(b"hello")
    assert verify(ann.peer, b"hello", signature)
    assert not verify(bob.peer, b"hello", signature)
    assert not verify(ann.peer, b"hellO", signature)


@given(peer=st.text(max_size=80), message=st.binary(max_size=64), signature=st.binary(max_size=80))
def test_no_bytes_make_verification_raise(peer: str, message: bytes, signature: bytes) -> None:
    assert verify(peer, message, signature) is False


@given(position=st.integers(0, 64), bit=st.integers(0, 7))
def test_a_signature_with_a_bit_flipped_is_wrong(position: int, bit: int) -> None:
    ann = Identity.named("ann")
    signature = bytearray(ann.sign(b"hello"))
    signature[position] ^= 1 << bit
    assert not verify(ann.peer, b"hello", bytes(signature))


def test_the_secret_is_not_printed() -> None:
    identity = Identity.named("ann")
    assert identity.secret.hex() not in repr(identity)
    assert repr(identity.secret) not in repr(identity)


def test_addresses_are_made_and_taken_apart() -> None:
    peer = Identity.named("ann").peer
    assert dial_address(peer, 4001) == f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}"
    assert dial_address(peer, 4001, "peer-0.swarm") == f"/dns4/peer-0.swarm/tcp/4001/p2p/{peer}"
    assert dial_address(peer, 4001, "fd00::7") == f"/ip6/fd00::7/tcp/4001/p2p/{peer}"
    assert split_address(dial_address(peer, 4001, "fd00::7")) == ("/ip6/fd00::7/tcp/4001", peer)
    assert host_for_peers([dial_address(peer, 4001), dial_address(peer, 4001, "peer-0.swarm")]) == "0.0.0.0"
    assert host_for_peers([dial_address(peer, 4001), dial_address(peer, 4001, "fd00::7")]) == "::"
    assert host_for_peers(["/dns6/a/tcp/1/p2p/b"]) == "::"
    assert listen_addresses(4001, "0.0.0.0") == ["/ip4/0.0.0.0/tcp/4001"]
    assert listen_addresses(4001, "::1") == ["/ip6/::1/tcp/4001"]
    assert listen_addresses(4001, "::") == ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"]
    assert split_address(dial_address(peer, 4001)) == ("/ip4/127.0.0.1/tcp/4001", peer)
    for wrong in ("", "/ip4/127.0.0.1/tcp/4001", "host:4001", f"/p2p/{peer}/", f"p2p/{peer}"):
        with pytest.raises(ValueError, match="not a peer's address"):
            split_address(wrong)
