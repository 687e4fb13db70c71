"""The Python side of the chain: signed messages, the contract's reader, the gateway and a peer's reporter. Optional: a
swarm works without any of it.

`messages` and `abi` are pure; `reader` reads a contract; `gateway` carries signed messages and is the only holder of a
funded key; `reporter` is what a peer uses. Nothing here imports the worker.
"""
