"""A neighbour: another seat of the world, and our pair with it, which is made again whenever it has broken.

Two threads belong to it: one agrees on a pairing, makes it, and then hears; the other speaks. What is heard goes to the
asyncio loop, what is said comes from there. A pairing is agreed on in the store: each side offers a number to the
other's incarnation, and the higher one counts; both begin with the signature of its name, which contains both
incarnations, so that each knows which key the other holds and nothing that was signed before is of use.

Invariants: no thread waits for the loop, nor the loop for a thread; what was asked over a pair that breaks fails at
once; a neighbour that said goodbye is not paired with again before it has been started anew.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from swarmgame.game.state import PeerId
from swarmgame.swarm.identity import SIGNATURE_BYTES, Identity, verify
from swarmgame.swarm.transports.base import CALL_BYTES, Unreachable
from swarmgame.swarm.transports.gloo import PING_SECONDS, SEND_SECONDS, Broken, Frame, Kind, Pair
from swarmgame.swarm.transports.world import HEARTBEAT_BYTES, Seat, World

logger = logging.getLogger(__name__)

NAME_BYTES, FETCH_BYTES = 32, 40
"""A body's name; and what FETCH carries: the name, and how long the body may be."""
_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 4.0
"""How long the other may take to come to a pairing that both agreed on: on a busy machine later than at first, which
doubles each time.
"""
_PATIENCE_SECONDS = 2.0
"""How long a request waits for a pair that is not there."""
_WAITING = 256
"""Frames that may wait to be sent: a neighbour that takes so few is not reached."""

Words = tuple[Kind, int, bytes]
Waiting = SimpleQueue[Words | None]


class Neighbour:
    """Another seat. What is not said to be for threads is called on the loop.

    Args:
        identity: ours.
        request: gets CALL, FETCH and HEARTBEAT, on the loop.
    """

    def __init__(
        self, index: int, world: World, identity: Identity, device: Any, request: Callable[[Neighbour, Frame], None]
    ) -> None:
        self.index = index
        self.peer: PeerId | None = None
        """Who is there; None while there is no pair."""
        self.heartbeat = b""
        """The last one that it told us itself: the store may be away."""
        self._world, self._identity, self._device, self._request = world, identity, device, request
        self._loop = asyncio.get_running_loop()
        self._paired = asyncio.Event()
        self._asked: dict[int, tuple[asyncio.Future[Frame], int]] = {}
        self._numbers = count(1)
        self._waiting: Waiting | None = None
        self._left = ""
        """The incarnation that has said goodbye."""
        self._pair: Pair | None = None
        self._incarnation = ""
        """With which the pair is."""
        self._thread = threading.Thread(target=self._stay, name=f"pair-{world.place.index}-{index}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def paired(self, seconds: float) -> None:
        """Waits until there is a pair.

        Raises:
            Unreachable: there is none in time, or nobody sits there.
        """
        seat = self._world.seats[self.index]
        if self.peer is None and (seat is None or seat.incarnation == self._left):
            raise Unreachable(f"nobody sits at seat {self.index}")
        try:
            async with asyncio.timeout(seconds):
                await self._paired.wait()
        except TimeoutError as error:
            raise Unreachable(f"seat {self.index} is not paired with us") from error

    async def ask(self, kind: Kind, payload: bytes, limit: int, seconds: float) -> Frame:
        """The answer to a request.

        Args:
            limit: how long the answer may be; one that is longer says so.

        Raises:
            Unreachable
        """
        number = next(self._numbers)
        answer: asyncio.Future[Frame] = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                await self.paired(min(seconds, _PATIENCE_SECONDS))
                self._asked[number] = (answer, limit)
                self.say(kind, number, payload)
                return await answer
        except TimeoutError as error:
            raise Unreachable(f"{self.peer} did not answer within {seconds:g} s") from error
        finally:
            self._asked.pop(number, None)

    def say(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        """Sends a frame, soon.

        Raises:
            Unreachable: there is no pair, or it takes nothing.
        """
        if self._waiting is None or self._waiting.qsize() >= _WAITING:
            raise Unreachable(f"seat {self.index} takes nothing")
        self._waiting.put((kind, number, payload))

    def part(self) -> None:
        """Says goodbye, where there is a pair; it ends with the answer."""
        if self._waiting is not None:
            self._waiting.put((Kind.BYE, 0, b""))

    def look(self) -> None:
        """Ends a pair with an incarnation that sits there no more: it need not have been closed. For any thread."""
        seat = self._world.seats[self.index]
        if seat is not None and self._pair is not None and seat.incarnation != self._incarnation:
            self.break_off()

    def break_off(self) -> None:
        """Ends the pair, where there is one, without a word. For any thread."""
        pair = self._pair
        if pair is not None:
            pair.break_off()

    def join(self, deadline: float) -> None:
        """Waits for the thread, which ends when the world closes; given up at the deadline. For any thread but it."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    # ── the loop's side
    def _met(self, peer: PeerId, waiting: Waiting) -> None:
        self.peer, self._waiting = peer, waiting
        self._paired.set()

    def _heard(self, frame: Frame) -> None:
        if frame.kind in (Kind.CALL, Kind.FETCH, Kind.HEARTBEAT):
            self._request(self, frame)
        elif (asked := self._asked.get(frame.number)) is not None and not asked[0].done():
            asked[0].set_result(frame)

    def _parted(self) -> None:
        self._paired.clear()
        self._waiting = None
        for answer, _ in self._asked.values():
            if not answer.done():
                answer.set_exception(Unreachable(f"the pair with {self.peer} has broken"))
        self.peer = None

    # ── the threads' side
    def _stay(self) -> None:
        incarnation, number = "", 0
        while (agreed := self._agree(incarnation, number)) is not None:
            seat, number = agreed
            incarnation = seat.incarnation
            try:
                self._converse(seat, number)
                self._left = incarnation
                if self.index == 0:
                    self._world.excused = incarnation
            except (Broken, OSError, RuntimeError) as error:  # of the pair, of the way to the store, of the store
                logger.debug("the pair with seat %d has broken: %s", self.index, str(error).partition("\n")[0])
            number += 1

    def _agree(self, incarnation: str, number: int) -> tuple[Seat, int] | None:
        """Waits until both sides offer the same pairing; None at the end of the world. The number is the least that may
        be agreed on.
        """
        world, offered = self._world, ("", -1)
        with world.changed:
            while not world.closing:
                seat = world.seats[self.index]
                if seat is not None and seat.incarnation != self._left:
                    if seat.incarnation != incarnation:
                        incarnation, number = seat.incarnation, 0
                    theirs = world.offered_by(self.index, incarnation)
                    number = max(number, theirs)
                    if offered != (incarnation, number):
                        offered = (incarnation, number)
                        world.offer(self.index, *offered)
                    if theirs == number:
                        return seat, number
                world.changed.wait()
        return None

    def _converse(self, seat: Seat, number: int) -> None:
        """Makes the pair, and hears until the other says goodbye.

        Raises:
            Broken, OSError, RuntimeError
        """
        ours, theirs = (self._world.place.index, self._world.incarnation), (self.index, seat.incarnation)
        name = f"pair/{'/'.join(f'{index}-{incarnation}' for index, incarnation in sorted((ours, theirs)))}/{number}"
        rank = int(ours > theirs)
        seconds = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(number, 2))
        pair = Pair(self._world.client(seconds), name, rank, self._device, seconds)
        self._acquaint(pair, name, rank, seat.peer, seconds)
        waiting: Waiting = SimpleQueue()
        speaker = threading.Thread(target=_speak, args=(pair, waiting), name=f"{self._thread.name}-speaks", daemon=True)
        speaker.start()
        last: Words | None = None
        self._pair, self._incarnation = pair, seat.incarnation
        self._tell(self._met, seat.peer, waiting)
        try:
            while (frame := pair.receive(self._allowed)).kind is not Kind.BYE:
                if frame.kind is not Kind.PING:
                    self._tell(self._heard, frame)
            last = (Kind.BYE, 0, b"")
        finally:
            self._pair = None
            self._tell(self._parted)
            waiting.put(last)
            speaker.join(SEND_SECONDS)

    def _acquaint(self, pair: Pair, name: str, rank: int, peer: PeerId, seconds: float) -> None:
        """Both show that they hold the key which their seat names. One speaks first: gloo's send waits until somebody
        receives.
        """
        if rank == 0:
            pair.send(Kind.HELLO, 0, self._identity.sign(_greeting(name, 0)))
        hello = pair.receive(lambda kind, number: SIGNATURE_BYTES, seconds)
        if hello.kind is not Kind.HELLO or not verify(peer, _greeting(name, 1 - rank), hello.payload):
            raise Broken(f"whoever sits there does not hold the key of {peer}")
        if rank == 1:
            pair.send(Kind.HELLO, 0, self._identity.sign(_greeting(name, 1)))

    def _allowed(self, kind: Kind, number: int) -> int:
        if kind is Kind.FETCH:
            return FETCH_BYTES
        if kind is Kind.BODY:
            asked = self._asked.get(number)
            return asked[1] if asked is not None else 0
        if kind is Kind.HEARTBEAT:
            return HEARTBEAT_BYTES
        return CALL_BYTES if kind in (Kind.CALL, Kind.ANSWER) else 0

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            logger.debug("the loop is closed, and nobody is told")


def _speak(pair: Pair, waiting: Waiting) -> None:
    """Sends what waits, and a PING when nothing does; ends after a BYE, at None, and when the pair breaks."""
    kind: Kind | None = None
    try:
        while kind is not Kind.BYE:
            try:
                words = waiting.get(timeout=PING_SECONDS)
            except Empty:
                words = (Kind.PING, 0, b"")
            if words is None:
                return
            kind = words[0]
            pair.send(*words)
    except Broken as error:
        logger.debug("a pair takes nothing more: %s", error)  # gloo has closed it, so that who hears knows it too


def _greeting(name: str, rank: int) -> bytes:
    return f"swarmgame-pair/1|{name}|{rank}".encode()
