"""The status poller: reads `/status` of one ready peer and of the gateway of every game, at the pod's address or
through the API server's proxy.

Answers are untrusted: limited in size and time, then validated by a schema with bounds for every field. An invalid
answer changes nothing. Peers that do not answer are polled less and less often, and `silence` says since when.
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

from swarmgame_common.logs import get_logger
from swarmgame_common.sockets import host_and_port
from swarmgame_operator.api import POD, Api
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.errors import OperatorError
from swarmgame_operator.plan.game_context import GATEWAY_PORT, HTTP_PORT
from swarmgame_operator.snapshot import ChainFacts, PollFacts, ProgressFacts
from swarmgame_operator.snapshot_builder import PodRecord

log = get_logger(__name__)

MAX_ANSWER_BYTES = 256 * 1024
REQUEST_SECONDS = 3.0
MAX_ERROR = 300
"""Characters of an error that are kept."""
CONCURRENT_REQUESTS = 32
MAX_INTERVAL_SECONDS = 60.0
POLLS_PER_SECOND = 200
"""Above this, games are polled less often, so that new games do not wait for the operator's processor."""
_COUNT = Field(ge=0, le=2**31 - 1)
_ROUND = Annotated[int, Field(ge=-1, le=2**31 - 1)]
_TIME = Annotated[float, Field(ge=0, le=32_503_680_000)]
_TEXT = Annotated[str, Field(max_length=65_536)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


Answer = TypeVar("Answer", bound=_Answer)


class PeerAnswer(_Answer):
    """The used fields of a peer's `/status`."""

    index: Annotated[int, _COUNT] = 0
    phase: Annotated[str, Field(max_length=32)] = "running"
    rounds_finished: Annotated[int, _COUNT] = 0
    stage: _ROUND = -1
    max_rounds: Annotated[int, _COUNT] = 0
    members: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=4096)] = ()
    round_finished: _TIME | None = None
    checkpoint: _ROUND | None = None
    last_error: _TEXT = ""
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
            checkpoint=self.checkpoint if self.checkpoint is not None and self.checkpoint >= 0 else None,
            last_error=self.last_error[:1024],
            metrics=figures,
        )


class GatewayAnswer(_Answer):
    """The used fields of the gateway's `/status`."""

    problem: _TEXT = ""
    walletEmpty: bool = False
    chainId: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    contract: Annotated[str, Field(max_length=64)] | None = ""
    registered: Annotated[int, _COUNT] = 0
    reverted: _TEXT = ""
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


class StatusPoller:
    """Polls the status of all games, and keeps the last answers.

    Args:
        every: seconds between two polls of a game; 0: never.
        changed: called with the key of a game whose answer changed.
        address: of a pod's HTTP port, from its IP and the port; tests use their own.
        proxy: reads pods through the API server's proxy; None: at their addresses.
    """

    def __init__(
        self,
        cache: ClusterCache,
        *,
        every: float,
        changed: Callable[[Key], None],
        address: Callable[[str, int], str] = lambda ip, port: f"http://{host_and_port(ip, port)}",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        proxy: Api | None = None,
    ) -> None:
        self._proxy = proxy
        self._cache, self._every, self._changed, self._address, self._now = cache, every, changed, address, now
        self._peers: dict[Key, ProgressFacts] = {}
        self._chains: dict[Key, ChainFacts] = {}
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._silence: dict[Key, tuple[datetime, str]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT_REQUESTS)

    def of(self, key: Key) -> tuple[ProgressFacts | None, ChainFacts | None]:
        """Return the last answers of the peer and the gateway; None if there was none yet."""
        return self._peers.get(key), self._chains.get(key)

    def forget(self, key: Key) -> None:
        for held in (self._peers, self._chains, self._due, self._failures, self._silence):
            held.pop(key, None)

    def facts(self, key: Key) -> PollFacts:
        """Return whether the peers answer."""
        since, error = self._silence.get(key, (None, ""))
        return PollFacts(self._every > 0, since, error)

    async def run(self) -> None:
        """Poll forever."""
        if self._every <= 0:
            return
        connector = aiohttp.TCPConnector(limit=CONCURRENT_REQUESTS, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        ) as session:
            while True:
                loop = asyncio.get_running_loop()
                began = loop.time()
                due = self._due_games(began)
                await asyncio.gather(*(self._poll_and_schedule(session, key) for key in due))
                await asyncio.sleep(max(0.2, min(1.0, self._every / 2) - (loop.time() - began)))

    def _due_games(self, now: float) -> list[Key]:
        """Return the games to poll. What could not answer is forgotten of a game with nothing to poll: it is suspended,
        or its peers start again.
        """
        found = []
        for key, _ in self._cache.games():
            if self._due.get(key, 0.0) > now and key not in self._silence:
                continue
            if not self._cache.can_be_polled(key):
                self._failures.pop(key, None)
                self._due.pop(key, None)
                if self._silence.pop(key, None) is not None:
                    self._changed(key)
            elif self._due.get(key, 0.0) <= now:
                found.append(key)
        return found

    async def _poll_and_schedule(self, session: aiohttp.ClientSession, key: Key) -> None:
        async with self._slots:
            await self.poll(session, key)
        last = self._peers.get(key)
        # The first round is shown soon after it has ended.
        every = self._every if last is not None and last.rounds_finished else self._every / 2
        interval = max(every, len(self._due) / POLLS_PER_SECOND)
        failures = max(0, self._failures.get(key, 0) - 1)  # a busy peer may miss one
        self._due[key] = asyncio.get_running_loop().time() + min(
            max(MAX_INTERVAL_SECONDS, interval), interval * 2.0 ** min(failures, 10)
        )

    async def poll(self, session: aiohttp.ClientSession, key: Key) -> None:
        """Poll one game's peers and its gateway."""
        ready = [
            pod for pod in self._cache.pods(key, "peer") if pod.facts.ready and pod.ip and not pod.facts.terminating
        ]
        if ready:
            # After a failure the next peer is polled, because a busy peer says nothing about the others.
            pod = sorted(ready, key=lambda each: each.facts.index or 0)[self._failures.get(key, 0) % len(ready)]
            answer = await self._fetch(session, key, pod, HTTP_PORT, PeerAnswer)
            if isinstance(answer, PeerAnswer):
                self._failures[key] = 0
                self._keep_peer(key, answer.facts(self._now()))
            else:
                self._failures[key] = self._failures.get(key, 0) + 1
                self._keep_silence(key, f"{pod.facts.name}: {answer}")
        elif self._silence.pop(key, None) is not None:
            self._changed(key)
        gateways = [pod for pod in self._cache.pods(key, "gateway") if pod.ip and pod.facts.phase == "Running"]
        if gateways:
            status = await self._fetch(session, key, gateways[0], GATEWAY_PORT, GatewayAnswer)
            if isinstance(status, GatewayAnswer):
                self._keep_chain(key, status.facts())

    def _keep_silence(self, key: Key, error: str) -> None:
        if key not in self._silence:
            self._silence[key] = (self._now(), error)
            self._changed(key)

    def _keep_peer(self, key: Key, facts: ProgressFacts) -> None:
        old, silence = self._peers.get(key), self._silence.pop(key, None)
        if silence is not None or old is None or replace(old, seen=facts.seen) != facts:
            self._peers[key] = facts
            self._changed(key)

    def _keep_chain(self, key: Key, facts: ChainFacts) -> None:
        old = self._chains.get(key)
        same = old is not None and replace(old, round_age=facts.round_age, last_block=facts.last_block) == facts
        if not same:  # a chain's head changes all the time; that alone is not worth a write
            self._chains[key] = facts
            self._changed(key)

    async def _fetch(
        self, session: aiohttp.ClientSession, key: Key, pod: PodRecord, port: int, schema: type[Answer]
    ) -> Answer | str:
        """Return the answer, or why there is none."""
        where = f"{pod.facts.name}:{port}"
        try:
            return schema.model_validate_json(await self._read_status(session, key[0], pod, port))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("no answer", key=key, pod=where, error=type(error).__name__)
            return " ".join(str(error).split())[:MAX_ERROR] or type(error).__name__
        except OperatorError as error:
            log.debug("no answer", key=key, pod=where, error=error.reason)
            return " ".join(error.message.split())[:MAX_ERROR]
        except ValidationError as error:
            log.warning("answer refused", key=key, pod=where, problem=_first(error))
            return f"its answer is refused: {_first(error)}"
        except ValueError as error:
            log.warning("answer refused", key=key, pod=where, problem=str(error))
            return f"its answer is refused: {error}"

    async def _read_status(self, session: aiohttp.ClientSession, namespace: str, pod: PodRecord, port: int) -> bytes:
        if self._proxy is not None:
            path = POD.path(namespace, f"{pod.facts.name}:{port}", "proxy/status")
            return _bounded(await self._proxy.raw(path, largest=MAX_ANSWER_BYTES + 1, seconds=REQUEST_SECONDS))
        async with session.get(f"{self._address(pod.ip, port)}/status", allow_redirects=False) as response:
            return await _read(response)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return the body.

    Raises:
        ValueError: the status is not 200, or the body is too large.
    """
    if response.status != 200:
        raise ValueError(f"status {response.status}; expected 200")
    raw = b""
    async for part in response.content.iter_chunked(16_384):
        raw = _bounded(raw + part)
    return raw


def _bounded(raw: bytes) -> bytes:
    if len(raw) > MAX_ANSWER_BYTES:
        raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
    return raw


def _first(error: ValidationError) -> str:
    found: Any = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
