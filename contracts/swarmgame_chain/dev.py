"""Mode Dev: an anvil with a deployed contract and a funded wallet, and a gateway to it in a process of its own.

The chain's state, the contract's address and the gateway's key (readable by its owner only) are kept in a folder, so a
resumed run finds its chain again. The money is play money. Both processes end with the `with` block, and on Linux with
this process.
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
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from swarmgame_chain.anvil import ETHER, Anvil, AnvilStopped, end_with_parent, terminate
from swarmgame_chain.deploy import deploy, manage
from swarmgame_chain.dev_state import StateFile
from swarmgame_chain.errors import ChainRefused, ChainUnreachable
from swarmgame_chain.keys import Wallet, load_wallet, new_wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, SwarmConfig
from swarmgame_chain.rpc import NodeClient

log = logging.getLogger(__name__)
START_TIMEOUT = 60.0
POLL_SECONDS = 0.5
KEEP_SECONDS = 30.0
"""Seconds between two copies of the chain's state."""
MAX_RESTART_DELAY = 30.0
"""Seconds between two starts of a gateway that keeps dying."""


class DevChain:
    """Anvil, a coordinator, and a gateway.

    Args:
        folder: where state, address and key are kept; created if it does not exist.
        config: the contract's configuration, when it is deployed.
        bootnodes: the bootnodes on chain; replaced when they differ.

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
        self._state = StateFile(folder)
        self._anvil: Anvil | None = None
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        self.rpc = ""
        self.gateway = ""
        self.domain = Domain(31337, "0x" + "00" * 20)

    def start(self) -> Self:
        """Start everything.

        Raises:
            BadChainUsage: anvil is not installed.
            ChainUnreachable: a process did not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        key = self._folder / "gateway.key"
        wallet = load_wallet(key) if key.exists() else new_wallet(key)
        try:
            self._anvil = self._start_anvil()
            self._state.keep()
            self.rpc = self._anvil.url
            self.domain = asyncio.run(self._prepare(wallet))
            # The gateway is started in a thread that lives as long as it may, since the kernel ends the child with the
            # thread that started it.
            started: queue.Queue[Exception | None] = queue.Queue()
            self._stopping.clear()
            self._keeper = threading.Thread(
                target=self._keep_gateway, args=(key, started), name="dev-gateway", daemon=True
            )
            self._keeper.start()
            failed = started.get()
            if failed is not None:
                raise failed
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both processes; the chain writes its state."""
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._anvil is not None:
            self._anvil.stop()
            self._anvil = None
            self._state.keep()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_anvil(self) -> Anvil:
        while True:
            try:
                return Anvil("--state", str(self._state.path), "--state-interval", "5", follow=True).start()
            except AnvilStopped as error:
                if not self._state.set_aside(str(error)):
                    raise

    async def _prepare(self, wallet: Wallet) -> Domain:
        record = self._folder / "chain.json"
        async with NodeClient(self.rpc) as chain:
            await chain.request("anvil_setBalance", wallet.address, hex(1_000 * ETHER))
            domain = await self._recorded(chain, record)
            if domain is None:
                domain, _ = await deploy(chain, wallet, self._config)
                _write(record, {"chainId": domain.chain_id, "contract": domain.contract})
            if self._bootnodes and await Coordinator(chain, domain).bootnodes() != self._bootnodes:
                await manage(chain, wallet, domain.contract, "setBootnodes", list(self._bootnodes))
            return domain

    async def _recorded(self, chain: NodeClient, record: Path) -> Domain | None:
        try:
            kept = json.loads(record.read_text())
            domain = Domain(int(kept["chainId"]), str(kept["contract"]))
            await Coordinator(chain, domain).check()
        except (OSError, ValueError, KeyError, ChainRefused):
            # Killed before the chain wrote its state, so the contract is gone; a new one is deployed.
            return None
        return domain

    def _keep_gateway(self, key: Path, started: queue.Queue[Exception | None]) -> None:
        """Start the gateway, report the result in `started`, and restart the gateway whenever it dies."""
        try:
            self._start_gateway(key, port=0)
        except (ChainUnreachable, OSError) as error:
            self._end_gateway()
            started.put(error)
            return
        started.put(None)
        port, delay = int(self.gateway.rpartition(":")[2]), POLL_SECONDS
        kept_at = time.monotonic()
        while not self._stopping.wait(delay):
            if time.monotonic() - kept_at >= KEEP_SECONDS:
                kept_at = time.monotonic()
                self._state.keep()
            if self._process is not None and self._process.poll() is None:
                delay = POLL_SECONDS
                continue
            log.warning("the gateway of the Dev chain has died; it is started again")
            self._end_gateway()
            try:
                self._start_gateway(key, port)
            except (ChainUnreachable, OSError) as error:
                log.error("%s", error)
                delay = min(2 * delay, MAX_RESTART_DELAY)
        self._end_gateway()

    def _end_gateway(self) -> None:
        if self._process is not None:
            terminate(self._process)
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
        arguments = [text for pair in options.items() for text in pair]
        with (self._folder / "gateway.log").open("a") as record:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swarmgame_chain.cli", "gateway", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=record,
                text=True,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        found: list[str] = []
        output = self._process.stdout
        assert output is not None
        reader = threading.Thread(target=lambda: found.append(output.readline()), daemon=True)
        reader.start()
        reader.join(START_TIMEOUT)
        if not found or "http://" not in found[0]:
            raise ChainUnreachable(f"the gateway did not start; see {self._folder / 'gateway.log'}")
        self.gateway = found[0].split()[-1]


def _write(path: Path, values: dict[str, object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
