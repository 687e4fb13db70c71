"""Signed messages, compared with eth-account's EIP-712 and with libp2p identities, and tried with garbage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chain_crowd import peer, secret
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame.swarm.identity import Identity
from swarmgame_chain.errors import BadMessage
from swarmgame_chain.messages import (
    KINDS,
    Domain,
    MessageKind,
    Registration,
    Report,
    SignedMessage,
    address_of,
    proves,
    recover,
    sign_commit,
    sign_registration,
    sign_report,
)
from swarmgame_chain.wire import MAX_BODY, dump, parse

DOMAIN = Domain(31337, "0x" + "11" * 20)
FULL = {
    "RegisterPeer": [("owner", "address"), ("signer", "address"), ("deadline", "uint256")],
    "Commit": [("peerId", "string"), ("round", "uint256"), ("seal", "bytes32")],
    "Report": [
        ("peerId", "string"),
        ("round", "uint256"),
        ("stage", "uint256"),
        ("reward", "int256"),
        ("winners", "bytes32"),
    ],
}


def oracle(name: str, values: dict[str, Any], key: bytes) -> bytes:
    """The signature that eth-account gives for the same typed data."""
    domain = {
        "name": "SwarmCoordinator",
        "version": "1",
        "chainId": DOMAIN.chain_id,
        "verifyingContract": DOMAIN.contract,
    }
    types = {name: [{"name": field, "type": type_} for field, type_ in FULL[name]]}
    signed = Account.sign_message(encode_typed_data(domain, types, values), key)
    return bytes(signed.signature)


def report(reward: int = -5, winners: tuple[str, ...] = ("16Uiu2HAmA", "16Uiu2HAmB")) -> Report:
    return sign_report(DOMAIN, secret(1), peer=peer(1), round=7, reward=reward, winners=winners)


def test_signatures_are_those_of_eth_account() -> None:
    registration = sign_registration(DOMAIN, secret(1), deadline=99, owner=address_of(secret(2)))
    values = {"owner": registration.owner, "signer": registration.signer, "deadline": 99}
    assert registration.signature == oracle("RegisterPeer", values, secret(1))
    signed = report()
    reported = {"peerId": peer(1), "round": 7, "stage": 0, "reward": -5, "winners": signed.votes}
    assert signed.signature == oracle("Report", reported, secret(1))
    commit = sign_commit(DOMAIN, secret(1), signed)
    assert commit.signature == oracle("Commit", {"peerId": peer(1), "round": 7, "seal": signed.seal}, secret(1))


@given(st.integers(min_value=1, max_value=2**255))
@settings(max_examples=50, deadline=None)
def test_the_peer_id_is_that_of_the_libp2p_identity(number: int) -> None:
    identity = Identity(number.to_bytes(32))
    registration = sign_registration(DOMAIN, identity.secret, deadline=1)
    assert registration.peer == identity.peer
    assert proves(registration, DOMAIN)


def test_an_rsa_key_proves_the_id_that_p2pd_gives_it() -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from hivemind.p2p import PeerID

    key = rsa.generate_private_key(65537, 2048)
    modulus = key.public_key().public_numbers().n.to_bytes(256)
    unsigned = Registration("0x" + "22" * 20, "0x" + "33" * 20, 5, modulus, b"")
    signature = key.sign(unsigned.digest(DOMAIN), padding.PKCS1v15(), hashes.SHA256())
    proof = Registration(unsigned.owner, unsigned.signer, 5, modulus, signature)
    assert proves(proof, DOMAIN)
    assert not proves(Registration(unsigned.owner, unsigned.signer, 6, modulus, signature), DOMAIN)
    assert not proves(Registration(unsigned.owner, unsigned.signer, 5, modulus, b"\xff" * 256), DOMAIN)
    encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL
    private = key.private_bytes(encoding, form, serialization.NoEncryption())
    assert proof.peer == PeerID.from_identity(_libp2p_rsa(private)).to_base58()


def _libp2p_rsa(der: bytes) -> bytes:
    from hivemind.proto import crypto_pb2

    data: bytes = crypto_pb2.PrivateKey(key_type=crypto_pb2.KeyType.RSA, data=der).SerializeToString()
    return data


def test_a_signature_is_for_one_chain_and_one_contract() -> None:
    registration = sign_registration(DOMAIN, secret(1), deadline=99)
    assert not proves(registration, Domain(1, DOMAIN.contract))
    assert not proves(registration, Domain(31337, "0x" + "12" * 20))


@given(st.binary(max_size=80), st.binary(min_size=32, max_size=32))
def test_recovering_from_garbage_never_raises(signature: bytes, digest: bytes) -> None:
    assert recover(digest, signature) is None or len(signature) == 65


def test_the_other_s_of_a_signature_is_refused_as_the_contract_refuses_it() -> None:
    signed = report()
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    s = order - int.from_bytes(signed.signature[32:64])
    twin = signed.signature[:32] + s.to_bytes(32) + bytes([55 - signed.signature[64]])
    assert recover(signed.digest(DOMAIN), signed.signature) == address_of(secret(1))
    assert recover(signed.digest(DOMAIN), twin) is None


def test_a_report_names_at_most_eight_winners_each_once() -> None:
    with pytest.raises(BadMessage, match="9 winners"):
        report(winners=tuple(f"peer{n}" for n in range(9)))
    with pytest.raises(BadMessage, match="each once"):
        report(winners=("a", "a"))


def test_two_messages_never_share_an_id() -> None:
    first, second = report(), report(reward=-4)
    commit = sign_commit(DOMAIN, secret(1), first)
    twin = sign_registration(DOMAIN, secret(2), deadline=9, owner=address_of(secret(1)), signer=address_of(secret(1)))
    messages: list[SignedMessage] = [first, second, commit, twin, sign_registration(DOMAIN, secret(1), deadline=9)]
    assert len({message.id(DOMAIN) for message in messages}) == 5


@pytest.mark.parametrize("reward", [0, 2**255 - 1, -(2**255)])
def test_messages_survive_json(reward: int) -> None:
    signed = report(reward=reward)
    for message in (
        signed,
        sign_commit(DOMAIN, secret(1), signed),
        sign_registration(DOMAIN, secret(1), deadline=2**64 - 1),
    ):
        assert list(parse(type(message), json.dumps([dump(message)]).encode())) == [message]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"reward": 2**255}, "reward"),
        ({"reward": "5"}, "reward"),
        ({"reward": True}, "reward"),
        ({"round": -1}, "round"),
        ({"peer": "x" * 65}, "peer"),
        ({"peer": ""}, "peer"),
        ({"peer": "0OIl"}, "peer"),
        ({"winners": ["a"] * 9}, "winners"),
        ({"signature": "0x12"}, "signature"),
        ({"signature": "0x" + "zz" * 65}, "signature"),
        ({"salt": "0x"}, "salt"),
        ({"more": 1}, "more"),
    ],
)
def test_an_invalid_field_is_named(change: dict[str, object], where: str) -> None:
    (parsed,) = parse(Report, json.dumps(dump(report()) | change).encode())
    assert isinstance(parsed, BadMessage)
    assert str(parsed).startswith(where)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"owner": "0x" + "11" * 19 + "  "}, "owner"),
        ({"signer": "0x" + "11" * 19 + " 1"}, "signer"),
        ({"signer": "0x" + "١" * 40}, "signer"),
        ({"signature": "0x" + "11" * 64 + "\n\n"}, "signature"),
        ({"key": "0x" + "7f" * 256}, "key"),
        ({"key": "0x" + "11" * 63 + "  "}, "key"),
    ],
)
def test_a_registration_with_blanks_or_a_key_that_proves_nothing_spoils_no_other(
    change: dict[str, object], where: str
) -> None:
    good = sign_registration(DOMAIN, secret(1), deadline=9)
    bad, kept = parse(Registration, json.dumps([dump(good) | change, dump(good)]).encode())
    assert isinstance(bad, BadMessage)
    assert str(bad).startswith(where)
    assert kept == good


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b" " * (MAX_BODY + 1), b"[" + b"1," * 300 + b"1]"])
def test_an_invalid_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage):
        parse(Report, body)


@given(
    st.sampled_from(KINDS),
    st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20),
)
def test_any_json_is_a_message_or_a_bad_one(kind: MessageKind, value: object) -> None:
    body = json.dumps([value]).encode()
    assert all(isinstance(parsed, BadMessage) for parsed in parse(kind, body))
