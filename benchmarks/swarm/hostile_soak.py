"""The hostile soak: four peers of the quickstart for many minutes, among strangers that flood them, guests that come
and go, and with one daemon that dies. `benchmarks/soak.py --hostile` runs it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarm.soak import command, descendants

HERE = Path(__file__).parent
GAME = HERE.parents[1] / "examples" / "01-quickstart" / "game.yaml"
PEERS, WITH_DEAD_DAEMON = 4, 1
START_SECONDS, STOP_SECONDS = 300.0, 120.0
GUEST_SECONDS, PAUSE_SECONDS = (25.0, 50.0), (10.0, 30.0)


class HostileSoak:
    """One run of the soak.

    Args:
        folder: of everything that it writes.
        seconds: how long the peers play among strangers.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.root = folder / "run"
        self.probe = folder / "probe"
        self.probe.mkdir()
        self.random = random.Random(1)
        self.guests = self.guests_killed = self.daemons_killed = 0
        self.ids: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def play(self) -> dict[str, Any]:
        """Play, and return the figures.

        Raises:
            SystemExit: the peers did not start, or the run ended by itself.
        """
        runner = self._start("run", *self._settings(), f"--peers={PEERS}", "--rounds=1000000", "--no-report")
        try:
            addresses = self._addresses(runner)
            strangers = self._spawn(
                [sys.executable, str(HERE / "strangers.py"), self._run_id(), str(self.seconds), *addresses],
                output=self.folder / "strangers.json",
            )
            self._disturb(runner, addresses)
            strangers.wait(60)
            runner.send_signal(signal.SIGINT)
            code = runner.wait(STOP_SECONDS)
            if code != 143:
                raise SystemExit(f"the run ended with {code}: {self._tail()}")
        finally:
            for process in self._processes:
                end(process)
        return self._figures()

    # ── processes
    def _settings(self) -> list[str]:
        return [
            f"--set={setting}"
            for setting in (
                "game.rewards.use=soak:ProbedRewards",
                f"game.rewards.with.folder={self.probe}",
                "game.rewards.with.every=5",
                "storage.checkpoints.everyRounds=1",
                "game.evaluation=null",
            )
        ]

    def _start(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "swarmgame", what, str(GAME), *arguments]
        return self._spawn([*line, "--runs", str(self.folder), "--name", "run", "--fresh"], self.folder / "output.txt")

    def _spawn(self, line: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        # GOGC: see `soak.py`.
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GOGC": "50"}
        with output.open("ab") as file:
            process = subprocess.Popen(
                line, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._processes.append(process)
        return process

    def _addresses(self, runner: subprocess.Popen[bytes]) -> list[str]:
        """Return the peers' addresses, once all have finished two rounds."""
        deadline = time.monotonic() + START_SECONDS
        while min(self._rounds(), default=0) < 2:
            if runner.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the peers did not start: {self._tail()}")
            time.sleep(0.5)
        found = []
        for index in range(PEERS):
            port = json.loads((self._peer(index) / "http.json").read_text())["port"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
                status = json.loads(answer.read())
            found.append(status["addresses"][0])
            self.ids.append(status["peer"])
        return found

    def _run_id(self) -> str:
        from swarmgame.runtime.options import run_id
        from swarmgame_api.load import load_manifest

        return run_id(load_manifest(GAME, ()))

    def _disturb(self, runner: subprocess.Popen[bytes], addresses: Sequence[str]) -> None:
        """Let guests come and go until the time is over, and kill one daemon after a third of it."""
        began = time.monotonic()
        guest: subprocess.Popen[bytes] | None = None
        turns_at = began + self.random.uniform(*PAUSE_SECONDS)
        while (passed := time.monotonic() - began) < self.seconds:
            if runner.poll() is not None:
                raise SystemExit(f"the run ended by itself with {runner.returncode}: {self._tail()}")
            if passed > self.seconds / 3 and not self.daemons_killed:
                self._kill_daemon(runner)
            if time.monotonic() > turns_at:
                if guest is None:
                    guest = self._join(addresses)
                    turns_at = time.monotonic() + self.random.uniform(*GUEST_SECONDS)
                else:
                    self.guests_killed += end(guest, kindly=self.random.random() < 0.5)
                    guest = None
                    turns_at = time.monotonic() + self.random.uniform(*PAUSE_SECONDS)
            time.sleep(0.5)
        if guest is not None:
            end(guest)

    def _join(self, addresses: Sequence[str]) -> subprocess.Popen[bytes]:
        self.guests += 1
        place = self.folder / f"guest-{self.guests}"
        line = [sys.executable, "-m", "swarmgame", "join", str(GAME), "--initial-peer", addresses[0], "--no-report"]
        return self._spawn([*line, "--directory", str(place), *self._settings()], self.folder / "guests.txt")

    def _kill_daemon(self, runner: subprocess.Popen[bytes]) -> None:
        key = str(self._peer(WITH_DEAD_DAEMON) / "peer.key")
        for pid in descendants(runner.pid):
            if "p2pd" in command(pid).split(" ")[0] and key in command(pid):
                os.kill(pid, signal.SIGKILL)
                self.daemons_killed += 1

    # ── figures
    def _peer(self, index: int) -> Path:
        return self.root / "peers" / str(index)

    def _lines(self, index: int) -> list[dict[str, Any]]:
        path = self._peer(index) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _rounds(self) -> list[int]:
        return [len(self._lines(index)) for index in range(PEERS)]

    def _tail(self) -> str:
        return (self.folder / "output.txt").read_text()[-2000:]

    def _figures(self) -> dict[str, Any]:
        lines = [self._lines(index) for index in range(PEERS)]
        lost = 0
        for rows in lines:
            played = {row["round"] for row in rows if not row.get("lost")}
            lost += max(played) + 1 - len(played)
        seconds = sorted(row["seconds"]["round"] for rows in lines for row in rows)
        samples = [
            [json.loads(line) for line in (self.probe / f"{peer}.jsonl").read_text().splitlines()] for peer in self.ids
        ]
        sent = [
            json.loads(line) for line in (self.folder / "strangers.json").read_text().splitlines() if line[:1] == "{"
        ]
        return {
            "rounds": [len(rows) for rows in lines],
            "rounds_lost": lost,
            "round_seconds": {"median": statistics.median(seconds), "max": seconds[-1]},
            "memory": {name: memory_ratio(samples, name) for name in ("peer_uss", "daemon_uss", "sandbox_uss")},
            "guests": {"joined": self.guests, "killed": self.guests_killed},
            "daemons_killed": self.daemons_killed,
            "strangers": sent[-1] if sent else {},
            "outcomes": {
                name: sum(row["outcomes"].get(name, 0) for rows in lines for row in rows)
                for name in sorted({name for rows in lines for row in rows for name in row["outcomes"]})
            },
        }


def memory_ratio(samples: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, float]:
    """Return the memory of the peer that grew most: its median of the third fifth and of the last, and their ratio. The
    first fifths fill bounded caches.
    """
    found = []
    for rows in samples:
        values = [float(row[name]) for row in rows if name in row]
        fifth = len(values) // 5
        if fifth:
            early, late = statistics.median(values[2 * fifth : 3 * fifth]), statistics.median(values[-fifth:])
            found.append((late / early, early, late))
    if not found:
        return {"ratio": float("nan")}
    ratio, early, late = max(found)
    return {"ratio": round(ratio, 3), "early": round(early, 1), "late": round(late, 1)}


def end(process: subprocess.Popen[bytes], *, kindly: bool = False) -> bool:
    """End a process and its children; return whether it was killed."""
    if process.poll() is None and kindly:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            kindly = False
    for pid in (*descendants(process.pid), process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    return not kindly
