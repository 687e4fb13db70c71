"""The display of a run: messages and drawing do not mix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from swarmgame.launch.display import RunDisplay
from swarmgame.observability.peer_progress import PeerProgress
from swarmgame.observability.run_directory import PeerDirectory


class RecordingView:
    """Records calls; a signal arrives in the middle of its first drawing."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.display: RunDisplay | None = None

    def show(self, peers: Sequence[PeerProgress]) -> None:
        self.calls.append("begin")
        if self.display is not None:
            display, self.display = self.display, None
            display.print("leaving the swarm")
        self.calls.append("end")

    def close(self, peers: Sequence[PeerProgress]) -> None:
        self.calls.append("close")

    def set_caption(self, line: str) -> None:
        """Nothing to show."""

    def print(self, line: str) -> None:
        self.calls.append(line)


@pytest.fixture
def view(monkeypatch: pytest.MonkeyPatch) -> RecordingView:
    view = RecordingView()
    monkeypatch.setattr("swarmgame.launch.display.make_view", lambda title, max_rounds: view)
    return view


def test_a_message_from_a_signal_handler_is_printed_once_and_not_inside_a_drawing(
    view: RecordingView, tmp_path: Path
) -> None:
    with RunDisplay("run", 3, {0: PeerDirectory(tmp_path)}) as display:
        view.display = display
        display.refresh(now=True)
        display.refresh(now=True)
    assert view.calls == ["begin", "end", "leaving the swarm", "begin", "end", "close"]


def test_a_message_before_the_end_is_not_lost(view: RecordingView, tmp_path: Path) -> None:
    with RunDisplay("run", 3, {0: PeerDirectory(tmp_path)}) as display:
        display.print("a peer has failed")
    assert view.calls == ["a peer has failed", "close"]
