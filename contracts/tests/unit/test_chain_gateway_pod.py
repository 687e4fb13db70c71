"""The gateway as a pod runs it: its environment, the contract that it deploys, the RPC proxy, and its status."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chain_crowd import CARRIER, Ground, peer, stepped, tester_chain, tester_ground
from tester_chain import TesterClient

from swarmgame_chain.abi import encode_call
from swarmgame_chain.errors import BadChainUsage, BadMessage, ChainRefused, ChainUnreachable
from swarmgame_chain.gateway.pod import DEV_SECRET, PodSettings, first_contract, make_ready
from swarmgame_chain.gateway.rpc_proxy import MAX_CONCURRENT, NOT_ALLOWED, ReadOnlyRpcProxy
from swarmgame_chain.keys import Wallet
from swarmgame_chain.reader import Coordinator

DEV = {"SWARMGAME_CHAIN_MODE": "Dev", "SWARMGAME_CHAIN_RPC": "http://chain:8545"}
ELSEWHERE = "0x" + "11" * 20


def test_a_dev_gateway_needs_no_more_than_a_node() -> None:
    settings = PodSettings.from_environment(DEV)
    assert settings.domain.contract == "0x5FbDB2315678afecb367f032d93F642f64180aa3"
    assert settings.wallet.address.lower() == "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
    assert (settings.domain.chain_id, settings.config.confirmations, settings.port, settings.host) == (
        31337,
        1,
        8645,
        "0.0.0.0",
    )


def test_an_external_gateway_reads_secrets_from_files_and_shows_none(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://user:password@node.example.org/v3/0123\n")
    (tmp_path / "key").write_text(CARRIER.secret.hex() + "\n")
    environment = {
        "SWARMGAME_CHAIN_MODE": "External",
        "SWARMGAME_CHAIN_ID": "7",
        "SWARMGAME_CHAIN_CONTRACT": ELSEWHERE,
        "SWARMGAME_CHAIN_RPC_FILE": str(tmp_path / "url"),
        "SWARMGAME_CHAIN_KEY_FILE": str(tmp_path / "key"),
        "SWARMGAME_GATEWAY_BOOTNODES": "/ip4/1.2.3.4/tcp/1/p2p/a /ip4/1.2.3.5/tcp/1/p2p/b",
        "SWARMGAME_GATEWAY_QUORUM": "0.5",
        "SWARMGAME_GATEWAY_CONFIRMATIONS": "12",
        "SWARMGAME_GATEWAY_INTERVAL": "2.5",
        "SWARMGAME_GATEWAY_MAX_FEE_GWEI": "50",
        "SWARMGAME_GATEWAY_MAX_TIP_GWEI": "0.5",
        "SWARMGAME_GATEWAY_GAS_PER_HOUR": "1000000",
        "SWARMGAME_GATEWAY_REGISTRATIONS_PER_MINUTE": "9",
    }
    settings = PodSettings.from_environment(environment)
    assert settings.wallet == CARRIER
    assert (settings.config.quorum, settings.config.confirmations, len(settings.bootnodes)) == (0.5, 12, 2)
    config = settings.config
    assert (config.interval, config.max_fee, config.max_tip) == (2.5, 50 * 10**9, 5 * 10**8)
    assert (config.gas_per_hour, config.registrations_per_minute) == (1_000_000, 9)
    assert "password" not in repr(settings)
    assert CARRIER.secret.hex() not in repr(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SWARMGAME_CHAIN_MODE": "None"}, "expected Dev or External"),
        ({"SWARMGAME_CHAIN_RPC": ""}, "no node"),
        ({"SWARMGAME_CHAIN_ID": "seven"}, "SWARMGAME_CHAIN_ID is 'seven'"),
        ({"SWARMGAME_CHAIN_CONTRACT": "0x12"}, "SWARMGAME_CHAIN_CONTRACT is '0x12'"),
        ({"SWARMGAME_CHAIN_ID": "+7"}, "SWARMGAME_CHAIN_ID is '\\+7'; expected a number from 1"),
        ({"SWARMGAME_GATEWAY_PORT": "70000"}, "SWARMGAME_GATEWAY_PORT is '70000'; expected a number from 0 to 65535"),
        ({"SWARMGAME_GATEWAY_QUORUM": "1.5"}, "a share above 0"),
        ({"SWARMGAME_GATEWAY_QUORUM": "nan"}, "a share above 0"),
        ({"SWARMGAME_GATEWAY_INTERVAL": "0"}, "SWARMGAME_GATEWAY_INTERVAL is '0'; expected seconds from 0.01 to 60"),
        ({"SWARMGAME_GATEWAY_MAX_TIP_GWEI": "-1"}, "expected gwei, above 0"),
        ({"SWARMGAME_GATEWAY_MAX_FEE_GWEI": "inf"}, "expected gwei, above 0"),
        ({"SWARMGAME_GATEWAY_GAS_PER_HOUR": "1e6"}, "expected a number of gas"),
        ({"SWARMGAME_CHAIN_MODE": "External"}, "no key"),
    ],
)
def test_an_invalid_variable_is_named(change: Mapping[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARMGAME_CHAIN_KEY_FILE", raising=False)
    with pytest.raises(BadChainUsage, match=message):
        PodSettings.from_environment(DEV | change)


@pytest.mark.parametrize("missing", ["SWARMGAME_CHAIN_ID", "SWARMGAME_CHAIN_CONTRACT"])
def test_an_external_chain_needs_its_id_and_its_contract(missing: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CARRIER.secret.hex())
    given = {"SWARMGAME_CHAIN_ID": "7", "SWARMGAME_CHAIN_CONTRACT": ELSEWHERE, missing: ""}
    with pytest.raises(BadChainUsage, match=f"{missing} is not set; expected a"):
        PodSettings.from_environment(
            {"SWARMGAME_CHAIN_RPC": "http://a", "SWARMGAME_CHAIN_KEY_FILE": str(tmp_path / "key")} | given
        )


def test_the_address_of_the_node_is_never_shown() -> None:
    with pytest.raises(BadChainUsage) as caught:
        PodSettings.from_environment(
            DEV | {"SWARMGAME_CHAIN_RPC": "ftp://user:password@a", "SWARMGAME_GATEWAY_QUORUM": "2"}
        )
    assert "password" not in str(caught.value)
    with pytest.raises(BadChainUsage) as caught:
        PodSettings.from_environment(DEV | {"SWARMGAME_CHAIN_RPC": "ftp://user:password@a"})
    assert "password" not in str(caught.value)


async def test_a_dev_chain_gets_its_contract_once_and_its_bootnodes_whenever_they_differ() -> None:
    chain = await tester_chain(Wallet(DEV_SECRET).address)
    chain_id = int(await chain.request("eth_chainId"), 16)
    environment = DEV | {"SWARMGAME_CHAIN_ID": str(chain_id), "SWARMGAME_GATEWAY_BOOTNODES": "/dns4/a/tcp/1/p2p/x"}
    settings = PodSettings.from_environment(environment)
    coordinator = Coordinator(chain, settings.domain)
    for _ in range(2):
        await make_ready(chain, settings)
        assert await coordinator.bootnodes() == ("/dns4/a/tcp/1/p2p/x",)
    sent = await chain.request("eth_getTransactionCount", settings.wallet.address, "latest")
    assert int(sent, 16) == 2, "one for the contract, one for the bootnodes"
    moved = dataclasses.replace(settings, bootnodes=("/dns4/b/tcp/1/p2p/x",))
    await make_ready(chain, moved)
    assert await coordinator.bootnodes() == moved.bootnodes


async def test_a_dev_chain_whose_first_transaction_is_spent_is_refused_with_what_to_do() -> None:
    wallet = Wallet(DEV_SECRET)
    chain = await tester_chain(wallet.address)
    chain_id = int(await chain.request("eth_chainId"), 16)
    other = dataclasses.replace(
        PodSettings.from_environment(DEV | {"SWARMGAME_CHAIN_ID": str(chain_id), "SWARMGAME_CHAIN_CONTRACT": ELSEWHERE})
    )
    with pytest.raises(ChainRefused, match=f"there is no contract at {ELSEWHERE}.*give the chain a new state"):
        await make_ready(chain, other)
    with pytest.raises(ChainRefused, match=f"the node is of chain {chain_id}; expected chain 31337"):
        await make_ready(chain, PodSettings.from_environment(DEV))


async def test_a_gateway_that_may_not_set_bootnodes_runs_without() -> None:
    ground = await tester_ground()
    other = Wallet(DEV_SECRET)
    settings = dataclasses.replace(
        PodSettings.from_environment(DEV),
        dev=False,
        domain=ground.domain,
        wallet=other,
        bootnodes=("/dns4/a/tcp/1/p2p/x",),
    )
    await make_ready(ground.chain, settings)
    assert await ground.coordinator.bootnodes() == ()


def test_the_address_of_an_accounts_first_contract_is_known_beforehand() -> None:
    assert first_contract("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266") == "0x5fbdb2315678afecb367f032d93f642f64180aa3"


# ── the proxy


async def send_to(proxy: ReadOnlyRpcProxy, *requests: object) -> Any:
    return await proxy.answer(json.dumps(requests[0] if len(requests) == 1 else requests).encode())


def request(method: str, *parameters: object, id: int = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": list(parameters)}


class ProxyClient:
    """A node as a peer reaches it: through the proxy, with JSON in between."""

    def __init__(self, proxy: ReadOnlyRpcProxy) -> None:
        self.proxy = proxy

    async def request(self, method: str, *parameters: Any) -> Any:
        return (await send_to(self.proxy, request(method, *parameters)))["result"]

    async def request_all(self, calls: Any) -> list[Any]:
        return [await self.request(method, *parameters) for method, parameters in calls]

    async def close(self) -> None:
        """Nothing to close."""


async def test_a_peer_reads_everything_it_needs_through_the_proxy() -> None:
    ground = await tester_ground()
    await stepped(ground.gateway(), [ground.registration(n) for n in range(3)])
    through = Coordinator(ProxyClient(ReadOnlyRpcProxy(ground.chain, ground.domain.contract)), ground.domain)
    await through.check()
    assert await through.config() == await ground.coordinator.config()
    assert await through.clock() == await ground.coordinator.clock()
    assert await through.bootnodes() == ()
    assert await through.proven([peer(0), peer(2), peer(9)]) == {peer(0), peer(2)}
    from swarmgame_chain.reader import EventCursor

    new, _ = await EventCursor(through, 0, ("PeerProven",)).poll()
    assert [event.values["peerId"] for event in new] == [peer(n) for n in range(3)]


@pytest.mark.parametrize(
    "refused",
    [
        request("eth_sendRawTransaction", "0x00"),
        request("eth_accounts"),
        request("anvil_setBalance", ELSEWHERE, "0x1"),
        request("eth_getCode", ELSEWHERE, "latest"),
        request("eth_call", {"to": ELSEWHERE, "data": "0x"}, "latest"),
        request("eth_call", {"to": "OURS", "data": "0x", "gas": "0xffffffff"}, "latest"),
        request("eth_call", {"to": "OURS", "data": "0x" + "00" * 4096}, "latest"),
        request("eth_call", {"to": "OURS", "data": "0x"}, "latest", {"OURS": {"balance": "0x1"}}),
        request("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0x10"}),
        request("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0xffffff", "address": ["OURS"]}),
        request("eth_getLogs", {"fromBlock": "earliest", "toBlock": "latest", "address": ["OURS"]}),
        request("eth_getBlockByNumber", "latest", True),
        request("eth_blockNumber", 1),
        {"id": 1},
        {"id": 1, "method": ["eth_chainId"]},
        {"id": 1, "method": "eth_chainId", "params": {"a": 1}},
    ],
    ids=lambda each: str(each.get("method")),
)
async def test_other_requests_are_refused_and_the_rest_of_the_batch_passes(refused: dict[str, object]) -> None:
    ground = await tester_ground()
    sent = json.loads(json.dumps(refused).replace("OURS", ground.domain.contract))
    first, second = await send_to(
        ReadOnlyRpcProxy(ground.chain, ground.domain.contract), sent, request("eth_chainId", id=2)
    )
    assert first["error"]["code"] in (NOT_ALLOWED, -32600)
    assert "result" not in first
    assert (second["id"], int(second["result"], 16)) == (2, ground.domain.chain_id)


async def test_a_revert_passes_with_the_contracts_error() -> None:
    ground = await tester_ground()
    data = "0x" + encode_call("submitReward", 0, 0, 1, peer(0)).hex()
    answer = await send_to(
        ReadOnlyRpcProxy(ground.chain, ground.domain.contract),
        request("eth_call", {"to": ground.domain.contract, "data": data}, "latest"),
    )
    assert answer["error"]["data"].startswith("0x")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"[1]", b"[" * 100_000, json.dumps([{}] * 257).encode()])
async def test_a_body_that_is_not_a_request_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage):
        await ReadOnlyRpcProxy(TesterClient(), ELSEWHERE).answer(body)


async def test_too_many_requests_at_once_are_refused() -> None:
    class Slow:
        release = asyncio.Event()

        async def request_all(self, calls: Any) -> list[Any]:
            await self.release.wait()
            return ["0x1" for _ in calls]

    proxy = ReadOnlyRpcProxy(Slow(), ELSEWHERE)  # type: ignore[arg-type]
    waiting = [asyncio.ensure_future(send_to(proxy, request("eth_chainId"))) for _ in range(MAX_CONCURRENT)]
    await asyncio.sleep(0)
    with pytest.raises(ChainUnreachable):
        await send_to(proxy, request("eth_chainId"))
    Slow.release.set()
    assert {answer["result"] for answer in await asyncio.gather(*waiting)} == {"0x1"}
    assert (await send_to(proxy, request("eth_chainId")))["result"] == "0x1"


# ── status


async def test_status_counts_registered_peers_and_rejections_also_after_a_restart() -> None:
    ground = await tester_ground()
    first = ground.gateway()
    assert first.status()["error"]["reason"] == "RPCUnavailable"
    await stepped(first, [ground.registration(n) for n in range(3)])
    await stepped(first, [ground.report(0, 0, 5), ground.report(1, 0, 5)])
    status = first.status()
    assert (status["registered"], status["error"], status["round"]) == (3, None, 0)
    assert status["lastBlock"] >= 2
    again = ground.gateway(ends_rounds=True)
    await stepped(again, [ground.report(0, 0, 7)])
    await again.step()
    assert again.status()["registered"] == 3
    assert again.status()["rejected"] == {"RewardAlreadySubmitted": 1}


async def test_status_names_an_empty_wallet_and_a_paused_contract() -> None:
    from swarmgame_chain.deploy import manage

    ground: Ground = await tester_ground()
    await manage(ground.chain, CARRIER, ground.domain.contract, "pause")
    gateway = ground.gateway()
    await gateway.start()
    await gateway.submit([ground.registration(0)])
    work = asyncio.ensure_future(gateway.run())
    async with asyncio.timeout(30):
        while (gateway.status()["error"] or {}).get("reason") != "TransactionReverted":
            await asyncio.sleep(0.01)
    assert "EnforcedPause" in gateway.status()["error"]["message"]
    work.cancel()
    gateway.sender.out_of_funds = True
    assert gateway.status()["error"]["reason"] == "InsufficientFunds"


async def test_a_second_report_with_the_same_reward_and_other_winners_is_not_the_first() -> None:
    """A gateway that was restarted knows the first from the chain alone."""
    ground = await tester_ground()
    await stepped(ground.gateway(), [ground.registration(n) for n in range(4)])
    sent = ground.report(0, 0, 5, [1, 77])  # the second winner is unknown to the contract, and does not count
    assert [entry.state for entry in await stepped(ground.gateway(), [sent])] == ["final"]
    for winners, expected in (
        ([1, 77], "final"),
        ([1], "rejected"),
        ([2], "rejected"),
        ([], "rejected"),
        ([77, 1], "rejected"),
    ):
        (entry,) = await stepped(ground.gateway(), [ground.report(0, 0, 5, winners)])
        assert (entry.state, winners) == (expected, winners)
