"""Send one transaction at a time and wait for it: deploy a coordinator, and call its management functions.

Used by the commands and by mode Dev; the gateway, which has many transactions in flight, has its own sender. A
transaction that reverts is an error with the contract's own name for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from swarmgame_chain.abi import creation_code, encode_call, error_name
from swarmgame_chain.errors import ChainRefused, ChainUnreachable, RpcError
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import SwarmConfig
from swarmgame_chain.rpc import RpcClient

WAIT = 180.0
"""Longest wait for a transaction to be mined, in seconds."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction: its hash, its gas, its block, and the address of the contract that it created, if any."""

    transaction: str
    gas: int
    block: int
    contract: str


async def deploy(chain: RpcClient, wallet: Wallet, config: SwarmConfig, owner: str = "") -> tuple[Domain, Receipt]:
    """Deploy a coordinator. `owner` (the wallet by default) gets all roles.

    Raises:
        ChainRefused: the wallet is empty, or the contract refuses the configuration.
        ChainUnreachable: the node does not answer, or does not mine.
    """
    chain_id = int(await chain.request("eth_chainId"), 16)
    receipt = await send(chain, wallet, "", creation_code(owner or wallet.address, config.values()))
    return Domain(chain_id, receipt.contract), receipt


async def manage(chain: RpcClient, wallet: Wallet, contract: str, name: str, *arguments: Any) -> Receipt:
    """Call a function of the contract and wait for it; raises as `send`."""
    return await send(chain, wallet, contract, encode_call(name, *arguments))


async def send(chain: RpcClient, wallet: Wallet, to: str, data: bytes) -> Receipt:
    """Send one transaction and wait until it is mined.

    Raises:
        ChainRefused: it would revert, it did, or the wallet cannot pay for it.
        ChainUnreachable: the node does not answer, or does not mine within three minutes.
    """
    call = {"from": wallet.address, "data": "0x" + data.hex()} | ({"to": to} if to else {})
    try:
        gas = int(await chain.request("eth_estimateGas", call), 16)
        nonce = int(await chain.request("eth_getTransactionCount", wallet.address, "latest"), 16)
        fee, tip = await fees(chain)
        transaction: dict[str, object] = {
            "type": 2,
            "chainId": int(await chain.request("eth_chainId"), 16),
            "nonce": nonce,
            "gas": gas + gas // 8,
            "maxFeePerGas": fee,
            "maxPriorityFeePerGas": tip,
            "value": 0,
            "data": data,
        } | ({"to": to} if to else {})
        raw, name = wallet.sign(transaction)
        await chain.request("eth_sendRawTransaction", "0x" + raw.hex())
    except RpcError as error:
        raise ChainRefused(_reason(error, wallet)) from error
    for step in range(int(WAIT / 0.2)):
        receipt = await chain.request("eth_getTransactionReceipt", name)
        if receipt is not None:
            if int(receipt["status"], 16) != 1:
                raise ChainRefused(f"transaction {name} reverted")
            return Receipt(
                name, int(receipt["gasUsed"], 16), int(receipt["blockNumber"], 16), receipt.get("contractAddress") or ""
            )
        await asyncio.sleep(0.02 if step < 10 else 0.2)
    raise ChainUnreachable(f"transaction {name} was not mined within {WAIT:.0f} seconds")


async def fees(chain: RpcClient) -> tuple[int, int]:
    """Return the fees to offer now, in wei per gas: the maximum (twice the base fee plus the tip), and the tip."""
    block = await chain.request("eth_getBlockByNumber", "latest", False)
    base = int(block.get("baseFeePerGas") or "0x0", 16)
    try:
        tip = int(await chain.request("eth_maxPriorityFeePerGas"), 16)
    except RpcError:
        tip = 1_000_000_000
    return 2 * base + tip, tip


def _reason(error: RpcError, wallet: Wallet) -> str:
    if len(error.data) >= 4:
        return f"the contract refuses: {error_name(error.data)}"
    if "insufficient funds" in error.message.lower():
        return f"the wallet {wallet.address} cannot pay for the transaction"
    return f"the node refuses the transaction: {error.message}"
