"""The gateway against the contract, on an Ethereum machine in this process."""

from __future__ import annotations

import dataclasses

import pytest
from chain_crowd import CARRIER, FAR, Ground, peer, secret, states, stepped, tester_ground
from eth_abi.abi import encode

from swarmgame_chain.deploy import Receipt, manage
from swarmgame_chain.errors import ChainRefused, RpcError
from swarmgame_chain.gateway.batcher import BYTES_TARGET, GAS_TARGET, cut, simulate
from swarmgame_chain.gateway.queue import MessageState, QueuedMessage
from swarmgame_chain.messages import Domain, SignedMessage, address_of, sign_commit, sign_registration, sign_report
from swarmgame_chain.reader import EventCursor


async def call(ground: Ground, name: str, *arguments: object) -> Receipt:
    return await manage(ground.chain, CARRIER, ground.domain.contract, name, *arguments)


async def test_bad_messages_are_rejected_with_a_reason_and_the_others_are_final() -> None:
    ground = await tester_ground(max_reward=1_000)
    gateway = ground.gateway()
    late = sign_registration(ground.domain, secret(20), deadline=1)
    forged = dataclasses.replace(ground.registration(21), owner=address_of(secret(99)))
    abroad = sign_registration(Domain(1, ground.domain.contract), secret(22), deadline=FAR)
    elsewhere = sign_registration(Domain(ground.domain.chain_id, "0x" + "55" * 20), secret(23), deadline=FAR)
    good = [ground.registration(n) for n in range(3)]
    entries = await stepped(gateway, [good[0], late, forged, good[1], abroad, elsewhere, good[2], good[0]])
    assert states(entries) == [
        "final",
        "rejected RegistrationExpired",
        "rejected InvalidSignature",
        "final",
        "rejected InvalidSignature",
        "rejected InvalidSignature",
        "final",
        "final",
    ]
    reports: list[SignedMessage] = [
        ground.report(0, 0, 2**255 - 1, [0, 1]),
        ground.report(1, 0, -(2**255)),
        ground.report(50, 0),
        dataclasses.replace(ground.report(2, 0), reward=6),
        ground.report(0, 0, 3),
        ground.report(2, 1_000),
        ground.report(2, 0, 4, [77]),
    ]
    entries = await stepped(gateway, reports)
    assert states(entries) == [
        "final",
        "final",
        "rejected UnknownPeer",
        "rejected InvalidSignature",
        "rejected RewardAlreadySubmitted",
        "rejected TooEarly",
        "final",
    ]
    peers = await ground.coordinator.peers([peer(n) for n in range(3)])
    assert [state.total_reward for state in peers] == [1_000, -1_000, 4]
    # The self-vote of 0 did not count, its vote for 1 did.
    assert [state.total_wins for state in peers] == [0, 1, 0]


async def test_a_restarted_gateway_reads_from_the_chain_what_was_done() -> None:
    ground = await tester_ground()
    first: list[SignedMessage] = [ground.registration(1), ground.registration(2)]
    await stepped(ground.gateway(), first)
    reports: list[SignedMessage] = [ground.report(1, 0, 5), ground.report(2, 0, 5)]
    await stepped(ground.gateway(), reports)
    sent = ground.gateway()
    assert states(await stepped(sent, [*first, *reports, ground.report(1, 0, 6)])) == [
        "final",
        "final",
        "final",
        "final",
        "rejected RewardAlreadySubmitted",
    ]
    assert sent.sender.counts.sent == 0


async def test_a_message_that_another_account_carried_first_is_final_too() -> None:
    ground = await tester_ground()
    gateway = ground.gateway()
    await gateway.start()
    registration = ground.registration(1)
    (entry,) = await gateway.submit([registration])
    await call(ground, "registerPeers", [registration.encode()])
    await stepped(gateway)
    assert isinstance(entry, QueuedMessage)
    assert states([entry]) == ["final"]
    assert gateway.sender.counts.sent == 0


async def test_a_proof_displaces_a_squatter_and_a_later_registration_changes_the_signer() -> None:
    ground = await tester_ground()
    await call(ground, "registerPeer", peer(1))
    await call(ground, "submitReward", 0, 0, 500, peer(1))
    assert (await ground.coordinator.peer(peer(1))).total_reward == 500
    rotated = sign_registration(ground.domain, secret(1), deadline=FAR + 1, signer=address_of(secret(7)))
    gateway = ground.gateway()
    assert states(await stepped(gateway, [ground.registration(1)])) == ["final"]
    state = await ground.coordinator.peer(peer(1))
    assert (state.proven, state.total_reward, int(state.owner, 16)) == (True, 0, int(address_of(secret(1)), 16))
    assert states(await stepped(gateway, [rotated])) == ["final"]
    old, new = ground.report(1, 0), sign_report(ground.domain, secret(7), peer=peer(1), round=0, reward=1)
    assert states(await stepped(gateway, [old])) == ["rejected InvalidSignature"]
    assert states(await stepped(gateway, [new])) == ["final"]
    assert await ground.coordinator.proven([peer(1), peer(2)]) == {peer(1)}


async def test_a_report_whose_registration_expired_is_taken_after_the_next_registration() -> None:
    ground = await tester_ground()
    gateway = ground.gateway()
    await gateway.start()
    report = ground.report(1, 0)
    first = QueuedMessage(report.id(ground.domain), report)
    gateway.queue.finish(gateway.queue.add(first), MessageState.REJECTED, "UnknownPeer")
    assert states(await stepped(gateway, [ground.registration(1), report])) == ["final", "final"]


async def test_a_sealed_swarm_commits_then_opens() -> None:
    ground = await tester_ground(sealed_reports=True)
    gateway = ground.gateway(ends_rounds=True, interval=0.0, quorum=1.0)
    await stepped(gateway, [ground.registration(n) for n in range(3)])
    reports = [ground.report(n, 0, n + 1) for n in range(3)]
    commits = [sign_commit(ground.domain, secret(n), reports[n]) for n in range(3)]
    entries = await stepped(gateway, [*reports, *commits], most=20)
    assert set(states(entries)) == {"final"}
    assert await ground.coordinator.round() == 1
    assert [state.total_reward for state in await ground.coordinator.peers([peer(n) for n in range(3)])] == [1, 2, 3]
    changed = ground.report(0, 0, 9)
    assert states(await stepped(gateway, [changed])) == ["rejected RewardAlreadySubmitted"]
    assert states(await stepped(gateway, [ground.report(0, 1, 9)], most=2)) == ["queued"]


async def test_a_round_waits_for_the_commit_of_a_report_that_arrives_first() -> None:
    ground = await tester_ground(sealed_reports=True)
    gateway = ground.gateway(ends_rounds=True, interval=0.0, quorum=1.0)
    await stepped(gateway, [ground.registration(n) for n in range(2)])
    reports = [ground.report(n, 0, n + 1) for n in range(2)]
    commits = [sign_commit(ground.domain, secret(n), reports[n]) for n in range(2)]
    await stepped(gateway, [*reports, commits[0]], most=8)
    assert await ground.coordinator.round() == 0
    entries = await stepped(gateway, [*reports, *commits], most=20)
    assert states(entries) == ["final"] * 4
    assert await ground.coordinator.round() == 1


async def test_a_sealed_swarm_that_has_run_ahead_of_its_chain_loses_no_report() -> None:
    """Three peers submit all messages of five rounds at once: each round stays open until the messages that only this
    round takes have been taken.
    """
    ground, rounds = await tester_ground(sealed_reports=True), 5
    gateway = ground.gateway(ends_rounds=True, interval=0.0, quorum=0.6)
    await stepped(gateway, [ground.registration(n) for n in range(3)])
    reports = [ground.report(n, round, n + round) for round in range(rounds) for n in range(3)]
    commits = [
        sign_commit(ground.domain, secret(n), reports[3 * round + n]) for round in range(rounds) for n in range(3)
    ]
    entries = await stepped(gateway, [*reports, *commits], most=80)
    assert states(entries) == ["final"] * (6 * rounds)
    assert await ground.coordinator.round() == rounds
    assert [state.total_reward for state in await ground.coordinator.peers([peer(n) for n in range(3)])] == [10, 15, 20]


async def test_early_commits_that_waited_for_the_registration_are_taken_before_their_rounds_end() -> None:
    ground, rounds = await tester_ground(sealed_reports=True), 5
    gateway = ground.gateway(ends_rounds=True, interval=0.0, quorum=0.6)
    reports = [ground.report(n, round) for round in range(rounds) for n in range(2)]
    commits = [sign_commit(ground.domain, secret(index % 2), report) for index, report in enumerate(reports)]
    registrations: list[SignedMessage] = [ground.registration(n) for n in range(2)]
    entries = await stepped(gateway, [*registrations, *reports, *commits], most=60)
    assert states(entries) == ["final"] * (2 + 4 * rounds)


async def test_reports_of_a_peer_count_whatever_order_they_arrive_in() -> None:
    ground = await tester_ground()
    await call(ground, "advanceTo", 3)
    gateway = ground.gateway()
    await stepped(gateway, [ground.registration(n) for n in range(2)])
    newest_first = [ground.report(n, round, 1 + round) for round in (3, 1, 2, 0) for n in range(2)]
    entries = await stepped(gateway, newest_first, most=40)
    assert states(entries) == ["final"] * 8
    assert [state.total_reward for state in await ground.coordinator.peers([peer(0), peer(1)])] == [10, 10]


async def test_the_round_ends_by_quorum_and_stays_open_while_the_swarm_is_idle() -> None:
    ground = await tester_ground()
    gateway = ground.gateway(ends_rounds=True, interval=0.0, quorum=0.6)
    await stepped(gateway, [ground.registration(n) for n in range(4)])
    for _ in range(3):
        await gateway.step()
    assert await ground.coordinator.round() == 0
    await stepped(gateway, [ground.report(n, 0) for n in range(2)])
    await gateway.step()
    assert await ground.coordinator.round() == 0
    # A report for round 1 waits until the quorum of round 0 has ended it, and is then final.
    entries = await stepped(gateway, [ground.report(2, 0), ground.report(3, 1)])
    assert states(entries) == ["final", "final"]
    assert await ground.coordinator.round() == 1


async def test_whoever_carries_a_later_report_first_erases_no_earlier_one() -> None:
    ground = await tester_ground()
    await call(ground, "advanceTo", 2)
    gateway = ground.gateway()
    await stepped(gateway, [ground.registration(1)])
    early, late = ground.report(1, 0, 3, [2]), ground.report(1, 2, 4)
    await call(ground, "submitReports", [late.encode()])
    assert states(await stepped(ground.gateway(), [early, late])) == ["final", "final"]
    state = await ground.coordinator.peer(peer(1))
    assert (state.total_reward, state.last_reported) == (7, 2)
    assert [state.has_reported(round) for round in (0, 1, 2, 3)] == [True, False, True, False]


async def test_a_swarm_that_is_faster_than_its_chain_loses_no_report() -> None:
    """Sixty rounds of three peers between two blocks; a fourth peer is registered and silent."""
    ground, rounds = await tester_ground(), 60
    gateway = ground.gateway(ends_rounds=True, interval=0.0, quorum=0.67)
    await stepped(gateway, [ground.registration(n) for n in range(4)])
    reports = [ground.report(n, round, 1) for round in range(rounds) for n in range(3)]
    entries = await stepped(gateway, reports, most=20)
    assert states(entries) == ["final"] * (3 * rounds)
    assert await ground.coordinator.round() <= rounds
    assert [state.total_reward for state in await ground.coordinator.peers([peer(n) for n in range(4)])] == [
        60,
        60,
        60,
        0,
    ]
    assert gateway.sender.counts.sent <= 12


async def test_a_chain_that_is_far_behind_its_swarm_catches_up() -> None:
    ground = await tester_ground()
    gateway = ground.gateway(ends_rounds=True, interval=0.0)
    await stepped(gateway, [ground.registration(1)])
    forged = dataclasses.replace(ground.report(1, 9_000), reward=6)
    for _ in range(12):
        entries = await stepped(gateway, [ground.report(1, 600, 1), forged])
        await gateway.step()
    assert states(entries) == ["final", "rejected InvalidSignature"]
    assert await ground.coordinator.round() == 601


async def test_the_same_accounts_with_another_deadline_are_registered_already() -> None:
    ground = await tester_ground()
    gateway = ground.gateway()
    await stepped(gateway, [ground.registration(1)])
    sent = gateway.sender.counts.sent
    for deadline in (FAR - 3_600, FAR + 3_600):
        assert states(await stepped(gateway, [ground.registration(1, deadline)])) == ["final"]
    assert gateway.sender.counts.sent == sent
    too_long = ground.registration(2, FAR + 30 * 24 * 3_600)
    assert states(await stepped(gateway, [too_long])) == ["rejected RegistrationTooLong"]


async def test_a_peer_cannot_report_rounds_long_before_its_registration() -> None:
    ground = await tester_ground()
    await call(ground, "advanceTo", 60)
    gateway = ground.gateway()
    await stepped(gateway, [ground.registration(1)])
    entries = await stepped(gateway, [ground.report(1, round, 1_000) for round in range(40, 61)])
    assert states(entries) == ["rejected InvalidRoundNumber"] * 12 + ["final"] * 9


async def test_a_sealed_report_is_opened_several_rounds_later_and_after_a_pause() -> None:
    ground = await tester_ground(sealed_reports=True)
    gateway = ground.gateway()
    await stepped(gateway, [ground.registration(1)])
    reports = [ground.report(1, round, 5) for round in range(3)]
    commits = [sign_commit(ground.domain, secret(1), each) for each in reports]
    assert states(await stepped(gateway, commits)) == ["final"] * 3
    await call(ground, "pause")
    await call(ground, "unpause")
    await call(ground, "advanceTo", 8)
    assert states(await stepped(ground.gateway(), reports)) == ["final"] * 3
    assert states(await stepped(ground.gateway(), commits)) == ["final"] * 3
    assert (await ground.coordinator.peer(peer(1))).total_reward == 15


async def test_a_paused_contract_keeps_messages_waiting() -> None:
    ground = await tester_ground()
    gateway = ground.gateway()
    await gateway.start()
    await call(ground, "pause")
    (entry,) = await gateway.submit([ground.registration(1)])
    with pytest.raises(Exception, match="EnforcedPause"):
        await gateway.step()
    assert isinstance(entry, QueuedMessage)
    assert states([entry]) == ["queued"]
    await call(ground, "unpause")
    assert states(await stepped(gateway, [ground.registration(2)])) == ["final"]
    assert states([entry]) == ["final"]


async def test_a_cursor_yields_each_event_once() -> None:
    ground = await tester_ground()
    cursor = EventCursor(ground.coordinator, names=("PeerProven", "RoundAdvanced"))
    await stepped(ground.gateway(), [ground.registration(n) for n in range(3)])
    new, removed = await cursor.poll()
    assert sorted(event.values["peerId"] for event in new) == sorted(peer(n) for n in range(3))
    assert removed == []
    assert await cursor.poll() == ([], [])
    await call(ground, "updateStageAndRound")
    new, _ = await cursor.poll()
    assert [event.name for event in new] == ["RoundAdvanced"]
    assert new[0].values["newRoundNumber"] == 1


async def test_bootnodes_are_read_from_the_chain() -> None:
    ground = await tester_ground()
    nodes = ["/ip4/10.0.0.1/tcp/31000/p2p/" + peer(1)]
    await call(ground, "setBootnodes", nodes)
    assert await ground.coordinator.bootnodes() == tuple(nodes)
    with pytest.raises(ChainRefused, match="InvalidBootnode"):
        await call(ground, "setBootnodes", ["x" * 257])


async def test_a_transaction_is_cut_by_gas_bytes_and_count() -> None:
    ground = await tester_ground()
    entries = [QueuedMessage(str(n), ground.registration(n % 4)) for n in range(300)]
    chosen, left = cut(entries)
    assert (len(chosen) + len(left), len(chosen) <= 120) == (300, True)
    assert len(chosen) * 119_600 < GAS_TARGET
    voting = [QueuedMessage(str(n), ground.report(1, 0, 1, range(2, 10))) for n in range(300)]
    chosen, _ = cut(voting)
    assert len(chosen) * (480 + 8 * 128) <= BYTES_TARGET


async def test_a_message_that_has_failed_twice_is_sent_alone() -> None:
    ground = await tester_ground()
    entries = [QueuedMessage(str(n), ground.report(n % 4, 0, 1)) for n in range(6)]
    entries[2].attempts = 2
    sizes = []
    left = entries
    while left:
        chosen, left = cut(left)  # type: ignore[assignment]
        sizes.append(len(chosen))
    assert sizes == [2, 1, 3]


class ExpensiveNode:
    """A node on which a call needs more gas than any that was measured."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.limits: list[int] = []

    async def request_all(self, calls: list[tuple[str, tuple[dict[str, str], str]]]) -> list[object]:
        call = calls[0][1][0]
        self.limits.append(int(call["gas"], 16))
        if self.limits[-1] < self.needed:
            return [RpcError(-32000, "out of gas: gas required exceeds allowance")]
        entries = (len(call["data"]) - 2) // 2 // 416
        return ["0x" + (encode(["bytes4[]"], [[bytes(4)] * entries])).hex()]


@pytest.mark.parametrize(("needed", "outcome"), [(1_000_000, "sent"), (20_000_000, "OutOfGas")])
async def test_a_message_that_is_too_expensive_does_not_block_the_others(needed: int, outcome: str) -> None:
    ground = await tester_ground()
    entries = [QueuedMessage(str(n), ground.registration(n)) for n in range(2)]
    node = ExpensiveNode(needed)
    simulation = await simulate(node, CARRIER.address, ground.domain.contract, entries)  # type: ignore[arg-type]
    if outcome == "sent":
        assert simulation.batch is not None
        assert (simulation.batch.entries, simulation.left) == ((entries[0],), (entries[1],))
    else:
        assert (simulation.refused, simulation.left) == (((entries[0], "OutOfGas"),), (entries[1],))
    assert node.limits[-1] == 16_777_216
