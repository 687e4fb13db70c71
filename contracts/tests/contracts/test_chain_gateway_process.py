"""`swarmgame-gateway` as a process on anvil: it waits for its chain, deploys the contract, and finds it again when
either of the two is restarted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from chain_crowd import peer, secret

from swarmgame_chain.anvil import Anvil, _free_port
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator
from swarmgame_chain.reporter import ChainReporter
from swarmgame_chain.rpc import NodeClient

CONTRACT = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
BOOTNODE = "/dns4/game-bootnode.ns.svc/tcp/31000/p2p/" + peer(0)
DOMAIN = Domain(31337, CONTRACT)


def request(port: int, path: str) -> tuple[int, Any]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except (URLError, OSError):
        return 0, ""


def status(port: int) -> dict[str, Any]:
    return dict(json.loads(request(port, "/status")[1]))


def until(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"timed out waiting until {what}"
        time.sleep(0.05)


@contextmanager
def gateway(folder: Path, port: int, rpc: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SWARMGAME_")}
    settings = {
        "SWARMGAME_CHAIN_MODE": "Dev",
        "SWARMGAME_CHAIN_RPC": rpc,
        "SWARMGAME_CHAIN_ID": "31337",
        "SWARMGAME_CHAIN_CONTRACT": CONTRACT,
        "SWARMGAME_GATEWAY_HOST": "127.0.0.1",
        "SWARMGAME_GATEWAY_PORT": str(port),
        "SWARMGAME_GATEWAY_BOOTNODES": BOOTNODE,
        "SWARMGAME_GATEWAY_QUORUM": "1",
        "SWARMGAME_TERMINATION_LOG": str(folder / "termination.log"),
    }
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "swarmgame_chain.gateway.pod"],
            env=plain | settings | environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def bootnodes(rpc: str) -> tuple[str, ...]:
    async def read() -> tuple[str, ...]:
        async with NodeClient(rpc) as chain:
            return await Coordinator(chain, DOMAIN).bootnodes()

    return asyncio.run(read())


def nonce(rpc: str) -> int:
    async def read() -> int:
        async with NodeClient(rpc) as chain:
            return int(
                await chain.request("eth_getTransactionCount", "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "latest"),
                16,
            )

    return asyncio.run(read())


def test_it_waits_for_its_chain_deploys_the_contract_and_finds_it_again(tmp_path: Path) -> None:
    chain_port, port = _free_port(), _free_port()
    rpc = f"http://127.0.0.1:{chain_port}"
    with gateway(tmp_path, port, rpc) as first:
        until(lambda: request(port, "/healthz")[0] == 200, "the server listens")
        until(lambda: "does not answer" in status(port)["problem"], "it has noticed that the chain is away")
        assert status(port)["error"]["reason"] == "RPCUnavailable"
        assert request(port, "/readyz")[0] == 503
        with Anvil(port=chain_port):
            until(lambda: request(port, "/readyz")[0] == 200, "it is ready")
            url = f"http://127.0.0.1:{port}"
            reporters = [ChainReporter(f"{url}/rpc", DOMAIN, secret(n), url) for n in range(3)]
            for reporter in reporters:
                assert reporter.start() == (BOOTNODE,)
                reporter.report(0, 0.5)
            assert all(reporter.wait_until_registered(60) for reporter in reporters)
            until(lambda: reporters[0].admits(peer(2)), "peer 2 is known to be proven")
            assert not reporters[0].admits(peer(5))
            assert [reporter.finish(60).final for reporter in reporters] == [2] * 3
            until(lambda: status(port)["round"] == 1, "the round is over")
            assert (status(port)["registered"], status(port)["error"]) == (3, None)

            first.kill()
            first.wait()
            sent = nonce(rpc)
            with gateway(tmp_path, port, rpc):
                until(lambda: request(port, "/readyz")[0] == 200, "it is ready again")
                until(lambda: status(port)["registered"] == 3, "it reads the registered peers from the chain")
                assert nonce(rpc) == sent, "nothing was deployed twice"


def test_a_dev_chain_that_starts_anew_ends_it_and_the_next_start_deploys_the_contract_again(tmp_path: Path) -> None:
    chain_port, port = _free_port(), _free_port()
    rpc = f"http://127.0.0.1:{chain_port}"
    with gateway(tmp_path, port, rpc) as process:
        with Anvil(port=chain_port):
            until(lambda: request(port, "/readyz")[0] == 200, "it is ready")
        with Anvil(port=chain_port):
            assert process.wait(240) == 75  # for some time a shorter chain is that of a machine that lags
            assert "begun anew" in (tmp_path / "termination.log").read_text()
            with gateway(tmp_path, port, rpc) as again:
                until(lambda: request(port, "/readyz")[0] == 200, "it is ready")
                assert bootnodes(rpc) == (BOOTNODE,)
                again.send_signal(signal.SIGTERM)
                assert again.wait(30) == 143


def test_the_wrong_chain_ends_it_with_77_and_a_termination_message(tmp_path: Path) -> None:
    port = _free_port()
    (tmp_path / "key").write_text(secret(0).hex())
    external = {"SWARMGAME_CHAIN_MODE": "External", "SWARMGAME_CHAIN_KEY_FILE": str(tmp_path / "key")}
    with Anvil() as anvil:
        with gateway(tmp_path, port, anvil.url, SWARMGAME_CHAIN_ID="7", **external) as process:
            assert process.wait(60) == 77
        assert (tmp_path / "termination.log").read_text() == "the node is of chain 31337; expected chain 7\n"
        with gateway(tmp_path, port, anvil.url, **external) as process:
            assert process.wait(60) == 77
        assert f"there is no contract at {CONTRACT}" in (tmp_path / "termination.log").read_text()
    assert secret(0).hex() not in (tmp_path / "gateway.log").read_text()


def test_it_imports_nothing_of_the_worker(tmp_path: Path) -> None:
    """Its image has no torch."""
    program = "import sys, swarmgame_chain.gateway.pod; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert not {"torch", "hivemind", "transformers", "swarmgame", "web3", "numpy"} & set(
        json.loads(loaded.replace("'", '"'))
    )
