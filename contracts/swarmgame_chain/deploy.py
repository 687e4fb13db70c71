"""Send one transaction at a time and wait for it: deploy a coordinator, and call its management functions.

Used by the commands and by mode Dev; the gateway, which has many transactions in flight, has its own sender. web3.py's
contract object chooses gas, nonce and fees, within caps. A transaction that may have been sent is waited for, whatever
the node answers meanwhile. One that reverts is an error with the contract's own name for it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from eth_utils.address import is_address, to_checksum_address

from swarmgame_chain.abi import error_name
from swarmgame_chain.errors import BadChainUsage, ChainRefused, ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import SwarmConfig
from swarmgame_chain.rpc import RpcClient
from swarmgame_chain.send_result import SendResult, classify

WAIT = 180.0
"""Longest wait for a transaction to be mined, in seconds."""
_FIRST_POLL_SECONDS = 0.05
"""The first wait between two reads of a receipt; a development chain mines at once."""
_POLL_SECONDS = 1.0
"""The longest of these waits: public endpoints limit requests."""
_SENT = frozenset({SendResult.KNOWN, SendResult.NONCE_USED})
"""What a node answers to a transaction that it has taken before; the client sends again where a connection is lost."""


@dataclass(frozen=True, slots=True)
class FeeCaps:
    """The highest fee and the highest tip per unit of gas, in wei."""

    fee: int = 500 * 10**9
    tip: int = 30 * 10**9

    def apply(self, transaction: dict[str, Any]) -> None:
        """Lower the fees of a transaction to the caps."""
        caps = {
            "gasPrice": self.fee,
            "maxFeePerGas": self.fee,
            "maxPriorityFeePerGas": min(self.tip, self.fee),
        }
        transaction |= {name: min(transaction[name], cap) for name, cap in caps.items() if name in transaction}


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction: its hash, its gas, its block, and the address of the contract that it created, if any."""

    transaction: str
    gas: int
    block: int
    contract: str


async def deploy(
    chain: RpcClient, wallet: Wallet, config: SwarmConfig, owner: str = "", *, caps: FeeCaps | None = None
) -> tuple[Domain, Receipt]:
    """Deploy a coordinator. `owner` (the wallet by default) gets all roles.

    Raises:
        BadChainUsage: the owner is no address.
        ChainRefused: the wallet is empty, or the contract refuses the configuration.
        ChainUnreachable: the node does not answer, or does not mine.
    """
    owner = owner or wallet.address
    if not is_address(owner):
        raise BadChainUsage(f"the owner is {owner!r}; expected an address: 0x and 40 hexadecimal digits")
    # web3 is imported by the process that needs it: a gateway whose contract exists has nothing to deploy.
    from swarmgame_chain.contract import coordinator_contract

    constructor = coordinator_contract(chain).constructor(to_checksum_address(owner), config.values())
    # Read before: a failure after it would lose the contract's address.
    chain_id = int(await chain.request("eth_chainId"), 16)
    receipt = await _transact(chain, wallet, "constructor", constructor, caps)
    return Domain(chain_id, receipt.contract), receipt


async def manage(
    chain: RpcClient, wallet: Wallet, contract: str, name: str, *arguments: Any, caps: FeeCaps | None = None
) -> Receipt:
    """Call a function of the contract and wait for the transaction.

    Raises:
        ChainRefused: it would revert, it did, or the wallet cannot pay for it.
        ChainUnreachable: the node does not answer, or does not mine within three minutes.
    """
    from swarmgame_chain.contract import coordinator_contract, with_checksums

    function = coordinator_contract(chain, contract).functions[name]
    return await _transact(chain, wallet, name, function(*with_checksums(arguments)), caps)


async def _transact(chain: RpcClient, wallet: Wallet, name: str, call: Any, caps: FeeCaps | None) -> Receipt:
    """Send a call of a contract object as a transaction; raises as `manage`."""
    from swarmgame_chain.contract import web3_errors

    sender = to_checksum_address(wallet.address)
    try:
        with web3_errors(name):
            eth = call.w3.eth
            fields = {"from": sender, "nonce": await eth.get_transaction_count(sender, "latest")}
            transaction = dict(await call.build_transaction(fields))
    except RpcError as error:
        raise ChainRefused(_reason(error, wallet)) from error
    # What others do in between may make it more expensive.
    transaction["gas"] += transaction["gas"] // 8
    (caps or FeeCaps()).apply(transaction)
    raw, sent = wallet.sign(transaction)
    receipt = await _send(chain, wallet, "0x" + raw.hex(), sent)
    if int(receipt["status"], 16) != 1:
        raise ChainRefused(f"transaction {sent} reverted")
    created = (receipt.get("contractAddress") or "").lower()
    return Receipt(sent, int(receipt["gasUsed"], 16), int(receipt["blockNumber"], 16), created)


async def _send(chain: RpcClient, wallet: Wallet, raw: str, name: str) -> dict[str, Any]:
    """Send a signed transaction and return its receipt; raises as `manage`."""
    end, wait, is_taken = time.monotonic() + WAIT, _FIRST_POLL_SECONDS, False
    problem = "the node shows no receipt"
    while True:
        try:
            if not is_taken:
                is_taken = await _offer(chain, wallet, raw)
            receipt: dict[str, Any] | None = await chain.request("eth_getTransactionReceipt", name)
            if receipt is not None:
                return receipt
        except (ChainUnreachable, RpcError) as error:
            # It may have arrived, or be mined.
            problem = str(error)
        if time.monotonic() + wait > end:
            raise ChainUnreachable(f"transaction {name} is not mined after {WAIT:.0f} seconds: {problem}")
        await asyncio.sleep(wait)
        wait = min(2 * wait, _POLL_SECONDS)


async def _offer(chain: RpcClient, wallet: Wallet, raw: str) -> bool:
    """Return True where the node has the transaction; raises ChainRefused where it refuses it."""
    try:
        await chain.request("eth_sendRawTransaction", raw)
    except RpcError as error:
        if classify(error) not in _SENT:
            raise ChainRefused(_reason(error, wallet)) from error
    except RequestTooLarge as error:
        raise ChainRefused(f"the node refuses the transaction: {error}") from error
    return True


def _reason(error: RpcError, wallet: Wallet) -> str:
    if len(error.data) >= 4:
        return f"the contract refuses: {error_name(error.data)}"
    if "insufficient funds" in error.message.lower():
        return f"the wallet {wallet.address} cannot pay for the transaction"
    return f"the node refuses the transaction: {error.message}"
