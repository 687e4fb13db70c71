"""The gateway: it carries signed messages to the contract, and is the only holder of a funded key.

`server` is the HTTP server · `admission` checks messages · `queue` keeps them and how they ended · `service` is the
loop that decides on them · `batcher` makes transactions · `sender` sends them under consecutive nonces and follows
them to finality · `budget` bounds their gas · `round_advancer` ends rounds · `rpc_proxy` is the read-only view of the
contract · `config` has the options · `pod` is the process.

A gateway can delay a message, but cannot forge or change it, and anyone else may carry it too. Every accepted message
ends final exactly once, or rejected with a reason, or dropped and counted. A gateway that loses its memory loses
nothing that the senders still hold.
"""

from swarmgame_chain.gateway.config import GatewayConfig
from swarmgame_chain.gateway.service import Gateway

__all__ = ["Gateway", "GatewayConfig"]
