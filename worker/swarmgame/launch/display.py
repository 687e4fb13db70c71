"""The display of a run: reads the peers' files and statuses, and keeps the view up to date.

`swarmgame run` refreshes it between two checks of its processes, `swarmgame join` from a thread. Statuses are
requested in a thread of their own, so that a peer that does not answer does not delay the view.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import Self

from swarmgame.launch.live_table import JsonLines, RunEvent, make_view
from swarmgame.observability.diagnostics.files import NewWarnings
from swarmgame.observability.peer_progress import KEEP_ROUNDS, PeerProgress
from swarmgame.observability.run_directory import PeerDirectory

Notify = Callable[[str], None]
"""Prints a message to the user; never called with a secret."""
STATUS_SECONDS = 1.0
REFRESH_SECONDS = 0.4
"""Between two refreshes: drawing must not take the peers' cores."""


class RunDisplay:
    """Shows the peers of a run from entering the context until leaving it.

    Args:
        caption: returns the line below the table.
        warnings: whether to print the warnings of the peers; not for a peer of this process, whose log shows them.
    """

    def __init__(
        self,
        title: str,
        max_rounds: int,
        directories: Mapping[int, PeerDirectory],
        *,
        caption: Callable[[], str] = lambda: "",
        warnings: bool = True,
    ) -> None:
        self.peers = [PeerProgress(index, directory, keep=KEEP_ROUNDS) for index, directory in directories.items()]
        for peer in self.peers:
            peer.refresh()
        self._warnings = NewWarnings(
            {index: directory.warnings for index, directory in directories.items()} if warnings else {}
        )
        self._caption = caption
        self._view = make_view(title, max_rounds)
        if isinstance(self._view, JsonLines):
            self._view.skip(self.peers)
        self._refreshed = 0.0
        self._messages: deque[str] = deque()
        self._done = Event()
        self._statuses = Thread(target=self._fetch_statuses, name="status", daemon=True)

    def print(self, line: str) -> None:
        """Print a message to the user, with the next refresh: a signal handler may call this while the view draws."""
        self._messages.append(line)

    def _print_messages(self) -> None:
        while self._messages:
            self._view.print(self._messages.popleft())

    def print_event(self, event: RunEvent) -> None:
        """Print an event of the run; on a pipe as a JSON line too."""
        self._view.print_event(event)

    def refresh(self, states: Mapping[int, str] | None = None, *, now: bool = False) -> None:
        """Read what is new and show it, unless that was just done.

        Args:
            states: of the peers' processes.
            now: do so in any case.
        """
        if not now and time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        for peer in self.peers:
            peer.state = (states or {}).get(peer.index, peer.state)
            peer.refresh()
        self._print_messages()
        self._print_warnings()
        self._view.set_caption(self._caption())
        self._view.show(self.peers)

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        """Refresh from a thread while the block runs."""
        done = Event()

        def work() -> None:
            while not done.wait(REFRESH_SECONDS):
                self.refresh(now=True)

        thread = Thread(target=work, name="display", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=5.0)

    def __enter__(self) -> Self:
        self._statuses.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._statuses.join(timeout=5.0)
        for peer in self.peers:
            peer.refresh()
        self._print_messages()
        self._print_warnings()
        for line in self._warnings.totals():
            self._view.print(line)
        self._view.close(self.peers)

    def _print_warnings(self) -> None:
        """Print the warnings of the peers, each once, above the table."""
        for warning in self._warnings.read():
            self._view.print(str(warning))

    def _fetch_statuses(self) -> None:
        while not self._done.wait(STATUS_SECONDS):
            for peer in self.peers:
                peer.fetch_status(timeout_seconds=1.0)
