"""Keys are never in an error; the queue loses nothing without counting it."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from chain_crowd import FAR, peer, secret
from eth_account import Account

from swarmgame_chain.errors import BadChainUsage
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.keys import KEY_FILE_VARIABLE, Wallet, load_wallet, new_wallet
from swarmgame_chain.messages import (
    Action,
    ChainState,
    Commit,
    Domain,
    Registration,
    Report,
    address_of,
    sign_commit,
    sign_registration,
    sign_report,
)
from swarmgame_chain.messages.base import MAX_ROUNDS_AHEAD, REPORT_WINDOW
from swarmgame_chain.reader import PeerState, RoundClock, SwarmConfig

DOMAIN = Domain(31337, "0x" + "11" * 20)


def entry(number: int, round: int = 0, reward: int = 1) -> QueuedMessage:
    message = sign_report(DOMAIN, secret(number), peer=peer(number), round=round, reward=reward)
    return QueuedMessage(f"{number}/{round}/{reward}", message)


def test_a_key_comes_from_a_file_a_keystore_or_the_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet = new_wallet(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert load_wallet(tmp_path / "key") == wallet
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "key"))
    assert load_wallet() == wallet
    store = Account.encrypt(wallet.secret, "open sesame", kdf="pbkdf2", iterations=2)
    (tmp_path / "store.json").write_text(json.dumps(store))
    (tmp_path / "passphrase").write_text("open sesame\n")
    assert load_wallet(keystore=tmp_path / "store.json", passphrase_file=tmp_path / "passphrase") == wallet
    with pytest.raises(FileExistsError):
        new_wallet(tmp_path / "key")


def test_a_key_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        new_wallet(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_key_replaces_no_file_where_links_are_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", unsupported)
    wallet = new_wallet(tmp_path / "key")
    with pytest.raises(FileExistsError):
        new_wallet(tmp_path / "key")
    assert load_wallet(tmp_path / "key") == wallet
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_invalid_key_is_an_error_that_never_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    bad, wrong = tmp_path / "bad", tmp_path / "passphrase"
    bad.write_text("f" * 63 + "g")
    wrong.write_text("other")
    (tmp_path / "zero").write_text("0" * 64)
    (tmp_path / "store").write_text(json.dumps(Account.encrypt(secret(1), "right", kdf="pbkdf2", iterations=2)))
    cases = [
        ({}, "no key: give a key file"),
        ({"key_file": tmp_path / "none"}, "cannot be read"),
        ({"key_file": bad}, "holds no key"),
        ({"key_file": tmp_path / "zero"}, "holds no key"),
        ({"key_file": bad, "keystore": bad}, "expected one of them"),
        ({"keystore": tmp_path / "store"}, "without the file of its passphrase"),
        ({"keystore": tmp_path / "store", "passphrase_file": wrong}, "the passphrase is another one"),
        ({"keystore": bad, "passphrase_file": wrong}, "it is no keystore"),
    ]
    for options, message in cases:
        with pytest.raises(BadChainUsage, match=message) as caught:
            load_wallet(**options)
        assert "fff" not in str(caught.value)
    assert secret(1).hex() not in repr(Wallet(secret(1)))


def test_a_full_queue_drops_the_oldest_report_and_counts_it() -> None:
    queue = MessageQueue(capacity=3)
    registration = QueuedMessage("r", sign_registration(DOMAIN, secret(9), deadline=FAR))
    entries = [queue.add(each) for each in (registration, entry(1), entry(2), entry(3))]
    assert [each.state for each in entries] == [
        MessageState.QUEUED,
        MessageState.DROPPED,
        MessageState.QUEUED,
        MessageState.QUEUED,
    ]
    assert queue.ended == {("reports", MessageState.DROPPED, "QueueFull"): 1}
    # Submitted again, it waits like any other.
    assert queue.add(entry(1)).state is MessageState.QUEUED


def test_a_full_queue_drops_the_oldest_report_of_the_peer_that_has_the_most() -> None:
    queue = MessageQueue(capacity=4)
    honest = queue.add(entry(1))
    flood = [queue.add(entry(2, round)) for round in range(3)]
    (taken,) = queue.take(Report, 1)
    assert taken is honest
    queue.give_back([taken])
    queue.add(entry(2, 3))
    assert [each.state for each in flood] == [MessageState.DROPPED, MessageState.QUEUED, MessageState.QUEUED]
    assert honest.state is MessageState.QUEUED


def test_the_same_message_is_one_entry_and_another_about_the_same_is_rejected() -> None:
    queue = MessageQueue()
    first = queue.add(entry(1))
    assert queue.add(entry(1)) is first
    assert queue.add(entry(1, reward=2)).reason == "RewardAlreadySubmitted"
    assert queue.waiting(Report) == 1


def test_a_later_registration_replaces_one_that_waits_but_not_one_that_is_sent() -> None:
    queue = MessageQueue()
    early, late, last = (
        QueuedMessage(str(n), sign_registration(DOMAIN, secret(1), deadline=FAR + n)) for n in range(3)
    )
    queue.add(early)
    queue.add(late)
    assert (early.state, early.reason) == (MessageState.REJECTED, "RegistrationSuperseded")
    (taken,) = queue.take(Registration, 9)
    taken.state = MessageState.SENT
    assert queue.add(last).state is MessageState.REJECTED


def test_what_is_over_stays_over() -> None:
    queue = MessageQueue()
    first = queue.add(entry(1))
    queue.finish(first, MessageState.FINAL)
    queue.finish(first, MessageState.REJECTED, "UnknownPeer")
    queue.give_back([first])
    assert (first.state, first.reason, queue.on_their_way, queue.waiting(Report)) == (MessageState.FINAL, "", 0, 0)


def test_a_message_of_a_peer_that_was_unknown_is_taken_again_once_and_other_refusals_stay() -> None:
    queue = MessageQueue()
    first = queue.add(entry(1))
    queue.finish(first, MessageState.REJECTED, "UnknownPeer")
    second = queue.add(entry(1))
    assert (second.state, queue.get(second.id), queue.waiting(Report)) == (MessageState.QUEUED, second, 1)
    queue.finish(second, MessageState.REJECTED, "InvalidSignature")
    assert queue.add(entry(1)).state is MessageState.REJECTED


def test_one_key_that_fills_the_queue_pushes_out_its_own_messages() -> None:
    queue = MessageQueue(capacity=4)
    entries = [queue.add(each) for each in (entry(1), entry(2, 0), entry(2, 1), entry(2, 2), entry(3), entry(4))]
    assert [each.id for each in entries if each.state is MessageState.DROPPED] == ["2/0/1", "2/1/1"]


def test_messages_of_rounds_that_are_long_over_are_not_admitted() -> None:
    report = entry(1, round=3).message
    commit = Commit(peer(1), 3, bytes(32), bytes(65))
    for message, last in ((report, 3 + REPORT_WINDOW - 1), (commit, 3)):
        end = last + REPORT_WINDOW + MAX_ROUNDS_AHEAD
        config = SwarmConfig(sealed_reports=message is commit)
        assert [message.refusal(config, RoundClock(round, 9, 1)) for round in (3, end, end + 1)] == [
            "",
            "",
            "InvalidRoundNumber",
        ]


@pytest.mark.parametrize(("is_settled", "action"), [(True, Action.DONE), (False, Action.WAIT)])
def test_a_commit_that_is_on_chain_is_not_refused_when_its_round_is_over(is_settled: bool, action: Action) -> None:
    commit = sign_commit(DOMAIN, secret(1), sign_report(DOMAIN, secret(1), peer=peer(1), round=3, reward=1))
    owner = address_of(secret(1))
    before = PeerState(owner, owner, FAR, True, 0, 20, 0, 0, 0, 0)
    after = replace(before, seals=(commit.seal[:28] + (4).to_bytes(4),))
    state = ChainState(DOMAIN, SwarmConfig(sealed_reports=True), 20, 0)
    assert commit.decide(after, after if is_settled else before, state).action is action
    assert commit.decide(before, before, state).reason == "InvalidRoundNumber"
