"""web3.py's contract object for a coordinator, over any client of a node: for calls that are rare.

Deploying and managing use it. What a process reads at its start, and what a gateway does for each message, encodes its
calls itself (`abi`): a contract object costs a millisecond of processor time for each call. Its requests go through the
client, so answers are checked and counted as all others are. Importing this module imports web3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from eth_abi.exceptions import DecodingError
from eth_utils.address import is_address, to_checksum_address

from swarmgame_chain.abi import artifact
from swarmgame_chain.errors import ChainUnreachable, NoCoordinator, RpcError
from swarmgame_chain.light_imports import light_imports
from swarmgame_chain.rpc import RpcClient

with light_imports():
    from web3 import AsyncBaseProvider, AsyncWeb3
    from web3.exceptions import BadFunctionCallOutput, ContractLogicError, TimeExhausted, Web3Exception, Web3RPCError
    from web3.types import RPCEndpoint, RPCResponse


class ClientProvider(AsyncBaseProvider):
    """Sends web3.py's requests through a client of this package."""

    # A contract's answer may name addresses that web3.py would then fetch (EIP-3668).
    global_ccip_read_enabled = False

    def __init__(self, chain: RpcClient) -> None:
        super().__init__()
        self._chain = chain

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        try:
            result = await self._chain.request(method, *params)
        except RpcError as error:
            fields: Any = {"code": error.code, "message": error.message}
            if error.data:
                fields["data"] = "0x" + error.data.hex()
            return {"jsonrpc": "2.0", "id": 1, "error": fields}
        return {"jsonrpc": "2.0", "id": 1, "result": result}


def coordinator_contract(chain: RpcClient, address: str = "") -> Any:
    """Return the contract object at an address (an AsyncContract), or without one its class, which can be deployed."""
    web3: AsyncWeb3[Any] = AsyncWeb3(ClientProvider(chain), middleware=[])
    made = web3.eth.contract(abi=artifact()["abi"], bytecode=artifact()["bytecode"])
    return made(to_checksum_address(address)) if address else made


@contextlib.contextmanager
def web3_errors(name: str) -> Iterator[None]:
    """Raise this package's errors for those of web3.py.

    Args:
        name: the contract's function, for messages.
    """
    try:
        yield
    except ContractLogicError as error:
        raise RpcError(3, error.message or "execution reverted", _bytes(error.data)) from error
    except (BadFunctionCallOutput, DecodingError, OverflowError) as error:
        raise NoCoordinator(f"{name}() at this address does not answer as a SwarmCoordinator's does") from error
    except Web3RPCError as error:
        fields: Any = (error.rpc_response or {}).get("error")
        code, message = (fields["code"], fields["message"]) if isinstance(fields, dict) else (0, error.message)
        raise RpcError(code, message) from error
    except TimeExhausted as error:
        raise ChainUnreachable(str(error)) from error
    except (Web3Exception, ValueError, TypeError, KeyError, AttributeError) as error:
        # web3.py formats answers that are not checked here (a block's other fields), and fails in many ways.
        raise ChainUnreachable(f"the node's answer is invalid: {error or type(error).__name__}") from error


def with_checksums(value: Any) -> Any:
    """Return an argument of a contract's function with a checksum in each address; web3.py takes no other ones."""
    if isinstance(value, list | tuple):
        return [with_checksums(each) for each in value]
    return to_checksum_address(value) if isinstance(value, str) and is_address(value) else value


def _bytes(data: object) -> bytes:
    return bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") else b""
