"""One transaction at a time: what is sent is waited for, whatever the node answers, and its fees are bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from chain_crowd import CARRIER, tester_chain
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes
from node_in_front import NULL, NodeInFront, answering, failing
from typer.testing import CliRunner

from swarmgame_chain import deploy as deploying
from swarmgame_chain.cli import app
from swarmgame_chain.deploy import FeeCaps, deploy, manage
from swarmgame_chain.errors import ChainRefused, ChainUnreachable, RequestTooLarge
from swarmgame_chain.gateway.pod import DEV_SECRET, PodSettings, make_ready
from swarmgame_chain.gateway.sender import GWEI
from swarmgame_chain.keys import Wallet
from swarmgame_chain.reader import Coordinator, SwarmConfig


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "_POLL_SECONDS", 0.05)


@pytest.mark.parametrize("text", ["already known", "nonce too low: next nonce 1", ""])
async def test_a_transaction_that_arrived_is_waited_for_whatever_the_node_answers(text: str) -> None:
    """An empty text: the node does not answer at all."""
    node = NodeInFront(await tester_chain())

    async def request(method: str, *parameters: Any) -> Any:
        answer = await NodeInFront.request(node, method, *parameters)
        if method == "eth_sendRawTransaction":
            node.request = usual  # type: ignore[method-assign]
            node.rule = answering(method, failing("already known"))
            raise failing(text) if text else ChainUnreachable("the node does not answer: TimeoutError")
        return answer

    usual = node.request
    node.request = request  # type: ignore[method-assign]
    domain, _ = await deploy(node, CARRIER, SwarmConfig())
    await Coordinator(node, domain).check()


async def test_an_unanswered_transaction_that_did_not_arrive_is_sent_again() -> None:
    node, lost = NodeInFront(await tester_chain()), 2

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        nonlocal lost
        if method == "eth_sendRawTransaction" and lost:
            lost -= 1
            raise ChainUnreachable("the node answers with HTTP status 429")
        return None

    node.rule = rule
    domain, _ = await deploy(node, CARRIER, SwarmConfig())
    await Coordinator(node, domain).check()


async def test_a_node_that_limits_requests_after_the_transaction_loses_no_contracts_address() -> None:
    node = NodeInFront(await tester_chain())
    answers: list[Any] = [
        RequestTooLarge("the node answers with an error of no call"),
        ChainUnreachable("the node answers with HTTP status 429"),
        failing("transaction indexing is in progress"),
        NULL,
    ]

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        is_sent = method != "eth_sendRawTransaction" and "eth_sendRawTransaction" in node.calls
        answer = answers.pop(0) if is_sent and answers else None
        if isinstance(answer, ChainUnreachable):
            raise answer
        return answer

    node.rule = rule
    domain, _ = await deploy(node, CARRIER, SwarmConfig())
    assert answers == []
    await Coordinator(node, domain).check()


async def test_a_transaction_that_is_not_mined_is_given_up_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "WAIT", 0.2)
    node = NodeInFront(await tester_chain())
    node.rule = answering("eth_getTransactionReceipt", NULL)
    with pytest.raises(ChainUnreachable, match=r"transaction 0x[0-9a-f]{64} is not mined after 0 seconds: the node"):
        await deploy(node, CARRIER, SwarmConfig())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failing("insufficient funds for gas * price + value"), "cannot pay for the transaction"),
        (RequestTooLarge("the node answers with HTTP status 413"), "the node refuses the transaction: .* 413"),
    ],
    ids=str,
)
async def test_a_transaction_that_the_node_refuses_is_not_waited_for(error: Exception, message: str) -> None:
    node = NodeInFront(await tester_chain())

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            raise error
        return None

    node.rule = rule
    with pytest.raises(ChainRefused, match=message):
        await deploy(node, CARRIER, SwarmConfig())


def expensive(node: NodeInFront) -> list[tuple[int, int]]:
    """Make a node propose a high tip; return the fee and the tip of each transaction that it gets."""
    fees: list[tuple[int, int]] = []

    def rule(method: str, parameters: Sequence[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            fields = TypedTransaction.from_bytes(HexBytes(parameters[0])).as_dict()
            fees.append((fields["maxFeePerGas"], fields["maxPriorityFeePerGas"]))
        return hex(100_000 * GWEI) if method == "eth_maxPriorityFeePerGas" else None

    node.rule = rule
    return fees


async def test_the_fees_that_a_node_proposes_are_capped() -> None:
    node = NodeInFront(await tester_chain())
    fees = expensive(node)
    domain, _ = await deploy(node, CARRIER, SwarmConfig())
    await manage(node, CARRIER, domain.contract, "pause", caps=FeeCaps(50 * GWEI, 2 * GWEI))
    assert fees == [(500 * GWEI, 30 * GWEI), (50 * GWEI, 2 * GWEI)]


async def test_the_caps_of_a_gateway_hold_for_the_contract_and_the_bootnodes_that_it_writes() -> None:
    node = NodeInFront(await tester_chain(Wallet(DEV_SECRET).address))
    settings = PodSettings.from_environment(
        {
            "SWARMGAME_CHAIN_MODE": "Dev",
            "SWARMGAME_CHAIN_RPC": "http://chain:8545",
            "SWARMGAME_CHAIN_ID": str(int(await node.request("eth_chainId"), 16)),
            "SWARMGAME_GATEWAY_BOOTNODES": "/dns4/a/tcp/1/p2p/x",
            "SWARMGAME_GATEWAY_MAX_FEE_GWEI": "40",
            "SWARMGAME_GATEWAY_MAX_TIP_GWEI": "3",
        }
    )
    fees = expensive(node)
    await make_ready(node, settings)
    assert fees == [(40 * GWEI, 3 * GWEI)] * 2


@pytest.mark.parametrize(
    ("option", "value", "most"),
    [
        ("--round-seconds", 2**32, 2**32 - 1),
        ("--min-round-seconds", 2**32, 2**32 - 1),
        ("--max-reward", 2**63, 2**63 - 1),
    ],
)
def test_an_option_that_the_contract_cannot_hold_is_refused_with_the_bound(option: str, value: int, most: int) -> None:
    refused = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["deploy", option, str(value)])
    assert refused.exit_code == 2
    assert f"{most}" in refused.output
    taken = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["deploy", option, str(most)])
    assert "no node: give --rpc" in taken.output
