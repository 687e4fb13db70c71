"""Checks of environments, for `swarmgame env check` and for the tests of all environments.

Questions are made and scored in the sandbox, as in a game. A check changes nothing and downloads nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from swarmgame.data.environment_catalog import LENIENT, NOT_SOLVED_BY_OWN_ANSWER
from swarmgame.sandbox.client import CallResult, Sandbox
from swarmgame.seeds import derive_seed
from swarmgame.user_code import printable, short_path

_MODULE = "swarmgame.data.environments"
_CATALOG = "swarmgame.data.environment_catalog"
_MAKING_SECONDS = 10.0
_SHOWN = 60
GARBAGE = ("", "garbage", "[[1, 2", '{"a": 1}', "nil", "(" * 500, "\x00\ufffd", "-1/0")
MOST_FOR_GARBAGE = 0.25
"""Most that garbage may score: some scorers give a little for any answer (0.01 for countdown, 0.2 for gcd)."""


@dataclass(frozen=True)
class EnvironmentCheck:
    """The result of checking one environment.

    Args:
        name: of the environment.
        fingerprint: of its name, its options and the version of its library; part of each reference.
        deterministic: two processes make the same questions from the same seeds.
        distinct: number of different questions.
        own_answer: lowest score of a stored answer; None where none is stored.
        garbage: highest score of any garbage.
        exceptions: number of garbage answers on which the scorer raised (they score 0).
        making_ms, scoring_ms: mean time of a question and of a score, without the start of the process.
        problems: reasons not to use it; empty for a good one.
    """

    name: str
    fingerprint: str
    deterministic: bool
    distinct: int
    own_answer: float | None
    garbage: float
    exceptions: int
    making_ms: float
    scoring_ms: float
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(sandbox: Sandbox, name: str, config: Mapping[str, Any] | None = None, questions: int = 4) -> EnvironmentCheck:
    """Make a few questions twice, and score their own answers and garbage."""
    settings = dict(config or {})
    sandbox.prepare(f"{_MODULE}:keep", name, settings)
    seeds = [derive_seed("check", name, index) >> 2 for index in range(questions)]
    started = time.perf_counter()
    made = _make(sandbox, name, settings, seeds)
    making = time.perf_counter() - started
    again = _make(sandbox, name, settings, seeds)
    failures = [result.message for result in made if result.breach]
    questions_made = [(seed, result.value) for seed, result in zip(seeds, made, strict=True) if not result.breach]

    own = _score(
        sandbox, name, settings, [(seed, value["answer"]) for seed, value in questions_made if value["answer"]]
    )
    started = time.perf_counter()
    garbage = _score(sandbox, name, settings, [(seed, text) for seed, _ in questions_made[:1] for text in GARBAGE])
    scoring = time.perf_counter() - started
    own_answer = min((_value(result) for result in own), default=None)
    highest = max((_value(result) for result in garbage), default=0.0)
    same = [result.value for result in made] == [result.value for result in again]

    problems = [f"makes no question: {message}" for message in failures[:1]]
    if not same:
        problems.insert(0, _difference(sandbox, name, seeds, made, again))
    if name not in NOT_SOLVED_BY_OWN_ANSWER and own_answer is not None and own_answer < 0.99:
        problems.append(f"scores its own answer {own_answer:g}")
    if name not in LENIENT and highest > MOST_FOR_GARBAGE:
        problems.append(f"scores garbage {highest:g}")
    if any(result.breach not in ("", "exception", "program") for result in garbage):
        problems.append(
            "garbage breaks the sandbox's limits: " + ", ".join(sorted({o.breach for o in garbage if o.breach}))
        )
    return EnvironmentCheck(
        name=name,
        fingerprint=sandbox.call_trusted(f"{_CATALOG}:resolve", name, settings).get("digest", ""),
        deterministic=same,
        distinct=len({value["question"] for _, value in questions_made}),
        own_answer=own_answer,
        garbage=highest,
        exceptions=sum(result.breach == "exception" for result in garbage),
        making_ms=round(1000 * making / questions, 2),
        scoring_ms=round(1000 * scoring / len(GARBAGE), 2),
        problems=tuple(problems),
    )


def _difference(sandbox: Sandbox, name: str, seeds: list[int], made: list[CallResult], again: list[CallResult]) -> str:
    """Name the first seed whose question differs, what differs, and the line of the author's code."""
    pairs = zip(seeds, made, again, strict=True)
    seed, before, after = next(each for each in pairs if each[1].value != each[2].value)
    found = [each.value if isinstance(each.value, dict) else {"question": each.message} for each in (before, after)]
    field = next(key for key in ("question", "answer") if found[0].get(key) != found[1].get(key))
    texts = " and then ".join(printable(repr(each.get(field)), _SHOWN) for each in found)
    place = sandbox.call_trusted(f"{_CATALOG}:place", name)
    return f"two processes make different questions of seed {seed}: the {field} is {texts}" + (
        f"; see {short_path(place)}" if place else ""
    )


def _make(sandbox: Sandbox, name: str, config: dict[str, Any], seeds: list[int]) -> list[CallResult]:
    calls = [[name, config, seed] for seed in seeds]
    return sandbox.call_untrusted(f"{_MODULE}:make", calls, deadline=_MAKING_SECONDS, together=True)


def _score(sandbox: Sandbox, name: str, config: dict[str, Any], answers: list[tuple[int, str]]) -> list[CallResult]:
    return sandbox.call_untrusted(
        f"{_MODULE}:score",
        [[name, config, seed, answer] for seed, answer in answers],
        deadline=_MAKING_SECONDS,
        before=f"{_MODULE}:ready",
        shared=3,
    )


def _value(result: CallResult) -> float:
    return float(result.value) if isinstance(result.value, int | float) else 0.0
