"""Rollouts for people. Their text comes from other peers: nothing in it may control a terminal or a page."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarmgame.archive.selection import Row

MOST_CHARACTERS = 1_200
"""Longest prompt or text on a terminal; JSON has all of it."""
_ENDS = {"length": ", cut off", "turns": ", no turns left", "error": ", its environment failed"}
"""How a rollout ended, where neither the policy nor the environment ended it."""
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """Return a text in which every character that is not printed itself is an escape, such as `\\x1b`.

    Escape sequences, marks that turn the direction of writing, and invisible characters are among them; line breaks
    stay.
    """
    return "".join(character if character == "\n" else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode()


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a visible text of at most `most` characters, and say how many are left out."""
    shown = visible(text[:most])
    return shown if len(text) <= most else f"{shown} … {len(text) - most:,} characters more"


def prompt_text(row: Row) -> str:
    """Return the messages of a rollout's prompt; the role is named where there is more than one."""
    messages = row["prompt"]
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def answer(row: Row) -> list[tuple[str, str]]:
    """Return the visible texts of a rollout, each with its author: `text`, or `turn 1`, `environment` and so on."""
    segments = row.get("segments") or ()
    if not segments:
        return [("text", cut(row["text"]) or "(empty)")]
    authors = ("environment" if index % 2 else f"turn {index // 2 + 1}" for index in range(len(segments)))
    most = max(80, MOST_CHARACTERS // len(segments))
    return [
        (author, cut(segment["text"], most) or "(empty)") for author, segment in zip(authors, segments, strict=True)
    ]


def facts(row: Row, names: Mapping[str, str]) -> list[str]:
    """Return what a rollout is and how it was used, as short phrases.

    Args:
        names: of peers, by id.
    """
    author = names.get(row["author"], f"…{visible(row['author'][-8:])}")
    found = [f"round {row['round']}", author if row["own"] else f"{author}, received by peer {row['archive']}"]
    found += [f"stage {row['stage']}"] if row["stage"] else []
    found += [f"role {visible(row['role'])}"] if row["role"] else []
    return [*found, visible(row["environment"])]


def use(row: Row) -> list[str]:
    """Return a rollout's reward, advantage, weight, length and outcome, as short phrases."""
    tokens = len(row["logprobs"])  # the policy's
    found = ["not scored" if missing(row["reward"]) else f"reward {row['reward']:.3f}"]
    if not missing(row["advantage"]):
        found.append(f"advantage {row['advantage']:+.3f}")
    if not missing(row["weight"]) and row["weight"] not in (0.0, 1.0):
        found.append(f"weight {row['weight']:.3f}")
    end = _ENDS.get(row["finish_reason"], "")
    return [*found, f"{tokens:,} token{'s' if tokens != 1 else ''}{end}", row["outcome"]]


def missing(value: float | None) -> bool:
    """Return whether a number is absent: the rollout was not scored, or not used."""
    return value is None or math.isnan(value)


def block(row: Row, names: Mapping[str, str]) -> RenderableType:
    """Return one rollout for a terminal of any width."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    if row["prompt"]:
        grid.add_row("prompt", Text(cut(prompt_text(row))))
    for author, text in answer(row):
        grid.add_row(author, Text(text))
    title, used = Text(" · ".join(facts(row, names)), style="bold"), Text(" · ".join(use(row)), style="dim")
    return Group(title, used, grid, Text())


def as_json(row: Row) -> dict[str, Any]:
    """Return a rollout as JSON-like values; NaN is None, and the signed announcement is in hexadecimal digits."""
    plain = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
    announcement = row["announcement"]
    return {**plain, "announcement": announcement.hex() if announcement is not None else None}
