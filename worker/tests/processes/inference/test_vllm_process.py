"""The server as a child of its peer: found, awaited, started again, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmgame.errors import InvalidManifest, Temporary
from swarmgame.inference import vllm_process
from swarmgame.inference.vllm_process import VllmProcess, find_program, wait_until_healthy
from swarmgame_api.sampler import SERVER_ENVIRONMENT, VllmOptions

SERVER = textwrap.dedent(
    '''
    """Answers /health, starts a child, and writes both process ids to a file; `--habit=` selects a fault."""
    import http.server, os, subprocess, sys, time
    from pathlib import Path

    options = dict(argument[2:].partition("=")[::2] for argument in sys.argv[2:])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(options["notes"]).open("a").write(f"{os.getpid()} {child.pid}\\n")
    shown = {name: text for name, text in os.environ.items() if name.startswith(("VLLM", "SWARMGAME", "PYTHONPATH"))}
    print("environment", shown, flush=True)
    if options.get("habit") == "fails":
        sys.exit("ValueError: No available memory for the cache blocks")
    if options.get("habit") == "sleeps":
        time.sleep(600)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(503 if Path(options["notes"] + ".dead").exists() else 200)
            self.end_headers()

    http.server.HTTPServer(("127.0.0.1", int(options["port"])), Handler).serve_forever()
    '''
)


class Servers:
    """Makes processes of the server above, and knows what they started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "server.py"
        self.script.write_text(SERVER)
        self.notes = folder / "notes"

    def __call__(self, habit: str = "", **options: object) -> VllmProcess:
        settings = VllmOptions.model_validate({"engine": "vllm", "startup_seconds": 120, **options})
        settings = settings.model_copy(update={"command": (sys.executable, str(self.script))})
        return VllmProcess(
            settings,
            lambda port: ["serve", f"--port={port}", f"--notes={self.notes}", f"--habit={habit}"],
            self.folder / "vllm.log",
        )

    def pids(self) -> list[int]:
        return [int(word) for word in self.notes.read_text().split()] if self.notes.exists() else []


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


def happens(condition: Callable[[], bool]) -> bool:
    """Return whether a condition holds within a minute."""
    deadline = time.monotonic() + 60
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


def gone(pids: list[int]) -> bool:
    """Return whether all processes end, or are zombies."""
    assert pids
    return happens(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_awaited_and_ended_with_all_that_it_started(servers: Servers) -> None:
    process = servers()
    process.start()
    process.ensure()
    assert process.alive
    assert wait_until_healthy(process.url, 60)
    pids = servers.pids()
    assert len(pids) == 2
    process.stop()
    assert not process.alive
    assert gone(pids)


def test_one_that_was_killed_is_started_again(servers: Servers) -> None:
    process = servers()
    process.ensure()
    first, url = servers.pids(), process.url
    os.kill(first[0], signal.SIGKILL)
    assert gone(first)
    assert happens(lambda: not process.alive)
    process.ensure()
    assert process.starts == 2
    assert process.url == url
    assert process.alive
    process.stop()
    assert gone(servers.pids())


def test_one_that_is_no_longer_healthy_is_started_again(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    process = servers()
    process.ensure()
    process.doubt()
    process.ensure()
    assert process.starts == 1
    dead = Path(f"{servers.notes}.dead")
    dead.touch()
    monkeypatch.setattr(vllm_process, "DOUBT_SECONDS", 0.0)
    process.doubt()
    stop = process.stop
    monkeypatch.setattr(process, "stop", lambda: (stop(), dead.unlink(missing_ok=True)))
    process.ensure()
    assert process.starts == 2
    stop()
    assert gone(servers.pids())


def test_it_ends_with_the_peer_that_started_it_killed_included(servers: Servers, tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from swarmgame.inference.vllm_process import VllmProcess
        from swarmgame_api.sampler import VllmOptions
        options = VllmOptions(engine="vllm", command=({sys.executable!r}, {str(servers.script)!r}))
        command = lambda port: ["serve", f"--port={{port}}", "--notes={servers.notes}"]
        process = VllmProcess(options, command, Path({str(tmp_path / "vllm.log")!r}))
        process.ensure()
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        pids = servers.pids()
        peer.kill()
    assert gone(pids)


def test_it_ends_even_when_its_guard_is_killed(servers: Servers) -> None:
    process = servers()
    process.ensure()
    [server, child] = servers.pids()
    assert process._guard is not None
    process._guard.kill()
    assert gone([server])
    os.kill(child, signal.SIGKILL)
    process.stop()


def test_it_has_an_environment_of_its_own(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMGAME_MODEL_TOKEN_FILE", "/secret")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", "") or "/ours")
    process = servers()
    process.ensure()
    process.stop()
    [line] = [line for line in process.log.read_text().splitlines() if line.startswith("environment")]
    assert line == f"environment {dict(sorted(SERVER_ENVIRONMENT.items()))}" or all(
        f"'{name}': '1'" in line for name in SERVER_ENVIRONMENT
    )
    assert "SWARMGAME" not in line
    assert "PYTHONPATH" not in line


def test_one_that_ends_while_starting_is_temporary_with_its_last_lines(servers: Servers) -> None:
    process = servers("fails")
    with pytest.raises(
        Temporary, match=r"ended with exit code 1 while starting; its log is .*vllm\.log:\n(.|\n)*No available memory"
    ):
        process.ensure()
    process.stop()
    assert gone(servers.pids())


def test_one_that_is_not_ready_in_time_is_ended_and_the_error_names_the_setting(servers: Servers) -> None:
    process = servers("sleeps", startup_seconds=1)
    process.start()
    assert happens(lambda: len(servers.pids()) == 2)
    with pytest.raises(
        Temporary,
        match=r"not ready after 1 seconds; its log is .*Raise spec\.game\.trainer\.with\.sampler\.startupSeconds",
    ):
        process.ensure()
    assert not process.alive
    assert gone(servers.pids())


def test_a_program_that_is_not_installed_is_named_with_how_to_install_it() -> None:
    with pytest.raises(
        InvalidManifest, match=r"sampler\.command .*environment of its own \(`uv tool install vllm`.*or give the url"
    ):
        find_program(VllmOptions.model_validate({"engine": "vllm", "command": ["no-such-vllm"]}))
