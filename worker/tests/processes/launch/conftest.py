"""A fake peer: the flags and the files of a real one, and one fault each."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

FAKE_PEER = textwrap.dedent(
    '''
    """Stands in for `swarmgame peer`: its files, exit codes, signals. The fault is the first argument."""
    import json, os, signal, sys, time
    from pathlib import Path

    fault, flags = sys.argv[1], [a for a in sys.argv[2:] if a.startswith("--")]
    value = {name: text for name, _, text in (flag[2:].partition("=") for flag in flags)}
    index, directory = int(value["index"]), Path(value["directory"])
    attempts = directory / "attempts"
    attempt = int(attempts.read_text()) + 1 if attempts.exists() else 1
    attempts.write_text(str(attempt))
    (directory / "flags.json").write_text(json.dumps(flags))
    (directory / "environment").write_text(os.environ.get("PEER_OF_TEST", ""))
    (directory / "devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    metrics = directory / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    rounds = int(next((f.rpartition("=")[2] for f in reversed(flags) if "maxRounds" in f), 5))

    def leave(*_):
        raise SystemExit(143)

    def fail(code, message="", returned=None, **more):
        (directory / "exit.json").write_text(json.dumps({"code": code, "message": message, **more}))
        raise SystemExit(code if returned is None else returned)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if fault == "ignores-stop" else leave)
    (directory / "ready").touch()
    print("hello from", index, flush=True)
    for number in range(done, rounds):
        with metrics.open("a") as file:
            line = {"round": number, "reward": 0.1 * number + index, "tokens": 10, "peer": f"id-{index}"}
            line["members"] = ["id-0", "id-1"]
            file.write(json.dumps(line | {"seconds": {"round": 1.0, "generate": 0.5, "exchange": 0.05}}) + "\\n")
        if fault == "killed-once" and index == 1 and attempt == 1 and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "always-killed" and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "temporary-once" and index == 0 and attempt == 1:
            fail(75, "the port is taken")
        if fault == "temporary":
            fail(75, "the port is taken")
        if fault == "full-disk" and index == 0:
            fail(75, "no space is left on the device", restart=False)
        if fault == "exits-with-0":
            failure = {"kind": "SystemExit", "message": "0", "where": "game.py:3", "function": "rewards", "round": 1}
            message = "SystemExit: 0 at game.py:3, in rewards (in round 1)"
            fail(1, message, returned=0, failure=failure | {"of_game": True})
        if fault == "bad-config" and index == 1 and number == 1:
            fail(78, "spec.game.data.use is 'nonsense'; expected something else")
        if fault == "under-torchrun" and index == 1:
            (directory / "exit.json").write_text(json.dumps({"code": 78, "message": "recorded by a rank"}))
            raise SystemExit(1)
        if fault == "traceback":
            raise RuntimeError("an internal error")
        if fault in {"ignores-stop", "endless", "bad-config", "full-disk"} and (fault != "bad-config" or index != 1):
            while True:
                time.sleep(0.01)
    '''
)

GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: quick}
spec:
  game:
    maxRounds: 5
    data: {use: "mygame:Data"}
    rewards: {use: "mygame:Rewards"}
    trainer: {use: "mygame:Trainer"}
  peers: {replicas: 2}
  failurePolicy: {maxFailedPeers: 0, backoffLimitPerPeer: 2}
  terminationGracePeriodSeconds: 1
"""


@pytest.fixture
def fake_peer(tmp_path: Path) -> Callable[[str], Sequence[str]]:
    """Return the start of the command of a peer with a fault."""
    script = tmp_path / "fake_peer.py"
    script.write_text(FAKE_PEER)
    return lambda fault: (sys.executable, "-S", "-E", str(script), fault)


@pytest.fixture
def game(tmp_path: Path) -> Path:
    path = tmp_path / "game.yaml"
    path.write_text(GAME)
    return path
