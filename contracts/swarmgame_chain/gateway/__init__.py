"""The gateway: it carries signed messages to the contract, and is the only holder of a funded key.

`queue` keeps what was handed in and how it ended · `verdicts` says, from the contract's state alone, what is to be done
with a message · `batcher` makes transactions of them · `sender` keeps one nonce line and brings transactions to
finality · `advancer` ends rounds · `service` is the loop · `http` the door. A gateway can delay a message, never forge,
change or censor it: anyone else may carry it too. Invariant: every message that was accepted ends final exactly once,
or rejected by name, or dropped and counted; losing all of the gateway's memory loses nothing that its sender still
holds.
"""

from swarmgame_chain.gateway.service import Gateway, GatewayConfig

__all__ = ["Gateway", "GatewayConfig"]
