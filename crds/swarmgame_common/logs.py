"""Logs: one JSON object a line for machines, one readable line for people.

The command that runs calls `configure` once. Modules call `get_logger(__name__)` and pass facts as keywords; what
other libraries log through `logging` is formatted the same way. Values under names such as `token` and secrets inside
texts are replaced before anything is written.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.types import EventDict, Processor

HIDDEN = "«hidden»"
SECRET_NAME = re.compile(r"(secret|passw|token$|api_?key|private|credential|authorization|mnemonic)", re.IGNORECASE)
SECRET_TEXT = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\b0x[0-9a-fA-F]{64}\b"), HIDDEN),
)
"""Tokens of the model hub, user:password in an address, HTTP credentials, and 32-byte hexadecimal numbers (a wallet's
key).
"""
MAX_DEPTH = 6
NUMBER = re.compile(r"\d+")
MAX_MESSAGES = 1024
"""Different messages whose repetitions are counted."""


def get_logger(name: str, **facts: object) -> BoundLogger:
    """Return a logger that carries facts: `log.info("round finished", round=3)`."""
    return structlog.stdlib.get_logger(name, **facts)


def configure(
    *,
    file: Path | None = None,
    stream: TextIO | None = None,
    form: Literal["auto", "json", "text"] = "auto",
    level: int | str = logging.INFO,
    limit_repeats: bool = False,
    **facts: object,
) -> None:
    """Send all logs to a stream and, if given, to a file. Calling it again replaces the earlier configuration.

    Args:
        file: JSON lines are appended to it; its folder must exist.
        stream: standard error when not given.
        form: of the stream; `auto`: text on a terminal, JSON lines on a pipe.
        limit_repeats: write a warning or error that repeats at the 1st, 10th, 100th, … time only, with its count.
        facts: added to every line (`index=2`).
    """
    stream = sys.stderr if stream is None else stream
    as_text = form == "text" or (form == "auto" and stream.isatty())
    console = logging.StreamHandler(stream)
    console.setFormatter(_formatter(_text() if as_text else _json(), facts))
    handlers: list[logging.Handler] = [console]
    if file is not None:
        to_file = logging.FileHandler(file, encoding="utf-8")
        to_file.setFormatter(_formatter(_json(), facts))
        handlers.append(to_file)
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "swarmgame", False):
            root.removeHandler(old)
            if isinstance(old, logging.FileHandler):
                old.close()
    repeats = LimitRepeats() if limit_repeats else None
    for handler in handlers:
        if repeats is not None:
            handler.addFilter(repeats)
        handler.swarmgame = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(level)
    for verbose in ("asyncio", "httpx", "urllib3", "matplotlib", "aiohttp.access"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    structlog.contextvars.clear_contextvars()
    structlog.configure(
        processors=[*_common(facts), ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class LimitRepeats(logging.Filter):
    """Passes a warning or error that repeats at powers of ten only, with its count.

    Two errors are the same if logger and text are; two warnings also if only numbers in the text differ. A record of
    structlog always passes, and so does one with `extra={"counted": True}`, whose module counts it itself. One filter
    serves several handlers: a record counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, int, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or not isinstance(record.msg, str) or hasattr(record, "counted"):
            return True
        decided: bool | None = getattr(record, "swarmgame_passes", None)
        if decided is None:
            decided = self._passes(record)
            record.swarmgame_passes = decided
        return decided

    def _passes(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        key = (record.name, record.levelno, text if record.levelno >= logging.ERROR else NUMBER.sub("#", text))
        if key not in self._counts and len(self._counts) >= MAX_MESSAGES:
            return True
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if count > 1:
            record.msg, record.args = f"{text} ({count} times so far)", ()
        return str(count).rstrip("0") == "1"


def hide_secrets(logger: object, method: str, event: EventDict) -> EventDict:
    """Replace secrets in an event; a processor of structlog."""
    return cast(EventDict, _hidden(dict(event), 0))


def _hidden(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        for pattern, instead in SECRET_TEXT:
            value = pattern.sub(instead, value)
        return value
    if depth >= MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(item, str | bytes) and SECRET_NAME.search(str(key)) else _hidden(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hidden(item, depth + 1) for item in value]
    return value


def _common(facts: Mapping[str, object]) -> list[Processor]:
    def add_facts(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**facts, **event}

    return [
        structlog.contextvars.merge_contextvars,
        add_facts,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _json() -> list[Processor]:
    return [structlog.processors.format_exc_info, hide_secrets, structlog.processors.JSONRenderer(default=str)]


def _text() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, hide_secrets, renderer]


def _formatter(last: list[Processor], facts: Mapping[str, object]) -> ProcessorFormatter:
    return ProcessorFormatter(
        foreign_pre_chain=_common(facts), processors=[ProcessorFormatter.remove_processors_meta, *last]
    )
