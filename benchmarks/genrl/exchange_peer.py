"""GenRL's arm of the exchange: one process, one HivemindBackend, one `all_gather_object` per request.

Runs in GenRL's environment. Usage: exchange_peer.py INDEX, with HIVEMIND_WORLD_SIZE set; the first request has the
addresses of peer 0 (none for peer 0 itself).
"""

import os
import sys
import time

import exports  # noqa: F401 - before genrl
from channel import Parent
from genrl.communication.hivemind.hivemind_backend import HivemindBackend, HivemindRendezvouz


def main(index: int) -> None:
    parent = Parent()
    requests = parent.requests()
    addresses = next(requests)["addresses"]
    HivemindRendezvouz.init(is_master=index == 0)
    backend = HivemindBackend(initial_peers=addresses or None)
    parent.answer(addresses=[str(address) for address in backend.dht.get_visible_maddrs()])
    parent.answer(ready=True)
    body = b""
    for request in requests:
        if "make" in request:
            body = os.urandom(request["make"])
            parent.answer(bytes=len(body))
            continue
        began = time.perf_counter()
        gathered = backend.all_gather_object(body)
        seconds = time.perf_counter() - began
        parent.answer(seconds=seconds, others=sum(len(other) == len(body) for other in gathered.values()) - 1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
