"""Key files and their peer ids."""

from __future__ import annotations

import pytest

from swarmgame_operator.libp2p_keys import KEY_PREFIX, new_key, peer_id_of

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def test_a_key_is_a_libp2p_protobuf_of_its_own() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert (len(first), first[:4]) == (36, bytes.fromhex("08021220"))


def test_a_peer_id_is_what_libp2p_makes_of_the_key() -> None:
    """The test vector of libp2p's specification of peer ids."""
    vector = bytes.fromhex("0802122053DADF1D5A164D6B4ACDB15E24AA4C5B1D3461BDBD42ABEDB0A4404D56CED8FB")
    public = bytes.fromhex("08021221037777E994E452C21604F91DE093CE415F5432F701DD8CD1A7A6FEA0E630BFCA99")
    import base58

    assert peer_id_of(vector) == base58.b58encode(b"\x00\x25" + public).decode()
    assert peer_id_of(vector).startswith("16Uiu2HA")


BAD = [
    b"",
    KEY_PREFIX,
    new_key()[:-1],
    new_key() + b"x",
    b"\x08\x01\x12\x20" + b"1" * 32,
    KEY_PREFIX + b"\0" * 32,
    KEY_PREFIX + ORDER.to_bytes(32),
]


@pytest.mark.parametrize("key", BAD, ids=range(len(BAD)))
def test_an_invalid_key_is_refused_without_showing_it(key: bytes) -> None:
    with pytest.raises(ValueError, match="secp256k1") as caught:
        peer_id_of(key)
    assert key[4:].hex() not in str(caught.value) or not key[4:]
