"""Progress: asks one ready peer, and the gateway, how the game is doing, and takes nothing on trust.

What a pod says is a stranger's bytes: capped in size and time, then checked by a schema whose every field has bounds.
Invariant: an answer that does not fit changes nothing, and a pod that does not answer delays nobody: it is asked less
and less often.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from swarmgame_operator.logs import log
from swarmgame_operator.observe import Cache, Key
from swarmgame_operator.observed import ChainFacts, ProgressFacts

LARGEST_ANSWER = 256 * 1024
SECONDS = 3.0
AT_ONCE = 32
LONGEST_SILENCE = 60.0
_COUNT = Field(ge=0, le=2**31 - 1)
_ROUND = Annotated[int, Field(ge=-1, le=2**31 - 1)]
_WHEN = Annotated[float, Field(ge=0, le=32_503_680_000)]
_WORDS = Annotated[str, Field(max_length=65_536)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


Answer = TypeVar("Answer", bound=_Answer)


class PeerAnswer(_Answer):
    """A peer's `/status`, as far as it is used."""

    index: Annotated[int, _COUNT] = 0
    phase: Annotated[str, Field(max_length=32)] = "running"
    rounds_finished: Annotated[int, _COUNT] = 0
    stage: _ROUND = -1
    max_rounds: Annotated[int, _COUNT] = 0
    members: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=4096)] = ()
    round_finished: _WHEN | None = None
    checkpoint: _ROUND | None = None
    last_error: _WORDS = ""
    reward: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    metrics: Annotated[dict[Annotated[str, Field(max_length=64)], float | None], Field(max_length=64)] = {}

    def facts(self, seen: datetime) -> ProgressFacts:
        figures = {name: value for name, value in self.metrics.items() if value is not None and math.isfinite(value)}
        if self.reward is not None:
            figures["reward"] = self.reward
        return ProgressFacts(
            seen=seen,
            index=self.index,
            phase=self.phase,
            rounds_finished=self.rounds_finished,
            stage=self.stage,
            max_rounds=self.max_rounds,
            members=len(self.members),
            round_finished=None if self.round_finished is None else datetime.fromtimestamp(self.round_finished, UTC),
            checkpoint=self.checkpoint,
            last_error=self.last_error[:1024],
            metrics=figures,
        )


class GatewayAnswer(_Answer):
    """The gateway's `/status`, as far as it is used."""

    problem: _WORDS = ""
    walletEmpty: bool = False
    chainId: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    contract: Annotated[str, Field(max_length=64)] | None = ""
    registered: Annotated[int, _COUNT] = 0
    reverted: _WORDS = ""
    round: _ROUND = -1
    roundAge: Annotated[float, Field(ge=-1e12, le=1e12)] | None = 0.0
    lastBlock: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = 0

    def facts(self) -> ChainFacts:
        return ChainFacts(
            problem=self.problem[:1024],
            wallet_empty=self.walletEmpty,
            chain_id=self.chainId,
            contract=self.contract or "",
            registered=self.registered,
            reverted=self.reverted[:1024],
            round=self.round,
            round_age=max(0.0, self.roundAge or 0.0),
            last_block=self.lastBlock or 0,
        )


class Progress:
    """What was last heard of every game, and the asking.

    Args:
        every: seconds between two questions about a game; 0: never ask.
        changed: told the key of a game of which something new was heard.
        address: of a pod's HTTP port, from its IP and the port; tests have their own.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        every: float,
        changed: Callable[[Key], None],
        address: Callable[[str, int], str] = lambda ip, port: f"http://{f'[{ip}]' if ':' in ip else ip}:{port}",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache, self._every, self._changed, self._address, self._now = cache, every, changed, address, now
        self._peers: dict[Key, ProgressFacts] = {}
        self._chains: dict[Key, ChainFacts] = {}
        self._due: dict[Key, float] = {}
        self._silent: dict[Key, int] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def of(self, key: Key) -> tuple[ProgressFacts | None, ChainFacts | None]:
        """What was last heard; None: nothing yet."""
        return self._peers.get(key), self._chains.get(key)

    def forget(self, key: Key) -> None:
        for held in (self._peers, self._chains, self._due, self._silent):
            held.pop(key, None)

    async def run(self) -> None:
        """Asks, for ever."""
        if self._every <= 0:
            return
        connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
            while True:
                loop = asyncio.get_running_loop()
                began = loop.time()
                due = [
                    key
                    for key, _ in self._cache.games()
                    if self._due.get(key, 0.0) <= began and self._cache.has_ready_pods(key)
                ]
                await asyncio.gather(*(self._ask_in_turn(session, key) for key in due))
                await asyncio.sleep(max(0.2, min(1.0, self._every / 2) - (loop.time() - began)))

    async def _ask_in_turn(self, session: aiohttp.ClientSession, key: Key) -> None:
        async with self._slots:
            heard = await self.ask(session, key)
        silent = 0 if heard else self._silent.get(key, 0) + 1
        self._silent[key] = silent
        self._due[key] = asyncio.get_running_loop().time() + min(
            max(LONGEST_SILENCE, self._every), self._every * 2.0 ** min(silent, 10)
        )

    async def ask(self, session: aiohttp.ClientSession, key: Key) -> bool:
        """Asks about one game. Returns whether anybody answered."""
        heard = False
        ready = [
            pod for pod in self._cache.pods(key, "peer") if pod.facts.ready and pod.ip and not pod.facts.terminating
        ]
        if ready:
            # The first, or the next one after each that was silent: one that is busy says nothing of the others.
            pod = sorted(ready, key=lambda each: each.facts.index or 0)[self._silent.get(key, 0) % len(ready)]
            answer = await self._fetch(session, key, self._address(pod.ip, 8080), PeerAnswer)
            if answer is not None:
                heard = True
                self._keep_peer(key, answer.facts(self._now()))
        gateways = [pod for pod in self._cache.pods(key, "gateway") if pod.ip and pod.facts.phase == "Running"]
        if gateways:
            said = await self._fetch(session, key, self._address(gateways[0].ip, 8645), GatewayAnswer)
            if said is not None:
                heard = True
                self._keep_chain(key, said.facts())
        return heard

    def _keep_peer(self, key: Key, facts: ProgressFacts) -> None:
        old = self._peers.get(key)
        if old is None or replace(old, seen=facts.seen) != facts:
            self._peers[key] = facts
            self._changed(key)

    def _keep_chain(self, key: Key, facts: ChainFacts) -> None:
        old = self._chains.get(key)
        quiet = old is not None and replace(old, round_age=facts.round_age, last_block=facts.last_block) == facts
        if not quiet:  # a chain's head moves all the time; that alone is not worth a write
            self._chains[key] = facts
            self._changed(key)

    async def _fetch(self, session: aiohttp.ClientSession, key: Key, root: str, schema: type[Answer]) -> Answer | None:
        try:
            async with session.get(f"{root}/status", allow_redirects=False) as response:
                raw = await _read(response)
            return schema.model_validate_json(raw)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("no answer", key=key, address=root, error=type(error).__name__)
        except ValidationError as error:
            log.warning("answer refused", key=key, address=root, problem=_first(error))
        except ValueError as error:
            log.warning("answer refused", key=key, address=root, problem=str(error))
        return None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it is small.

    Raises:
        ValueError: it is not 200, or too large.
    """
    if response.status != 200:
        raise ValueError(f"status {response.status}; expected 200")
    raw = b""
    async for part in response.content.iter_chunked(16_384):
        raw += part
        if len(raw) > LARGEST_ANSWER:
            raise ValueError(f"more than {LARGEST_ANSWER} bytes")
    return raw


def _first(error: ValidationError) -> str:
    found: Any = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
