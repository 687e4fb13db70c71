"""A client that knows nothing but Gensyn's 0.4.2 ABI takes part: registers, reads, reports and votes, as that client
does.

The ABI below is written from 0.4.2's source: the calls that its client makes, with the types that it expects back.
"""

from __future__ import annotations

from typing import Any

from chain_crowd import CARRIER, ETHER, make_ground
from tester_chain import TesterClient

from swarmgame_chain.deploy import manage


def function(name: str, inputs: str, outputs: str = "", mutability: str = "nonpayable") -> dict[str, object]:
    def named(types: str) -> list[dict[str, str]]:
        return [
            {"name": f"a{n}", "type": type_, "internalType": type_}
            for n, type_ in enumerate(filter(None, types.split(",")))
        ]

    return {
        "type": "function",
        "name": name,
        "inputs": named(inputs),
        "outputs": named(outputs),
        "stateMutability": mutability,
    }


ABI_0_4_2 = [
    function("registerPeer", "string"),
    function("getBootnodes", "", "string[]", "view"),
    function("getBootnodesCount", "", "uint256", "view"),
    function("addBootnodes", "string[]"),
    function("clearBootnodes", ""),
    function("currentRound", "", "uint256", "view"),
    function("currentStage", "", "uint256", "view"),
    function("stageCount", "", "uint256", "pure"),
    function("updateStageAndRound", "", "uint256,uint256"),
    function("submitReward", "uint256,uint256,int256,string"),
    function("submitWinners", "uint256,string[],string"),
    function("getEoa", "string[]", "address[]", "view"),
    function("getPeerId", "address[]", "string[][]", "view"),
    function("getTotalRewards", "string[]", "int256[]", "view"),
    function("getTotalWins", "string", "uint256", "view"),
    function("grantRole", "bytes32,address"),
    function("revokeRole", "bytes32,address"),
    function("hasRole", "bytes32,address", "bool", "view"),
    function("OWNER_ROLE", "", "bytes32", "view"),
    function("STAGE_MANAGER_ROLE", "", "bytes32", "view"),
    {
        "type": "event",
        "name": "RewardSubmitted",
        "anonymous": False,
        "inputs": [
            {"name": "account", "type": "address", "indexed": True},
            {"name": "roundNumber", "type": "uint256", "indexed": True},
            {"name": "stageNumber", "type": "uint256", "indexed": True},
            {"name": "reward", "type": "int256", "indexed": False},
            {"name": "peerId", "type": "string", "indexed": False},
        ],
    },
    {
        "type": "event",
        "name": "WinnerSubmitted",
        "anonymous": False,
        "inputs": [
            {"name": "account", "type": "address", "indexed": True},
            {"name": "peerId", "type": "string", "indexed": False},
            {"name": "roundNumber", "type": "uint256", "indexed": True},
            {"name": "winners", "type": "string[]", "indexed": False},
        ],
    },
]


class LegacyClient:
    """What GenRL's wallet client does: its own gas limit, the nonce of the last block, no waiting."""

    def __init__(self, web3: Any, address: str, account: Any, peer: str) -> None:
        self._web3, self._account, self.peer = web3, account, peer
        self.contract = web3.eth.contract(address=address, abi=ABI_0_4_2)

    def send(self, name: str, *arguments: object) -> Any:
        nonce = self._web3.eth.get_transaction_count(self._account.address)
        options = {
            "from": self._account.address,
            "nonce": nonce,
            "gas": 2_000_000,
            "gasPrice": self._web3.to_wei("5", "gwei"),
        }
        built = getattr(self.contract.functions, name)(*arguments).build_transaction(options)
        signed = self._account.sign_transaction(built)
        return self._web3.eth.wait_for_transaction_receipt(self._web3.eth.send_raw_transaction(signed.raw_transaction))

    def read(self, name: str, *arguments: object) -> Any:
        return getattr(self.contract.functions, name)(*arguments).call()


async def test_a_client_of_0_4_2_takes_part() -> None:
    from eth_account import Account
    from web3.logs import DISCARD

    chain = TesterClient()
    web3 = chain.web3
    rich = chain.tester.get_accounts()[0]
    people = [Account.create() for _ in range(2)]
    for account in (CARRIER.address, *(person.address for person in people)):
        chain.tester.send_transaction({"from": rich, "to": account, "value": 100 * ETHER, "gas": 21_000})
    ground = await make_ground(chain)
    await manage(chain, CARRIER, ground.domain.contract, "setBootnodes", ["/ip4/10.0.0.1/tcp/38331/p2p/QmBoot"])
    one, two = (LegacyClient(web3, ground.domain.contract, person, f"QmPeer{n}") for n, person in enumerate(people))

    assert one.read("getBootnodes") == ["/ip4/10.0.0.1/tcp/38331/p2p/QmBoot"]
    assert one.read("getBootnodesCount") == 1
    assert [client.send("registerPeer", client.peer)["status"] for client in (one, two)] == [1, 1]
    assert one.send("registerPeer", two.peer)["status"] == 0
    assert one.read("getEoa", [one.peer, two.peer, "QmMissing"]) == [
        people[0].address,
        people[1].address,
        "0x" + "00" * 20,
    ]
    assert one.read("getPeerId", [people[0].address]) == [[one.peer]]
    assert (one.read("currentRound"), one.read("currentStage"), one.read("stageCount")) == (0, 0, 1)

    receipt = one.send("submitReward", 0, 0, 42, one.peer)
    (event,) = one.contract.events.RewardSubmitted().process_receipt(receipt, errors=DISCARD)
    assert dict(event["args"]) == {
        "account": people[0].address,
        "roundNumber": 0,
        "stageNumber": 0,
        "reward": 42,
        "peerId": one.peer,
    }
    assert one.send("submitReward", 0, 0, 42, one.peer)["status"] == 0
    receipt = one.send("submitWinners", 0, [two.peer], one.peer)
    (vote,) = one.contract.events.WinnerSubmitted().process_receipt(receipt)
    assert vote["args"]["winners"] == [two.peer]
    # An empty vote, which 0.4.2 took any number of times, is no vote: nothing happens.
    assert [len(two.send("submitWinners", 0, [], two.peer)["logs"]) for _ in range(3)] == [0, 0, 0]
    # Without a winner to name, that client votes for itself, which does not count.
    assert two.send("submitWinners", 0, [two.peer], two.peer)["status"] == 1
    assert one.read("getTotalRewards", [one.peer, two.peer]) == [42, 0]
    assert (one.read("getTotalWins", one.peer), one.read("getTotalWins", two.peer)) == (0, 1)

    role = one.read("STAGE_MANAGER_ROLE")
    assert not one.read("hasRole", role, people[0].address)
    await manage(chain, CARRIER, ground.domain.contract, "grantRole", role, people[0].address)
    assert one.send("updateStageAndRound")["status"] == 1
    assert two.read("currentRound") == 1
    assert two.send("submitReward", 1, 0, -7, two.peer)["status"] == 1
    assert two.read("getTotalRewards", [two.peer]) == [-7]
