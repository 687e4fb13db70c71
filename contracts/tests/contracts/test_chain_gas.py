"""What the shipped contract costs, on anvil, against the figures of the design."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from chain_crowd import CARRIER, ETHER, FAR, Ground, make_ground, secret, states, stepped

from swarmgame_chain.abi import artifact
from swarmgame_chain.anvil import Anvil
from swarmgame_chain.deploy import Receipt, manage
from swarmgame_chain.messages import Registration, sign_commit
from swarmgame_chain.rpc import NodeClient


@pytest.fixture
def url() -> Iterator[str]:
    with Anvil() as anvil:
        yield anvil.url


async def fresh(url: str, **config: object) -> Ground:
    chain = NodeClient(url)
    await chain.request("anvil_setBalance", CARRIER.address, hex(1_000 * ETHER))
    return await make_ground(chain, **config)


async def call(ground: Ground, name: str, *arguments: object) -> Receipt:
    return await manage(ground.chain, CARRIER, ground.domain.contract, name, *arguments)


async def test_gas_is_within_the_limits_of_the_design(url: str) -> None:
    """The second round is the usual one."""
    ground = await fresh(url)
    registrations = await call(ground, "registerPeers", [ground.registration(n).encode() for n in range(50)])
    await call(ground, "submitReports", [ground.report(n, 0).encode() for n in range(50)])
    advance = await call(ground, "updateStageAndRound")
    reports = await call(ground, "submitReports", [ground.report(n, 1).encode() for n in range(50)])
    await call(ground, "updateStageAndRound")
    voting = await call(ground, "submitReports", [ground.report(n, 2, 5, range(40, 48)).encode() for n in range(20)])
    measured = [registrations.gas / 50, reports.gas / 50, voting.gas / 20, advance.gas]
    await ground.chain.close()
    assert all(gas <= limit * 1.02 for gas, limit in zip(measured, (120_000, 27_600, 106_000, 36_000), strict=True)), (
        measured
    )
    assert artifact()["size"] <= 24_000


async def test_gas_of_sealed_reports_and_of_the_deployment(url: str) -> None:
    ground = await fresh(url, sealed_reports=True)
    await call(ground, "registerPeers", [ground.registration(n).encode() for n in range(50)])
    gas = []
    for round in range(18):  # a peer's first sixteen seals take a slot each, which later ones use again
        reports = [ground.report(n, round) for n in range(50)]
        commit = await call(
            ground, "commitReports", [sign_commit(ground.domain, secret(n), reports[n]).encode() for n in range(50)]
        )
        await call(ground, "updateStageAndRound")
        reveal = await call(ground, "submitReports", [each.encode() for each in reports])
        gas = [commit.gas / 50, reveal.gas / 50]
    deployed = await ground.chain.request(
        "eth_getTransactionReceipt",
        (await ground.chain.request("eth_getBlockByNumber", "0x1", False))["transactions"][0],
    )
    await ground.chain.close()
    assert gas[0] <= 24_000 * 1.02, gas
    assert gas[1] <= 37_000 * 1.02, gas
    assert int(deployed["gasUsed"], 16) <= 4_050_000 * 1.02


async def test_an_rsa_identity_of_hivemind_registers_through_the_gateway(url: str) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    ground = await fresh(url)
    key = rsa.generate_private_key(65537, 2048)
    modulus = key.public_key().public_numbers().n.to_bytes(256)
    unsigned = Registration(CARRIER.address, CARRIER.address, FAR, modulus, b"")
    proof = replace(unsigned, signature=key.sign(unsigned.digest(ground.domain), padding.PKCS1v15(), hashes.SHA256()))
    gateway = ground.gateway()
    (entry,) = await stepped(gateway, [proof])
    state = await ground.coordinator.peer(proof.peer)
    await ground.chain.close()
    assert states([entry]) == ["final"]
    assert proof.peer.startswith("Qm")
    assert state.proven
    assert gateway.sender.counts.gas <= 274_963 * 1.02
