"""The messages of a peer that are not over: in order, bounded, and none lost without being counted."""

from __future__ import annotations

import pytest
from chain_crowd import peer, secret

from swarmgame_chain.messages import Commit, Domain, Registration, Report, sign_registration, sign_report
from swarmgame_chain.pending import PendingMessages

DOMAIN = Domain(31337, "0x" + "11" * 20)


def registration() -> Registration:
    return sign_registration(DOMAIN, secret(1), deadline=99)


def report(round: int) -> Report:
    return sign_report(DOMAIN, secret(1), peer=peer(1), round=round, reward=1)


def test_a_full_buffer_drops_the_oldest_report_and_never_the_registration() -> None:
    pending = PendingMessages(capacity=3)
    for number, message in enumerate((registration(), *map(report, range(4)))):
        pending.add(str(number), message)
    assert [each.id for each in pending.messages] == ["0", "3", "4"]
    assert pending.dropped == 2


def test_a_message_ends_once_and_an_answer_after_its_drop_does_not_count() -> None:
    pending = PendingMessages(capacity=1)
    pending.add("a", report(0))
    (first,) = pending.to_submit(Report)
    assert pending.to_submit(Commit) == []
    pending.apply(first, {"state": "queued"})
    assert pending.to_submit(Report) == []
    assert pending.in_transit() == [first]
    pending.add("b", report(1))
    pending.apply(first, {"state": "final"})
    (second,) = pending.to_submit(Report)
    pending.apply(second, {"state": "rejected", "reason": "SealMismatch"})
    pending.apply(second, {"state": "final"})
    assert (pending.final, pending.dropped, pending.rejected_count, pending.rejected) == (0, 1, 1, "SealMismatch")


def test_a_report_ahead_of_the_chain_waits_at_its_peer_and_keeps_later_ones_back() -> None:
    pending = PendingMessages()
    for round in range(4):
        pending.add(str(round), report(round))
    line = pending.to_submit(Report)
    assert [each.id for each in line] == ["0", "1", "2", "3"]
    for each, answer in zip(line, ("queued", "queued", "rejected", "rejected"), strict=True):
        pending.apply(each, {"state": answer, "reason": "TooEarly" if answer == "rejected" else ""})
    # The first of them shows when the gateway takes more.
    assert [each.id for each in pending.to_submit(Report)] == ["2"]
    assert (pending.rejected_count, len(pending)) == (0, 4)
    pending.apply(line[2], {"state": "queued"})
    assert [each.id for each in pending.to_submit(Report)] == ["3"]


def test_later_reports_are_submitted_when_the_early_one_was_dropped() -> None:
    pending = PendingMessages(capacity=2)
    pending.add("5", report(5))
    pending.apply(pending.to_submit(Report)[0], {"state": "rejected", "reason": "TooEarly"})
    for round in (6, 7):
        pending.add(str(round), report(round))
    assert (pending.dropped, [each.id for each in pending.to_submit(Report)]) == (1, ["6", "7"])


@pytest.mark.parametrize("reason", ["RegistrationExpired", "RegistrationTooLong", "RegistrationSuperseded"])
def test_a_registration_that_was_not_taken_in_time_or_before_another_is_signed_again(reason: str) -> None:
    pending = PendingMessages()
    pending.add("r", registration())
    (first,) = pending.to_submit(Registration)
    pending.apply(first, {"state": "rejected", "reason": reason})
    assert (pending.needs_registration, pending.rejected_count, len(pending)) == (True, 0, 0)


def test_a_report_of_a_peer_that_the_chain_does_not_know_waits_for_a_registration() -> None:
    pending = PendingMessages()
    pending.add("r", registration())
    pending.add("0", report(0))
    (sent,) = pending.to_submit(Report)
    pending.apply(sent, {"state": "rejected", "reason": "UnknownPeer"})
    assert not pending.needs_registration, "one is pending"
    pending.apply(pending.to_submit(Registration)[0], {"state": "final"})
    pending.apply(sent, {"state": "rejected", "reason": "UnknownPeer"})
    assert (pending.needs_registration, pending.rejected_count, len(pending)) == (True, 0, 1)


def test_a_registration_that_a_gateway_takes_later_is_submitted_again() -> None:
    pending = PendingMessages()
    pending.add("r", registration())
    (first,) = pending.to_submit(Registration)
    pending.apply(first, {"state": "rejected", "reason": "TooManyRegistrations"})
    assert pending.to_submit(Registration) == [first]
    assert (pending.rejected_count, pending.registered) == (0, False)
    pending.apply(first, {"state": "final"})
    assert (pending.final, pending.registered, len(pending)) == (1, True, 0)
