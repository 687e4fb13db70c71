"""torchrun for the ranks of one peer, with every socket on the loopback interface.

    python -m swarmgame.launch.loopback_torchrun --nproc-per-node=2 -m swarmgame peer …

`torchrun --standalone` opens two stores that listen on all addresses of the machine, and any process that reaches one
can write into it. Here each gets a socket of 127.0.0.1, to which torchrun and its ranks connect.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch import distributed
from torch.distributed import run
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

LOOPBACK_HOST = "127.0.0.1"
_STORE_SECONDS = 60.0


def loopback_store() -> Any:
    """Return a store that listens on the loopback interface alone."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((LOOPBACK_HOST, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    return distributed.TCPStore(  # type: ignore[attr-defined]
        LOOPBACK_HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_STORE_SECONDS),
        master_listen_fd=listener.detach(),
    )


def _store_of_ranks(self: DynamicRendezvousHandler, master_addr: Any, master_port: Any) -> Any:
    return loopback_store()


def main(arguments: Sequence[str]) -> None:
    """Run torchrun on this machine alone.

    Args:
        arguments: of torchrun, without those of its rendezvous.
    """
    # The store of the ranks: torch 2.15 has no option for its socket.
    DynamicRendezvousHandler._create_tcp_store_server = _store_of_ranks  # type: ignore[method-assign]
    store = loopback_store()
    rendezvous = (
        "--nnodes=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={LOOPBACK_HOST}:{store.port}",
        "--rdzv-conf=is_host=false",  # the store is ours
        f"--rdzv-id={secrets.token_hex(8)}",
        f"--local-addr={LOOPBACK_HOST}",
    )
    run.main([*rendezvous, *arguments])
    del store  # it serves until here


if __name__ == "__main__":
    main(sys.argv[1:])
