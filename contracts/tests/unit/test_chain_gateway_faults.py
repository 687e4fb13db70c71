"""A gateway on a node that lags, fails, limits or answers nonsense: nothing ends it, and no message is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from chain_crowd import Ground, peer, running, states, stepped, tester_ground, until
from node_in_front import NodeInFront, Rule, answering, failing, ground_behind, raising

from swarmgame_chain.abi import encode_call
from swarmgame_chain.errors import ChainRefused, ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.gateway import admission, service
from swarmgame_chain.gateway.batcher import Simulation
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.head import Block
from swarmgame_chain.reader import Coordinator


@pytest.mark.parametrize(
    "rule",
    [
        raising(ChainUnreachable("limits requests")),
        raising(failing("internal error")),
        answering("eth_call", "0x"),
        answering("eth_call", "0x" + "ff" * 320),
        answering("eth_call", "0x" + "00" * 31),
        answering("eth_call", failing("header not found")),
        answering("eth_getTransactionCount", failing("missing trie node")),
        answering("eth_getTransactionReceipt", failing("indexing is in progress")),
        answering("eth_sendRawTransaction", failing("the transaction pool is closed")),
        answering("eth_maxPriorityFeePerGas", failing("the method does not exist")),
        answering("eth_getLogs", failing("no logs here")),
        answering("eth_getCode", "0x"),
        answering("eth_chainId", failing("starting")),
    ],
)
async def test_a_node_that_fails_for_a_while_ends_nothing_and_every_message_is_final(rule: Rule) -> None:
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node, ends_rounds=True, quorum=1.0)
    applied: list[str] = []

    def noted(method: str, parameters: Sequence[Any]) -> Any:
        try:
            answer = rule(method, parameters)
        except (ChainUnreachable, RpcError):
            applied.append(method)
            raise
        if answer is not None:
            applied.append(method)
        return answer

    async with running(gateway):
        node.rule = noted
        # It checks the chain and the contract again.
        gateway.problem = "the node does not answer"
        gateway._awake.set()
        submitted: list[Any] = []
        for number in range(3):
            try:
                submitted += await gateway.submit([ground.report(number, 0, 1)])
            except (ChainUnreachable, RpcError):
                continue
        await until(lambda: bool(applied))
        node.rule = lambda method, parameters: None
        for number in range(3):
            gateway._awake.set()
            await until_taken(gateway, ground, number)
        await until(lambda: gateway.queue.on_their_way == 0)
    assert [state.total_reward for state in await ground.coordinator.peers([peer(n) for n in range(3)])] == [1] * 3
    assert "rejected" not in " ".join(states(submitted))


async def until_taken(gateway: Any, ground: Ground, number: int) -> None:
    """Submit a report until the gateway takes it, as a peer does."""
    async with asyncio.timeout(60):
        while True:
            try:
                await gateway.submit([ground.report(number, 0, 1)])
            except (ChainUnreachable, RpcError):
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_machine_that_lags_makes_no_decision() -> None:
    """Behind one address, a second machine that does not know of the registrations yet."""
    ground, node = await ground_behind()
    old = int(await ground.chain.request("eth_blockNumber"), 16) - 1
    gateway = ground.gateway(chain=node)
    await gateway.start()
    await gateway.step()
    behind = await ground.chain.request("eth_getBlockByNumber", hex(old), False)
    node.rule = answering("eth_getBlockByNumber", behind)
    entries = await gateway.submit([ground.report(n, 0, 1) for n in range(3)])
    with pytest.raises(ChainUnreachable, match="the node is behind"):
        await gateway.step()
    assert states(entries) == ["queued"] * 3  # type: ignore[arg-type]
    node.rule = lambda method, parameters: None
    await stepped(gateway)
    assert states(entries) == ["final"] * 3  # type: ignore[arg-type]


async def test_what_a_step_reads_is_of_one_block() -> None:
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node, confirmations=1)
    tags: list[str] = []

    def note(method: str, parameters: Sequence[Any]) -> None:
        if method == "eth_call":
            tags.append(parameters[1])

    await gateway.start()
    await gateway.submit([ground.report(n, 0, 1) for n in range(3)])
    node.rule = note
    head = await ground.chain.request("eth_blockNumber")
    await gateway.step()
    assert set(tags) == {head}
    assert len(tags) == 6  # the contract's clock, three peers, one simulation


async def test_an_idle_step_asks_for_the_head_only_and_a_new_block_for_three_calls_more() -> None:
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node, ends_rounds=True)
    await gateway.start()
    await gateway.step()
    # A report of a later round waits, and is judged once.
    await gateway.submit([ground.report(0, 4, 1)])
    await gateway.step()
    node.calls.clear()
    for _ in range(5):
        await gateway.step()
    assert node.calls == {"eth_getBlockByNumber": 5}
    node.calls.clear()
    ground.chain.tester.mine_block()  # type: ignore[attr-defined]
    await gateway.step()
    assert node.calls == {"eth_getBlockByNumber": 1, "eth_call": 2, "eth_getLogs": 1}


async def test_a_message_on_which_the_node_fails_waits_while_the_others_are_sent() -> None:
    ground, node = await ground_behind()
    poison = ground.report(1, 0, 1)
    marked = poison.signature.hex()

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        failed = method == "eth_call" and marked in parameters[0]["data"]
        return failing("the machine crashed") if failed else None

    node.rule = rule
    gateway = ground.gateway(chain=node)
    entries = await stepped(gateway, [ground.report(0, 0, 1), poison, ground.report(2, 0, 1)], most=8)
    assert states(entries) == ["final", "queued", "final"]
    node.rule = lambda method, parameters: None
    ground.chain.tester.mine_block()  # type: ignore[attr-defined]
    for _ in range(3):
        await gateway.step()
    assert states(entries) == ["final"] * 3


@pytest.mark.parametrize(
    ("method", "refusal"),
    [
        ("eth_sendRawTransaction", failing("exceeds block gas limit")),
        ("eth_sendRawTransaction", failing("tx fee (1.20 ether) exceeds the configured cap (1.00 ether)")),
        ("eth_sendRawTransaction", RequestTooLarge("the node answers with HTTP status 413")),
        ("eth_call", failing("gas required exceeds allowance")),
        ("eth_call", RequestTooLarge("the node answers with HTTP status 413")),
    ],
    ids=str,
)
async def test_a_limit_of_transactions_is_found_by_halving_and_remembered(method: str, refusal: Exception) -> None:
    ground = await tester_ground()
    node = NodeInFront(ground.chain)
    three = len(encode_call("registerPeers", [ground.registration(n).encode() for n in range(3)])) + 200
    refusals = 0

    def rule(each: str, parameters: Sequence[Any]) -> Any:
        nonlocal refusals
        if each != method:
            return None
        sent = parameters[0] if method == "eth_sendRawTransaction" else parameters[0]["data"]
        if len(sent) // 2 <= three:
            return None
        refusals += 1
        if isinstance(refusal, RpcError):
            return refusal
        raise refusal

    node.rule = rule
    gateway = ground.gateway(chain=node)
    assert states(await stepped(gateway, [ground.registration(n) for n in range(12)])) == ["final"] * 12
    assert refusals == 2, "twelve and six are too many, three are not"
    assert states(await stepped(gateway, [ground.registration(n) for n in range(12, 16)])) == ["final"] * 4
    assert refusals == 2


async def test_messages_whose_transactions_revert_are_rejected_after_three_the_last_ones_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ground, node = await ground_behind()
    name = "0x" + "ab" * 32
    failed = {"transactionHash": name, "blockNumber": "0x1", "status": "0x0", "gasUsed": "0x5208"}
    sent = 0

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        nonlocal sent
        if method == "eth_sendRawTransaction":
            sent += 1
            return name
        return failed if method == "eth_getTransactionReceipt" else None

    node.rule = rule
    gateway = ground.gateway(chain=node)
    await gateway.start()
    entries = [
        e for e in await gateway.submit([ground.report(n, 0, 1) for n in range(3)]) if isinstance(e, QueuedMessage)
    ]
    for _ in range(8):
        await gateway.step()
        ground.chain.tester.mine_block()  # type: ignore[attr-defined]
    assert states(entries) == ["rejected TransactionReverted"] * 3
    assert sent == 7, "all together, then each one twice"
    assert "a transaction with 3 reports reverted; it was paid for" in caplog.text


async def test_peers_that_are_invented_cost_the_node_a_bounded_number_of_calls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "LOOKUPS_PER_MINUTE", 20)
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node)
    await gateway.start()
    now = [0.0]
    gateway._admission = admission.Admission(gateway.coordinator, gateway.queue, 100, clock=lambda: now[0])
    known = [ground.report(n, 0, 1) for n in range(3)]
    assert states(await gateway.submit([known[0]])) == ["queued"]  # type: ignore[arg-type]
    node.calls.clear()
    invented = [ground.report(n, 0, 1) for n in range(10, 20)]
    assert states(await gateway.submit(invented)) == ["rejected UnknownPeer"] * 10  # type: ignore[arg-type]
    for _ in range(5):
        with pytest.raises(ChainUnreachable, match="send them again later"):
            await gateway.submit(invented)
    assert node.calls == {"eth_call": 10}
    assert caplog.text.count("more than 20 peers a minute whose signer is not known") == 1
    # A signer that is remembered costs nothing, and a minute later there is room again.
    assert states(await gateway.submit([ground.report(0, 1, 1)])) == ["queued"]  # type: ignore[arg-type]
    now[0] = 60.0
    assert states(await gateway.submit(known[1:])) == ["queued"] * 2  # type: ignore[arg-type]


async def test_one_address_that_invents_peers_takes_no_lookups_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOKUPS_PER_CLIENT", 20)
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node)
    await gateway.start()
    invented = [ground.report(n, 0, 1) for n in range(10, 20)]
    for _ in range(2):
        await gateway.submit(invented, "192.0.2.1")
    with pytest.raises(ChainUnreachable, match="send them again later"):
        await gateway.submit(invented, "192.0.2.1")
    assert states(await gateway.submit([ground.report(0, 0, 1)], "192.0.2.2")) == ["queued"]  # type: ignore[arg-type]


async def test_messages_whose_transaction_is_not_answered_are_sent_once() -> None:
    ground, node = await ground_behind()
    sent = 0

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        nonlocal sent
        if method == "eth_sendRawTransaction":
            sent += 1
            raise ChainUnreachable("the node does not answer: TimeoutError")
        return None

    node.rule = rule
    gateway = ground.gateway(chain=node)
    entries = await stepped(gateway, [ground.report(n, 0, 1) for n in range(3)], most=8)
    assert (states(entries), sent, gateway.sender.in_flight) == (["sent"] * 3, 1, 1)


async def test_the_wait_after_a_failure_is_not_cut_short_by_what_is_submitted() -> None:
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node, interval=0.1)
    async with running(gateway):
        node.rule = raising(ChainUnreachable("the node answers with HTTP status 429"))
        for _ in range(60):
            gateway._awake.set()
            await asyncio.sleep(0.01)
    # Waits of 0.2 and 0.4 seconds; one step may fail before the first.
    assert 1 <= gateway.failures <= 3


async def test_a_machine_that_lags_and_has_no_contract_yet_is_one_that_lags() -> None:
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node)
    await gateway.start()
    behind = await ground.chain.request("eth_getBlockByNumber", "0x1", False)
    node.rule = lambda method, _: {"eth_getBlockByNumber": behind, "eth_getCode": "0x"}.get(method)
    with pytest.raises(ChainUnreachable, match="the node is behind"):
        await gateway.start()


async def test_a_contract_that_is_missing_once_does_not_end_a_running_gateway_and_a_missing_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "REFUSED_SECONDS", 0.1)
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node)
    missing = 2

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        nonlocal missing
        if method == "eth_getCode" and missing:
            missing -= 1
            return "0x"
        return None

    await gateway.start()
    node.rule = rule
    gateway.problem = "the node does not answer"
    task = asyncio.create_task(gateway.run())
    await until(lambda: missing == 0 and gateway.ready)
    missing = 99
    gateway.problem = "the node does not answer"
    gateway._awake.set()
    with pytest.raises(ChainRefused, match="there is no contract"):
        async with asyncio.timeout(30):
            await task


async def test_failures_and_calls_are_counted_and_an_outage_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    from swarmgame_chain.gateway.metrics import render

    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node)
    async with running(gateway):
        node.rule = raising(ChainUnreachable("the node limits requests: slow down"))
        gateway._awake.set()
        await until(lambda: gateway.failures >= 3)
        node.rule = lambda method, parameters: None
        await until(lambda: gateway.ready)
    assert caplog.text.count("the chain does not answer as it should; messages wait: the node limits requests") == 1
    metrics = render(gateway).decode()
    assert f"swarmgame_gateway_node_failures_total {gateway.failures}.0" in metrics
    assert 'swarmgame_gateway_node_calls_total{method="eth_getBlockByNumber"}' in metrics


def test_a_message_is_taken_once_a_block() -> None:
    from swarmgame_chain.gateway.queue import MessageQueue
    from swarmgame_chain.messages import Domain, Report, sign_report

    queue, domain = MessageQueue(), Domain(31337, "0x" + "11" * 20)
    signed = [sign_report(domain, bytes(31) + b"\x07", peer=peer(1), round=round, reward=1) for round in (0, 5)]
    present, later = (queue.add(QueuedMessage(str(each.round), each)) for each in signed)
    assert queue.take(Report, 9, "0xa", 0) == [present, later]
    for entry in (present, later):
        entry.judged_at, entry.waited_in = "0xa", 0
    queue.give_back([present, later])
    assert queue.take(Report, 9, "0xa", 0) == []
    assert queue.take(Report, 9, "0xb", 0) == [present]
    assert queue.take(Report, 9, "0xb", 1) == [later]


async def test_a_message_that_one_block_refuses_is_tried_again_in_the_next_block_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground, node = await ground_behind()
    gateway = ground.gateway(chain=node)
    calls: list[str] = []

    async def refuse(chain: Any, sender: str, contract: str, entries: Any, size: Any, block: str) -> Simulation:
        calls.append(block)
        return Simulation(None, tuple((entry, "InvalidSignature") for entry in entries), ())

    await gateway.start()
    (entry,) = await gateway.submit([ground.report(0, 0)])
    with monkeypatch.context() as patch:
        patch.setattr(service, "simulate", refuse)
        for _ in range(4):
            await gateway.step()
    assert len(calls) == 1
    assert states([entry]) == ["queued"]  # type: ignore[list-item]
    await ground.chain.request("evm_mine")
    assert states(await stepped(gateway, [ground.report(1, 0)])) == ["final"]
    assert states([entry]) == ["final"]  # type: ignore[list-item]


async def test_a_peer_that_many_messages_name_is_read_once_in_each_block() -> None:
    ground, node = await ground_behind()
    await stepped(ground.gateway(), [ground.report(0, 0, 7)])
    number = int(await ground.chain.request("eth_blockNumber"), 16)
    coordinator = Coordinator(node, ground.domain)
    named = [peer(0), peer(1), peer(0), peer(9), peer(0)]
    newest, settled = await coordinator.newest_and_settled(named, 2, Block(number, "0x", 0))
    assert [state.total_reward for state in newest] == [7, 0, 7, 0, 7]
    assert [state.total_reward for state in settled] == [0] * 5
    assert [state.known for state in settled] == [True, True, True, False, True]
    assert node.calls["eth_call"] == 3 + 2
