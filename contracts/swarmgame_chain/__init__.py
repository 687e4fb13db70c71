"""The Python side of the chain: what is signed, read, carried and deployed. Optional everywhere: a swarm needs none of
it.

`messages` and `abi` are pure; `reader` reads a contract; `gateway` carries signed messages and is the only holder of a
funded key; `peer` is what a peer uses of all this. Nothing here imports the worker.
"""
