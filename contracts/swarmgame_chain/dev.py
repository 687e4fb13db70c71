"""Mode Dev: a chain of one's own, brought up, deployed to and funded without a question; and a gateway to it as a
process of its own.

What was made is kept in a folder (the chain's state, the contract's address, the gateway's key, readable by its owner
only), so that a run that is resumed finds its chain again. The money is play money. Invariant: both processes end with
the `with` block, or (on Linux) with ours; a folder is either a whole Dev chain or is made one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from swarmgame_chain.anvil import ETHER, Anvil, end, set_parent_death_signal
from swarmgame_chain.deploy import deploy, manage
from swarmgame_chain.errors import ChainRefused, ChainUnreachable
from swarmgame_chain.keys import Wallet, load_wallet, new_wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, SwarmConfig
from swarmgame_chain.rpc import HttpRpcClient

log = logging.getLogger(__name__)
PATIENCE = 60.0
LOOK_SECONDS = 0.5
LONGEST_PAUSE = 30.0
"""Between two starts of a gateway that dies at once."""


class DevChain:
    """Anvil, a coordinator, and a gateway.

    Args:
        folder: where state, address and key are kept; made if need be.
        config: how the contract is made, when it is made.
        bootnodes: what the contract is to name; replaced when they differ.

    Attributes (inside the `with` block):
        rpc, gateway: addresses, `http://127.0.0.1:port`.
        domain: the chain and the contract.
    """

    def __init__(
        self, folder: Path, config: SwarmConfig | None = None, bootnodes: tuple[str, ...] = (), quorum: float = 1.0
    ) -> None:
        self._folder = folder
        self._config = config or SwarmConfig(round_duration=3_600, min_round_time=0)
        self._bootnodes = bootnodes
        self._quorum = quorum
        self._anvil: Anvil | None = None
        self._process: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None
        self.rpc = ""
        self.gateway = ""
        self.domain = Domain(31337, "0x" + "00" * 20)

    def start(self) -> Self:
        """Brings everything up.

        Raises:
            BadChainUsage: anvil is not installed.
            ChainUnreachable: a process did not come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        key = self._folder / "gateway.key"
        wallet = load_wallet(key) if key.exists() else new_wallet(key)
        try:
            self._anvil = Anvil(
                "--state", str(self._folder / "state.json"), "--state-interval", "5", follow=True
            ).start()
            self.rpc = self._anvil.url
            self.domain = asyncio.run(self._prepare(wallet))
            # In the thread that starts it, which lives as long as it may: the kernel ends a child with the thread that
            # started it.
            up: queue.Queue[Exception | None] = queue.Queue()
            self._over.clear()
            self._keeper = threading.Thread(target=self._keep_gateway, args=(key, up), name="dev-gateway", daemon=True)
            self._keeper.start()
            failed = up.get()
            if failed is not None:
                raise failed
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends both processes; the chain writes its state."""
        self._over.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._anvil is not None:
            self._anvil.stop()
            self._anvil = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _prepare(self, wallet: Wallet) -> Domain:
        record = self._folder / "chain.json"
        async with HttpRpcClient(self.rpc) as chain:
            await chain.request("anvil_setBalance", wallet.address, hex(1_000 * ETHER))
            domain = await self._recorded(chain, record)
            if domain is None:
                domain, _ = await deploy(chain, wallet, self._config)
                _write(record, {"chainId": domain.chain_id, "contract": domain.contract})
            if self._bootnodes and await Coordinator(chain, domain).bootnodes() != self._bootnodes:
                await manage(chain, wallet, domain.contract, "setBootnodes", list(self._bootnodes))
            return domain

    async def _recorded(self, chain: HttpRpcClient, record: Path) -> Domain | None:
        try:
            kept = json.loads(record.read_text())
            domain = Domain(int(kept["chainId"]), str(kept["contract"]))
            await Coordinator(chain, domain).check()
        except (OSError, ValueError, KeyError, ChainRefused):
            # Killed before the chain wrote its state: what was there is gone, and a new contract is made.
            return None
        return domain

    def _keep_gateway(self, key: Path, up: queue.Queue[Exception | None]) -> None:
        """Starts the gateway, says how that went, and starts it again whenever it dies."""
        try:
            self._start_gateway(key, port=0)
        except (ChainUnreachable, OSError) as error:
            self._end_gateway()
            up.put(error)
            return
        up.put(None)
        port, pause = int(self.gateway.rpartition(":")[2]), LOOK_SECONDS
        while not self._over.wait(pause):
            if self._process is not None and self._process.poll() is None:
                pause = LOOK_SECONDS
                continue
            log.warning("the gateway of the Dev chain has died; it is started again")
            self._end_gateway()
            try:
                self._start_gateway(key, port)
            except (ChainUnreachable, OSError) as error:
                log.error("%s", error)
                pause = min(2 * pause, LONGEST_PAUSE)
        self._end_gateway()

    def _end_gateway(self) -> None:
        if self._process is not None:
            end(self._process)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _start_gateway(self, key: Path, port: int) -> None:
        options = {
            "--rpc": self.rpc,
            "--contract": self.domain.contract,
            "--chain-id": str(self.domain.chain_id),
            "--key-file": str(key),
            "--port": str(port),
            "--confirmations": "1",
            "--quorum": str(self._quorum),
            "--interval": "0.1",
        }
        words = [word for pair in options.items() for word in pair]
        with (self._folder / "gateway.log").open("a") as record:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swarmgame_chain.cli", "gateway", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=record,
                text=True,
                start_new_session=True,
                preexec_fn=set_parent_death_signal,
            )
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(self._process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(PATIENCE)
        if not found or "http://" not in found[0]:
            raise ChainUnreachable(f"the gateway did not come up; {self._folder / 'gateway.log'} says why")
        self.gateway = found[0].split()[-1]


def _write(path: Path, values: dict[str, object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
