"""Whether a game's data is deterministic: it is played twice, in two processes, and the questions are compared.

The processes have different hash seeds, so that an order of a set shows, and neither inherits what the other has drawn.
Compared are the questions of the first rounds, those that `resolve` makes again, held-out questions, and the prompts
of stage 0. Scores are not: a reward may be a judge that never says the same twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from swarmgame.data.dataset import FiniteData
from swarmgame.environments.sandboxed import episodes_of
from swarmgame.errors import BadGame
from swarmgame.game.components import DataManager
from swarmgame.game.state import GameState, Prompt, Question
from swarmgame.runtime import environment_trial
from swarmgame.runtime.assembly import ResolvedGame, context_of, local_modules, resolve_data, roles_of
from swarmgame.user_code import definition, printable, short_path
from swarmgame_api.load import load_manifest
from swarmgame_api.manifest import SwarmGame

ROUNDS = 2
HELD_OUT = 8
SECONDS = 300.0
"""Longest time of one process; the slowest environments take a second for a question."""
_PEER, _OTHER = "peer-a", "peer-b"
_SHOWN = 60
_LINES = 12


@dataclass(frozen=True, slots=True)
class Played:
    """One question as one process made it.

    Args:
        where: `round 0, question 3`.
        method: of the data, which made it.
        row: its number in a dataset; -1 where the data is none.
        fields: texts by name: `question`, `answer`, `prompt`, `metadata.NAME`, `payload`.
    """

    where: str
    method: str
    row: int
    fields: Mapping[str, str]


def check_repeatable(game: Path, overrides: Sequence[str], resolved: ResolvedGame) -> int:
    """Play a game's data in two processes, and return how many questions were compared.

    Args:
        game: the manifest.

    Raises:
        BadGame: the questions differ; names the first difference, and the line of the code that made it.
    """
    with tempfile.TemporaryDirectory(prefix="swarmgame-env-") as folder:
        results = [Path(folder) / f"{seed}.json" for seed in (1, 2)]
        running = [_start(game, overrides, result, seed) for result, seed in zip(results, (1, 2), strict=True)]
        first, second = (_finish(process, result) for process, result in zip(running, results, strict=True))
    component = cast(type[DataManager], resolved.data.component)

    def place(row: int) -> str:
        with local_modules(resolved.folder):
            data = component(resolved.data.config, context_of(load_manifest(game, overrides), folder=resolved.folder))
            try:
                return data.place_of_row(row) if isinstance(data, FiniteData) else ""
            finally:
                data.close()

    if problem := first_difference(first, second, component, place):
        raise BadGame(f"{game}: {problem}")
    return len(first)


def check_environment(manifest: SwarmGame, resolved: ResolvedGame) -> int:
    """Play the game's environment twice for some questions, and return for how many; 0 without an environment.

    Raises:
        BadGame: two plays differ; names the question and the turn.
    """
    if resolved.environment is None:
        return 0
    with local_modules(resolved.folder):
        component = cast(type[DataManager], resolved.data.component)
        data = component(resolved.data.config, context_of(manifest, folder=resolved.folder, peer=_PEER))
        episodes = episodes_of(resolved.environment.spec, resolved.folder, manifest.spec.game.seed)
        try:
            game = manifest.spec.game
            round = roles_of(manifest).round(game.seed, game.stages, _PEER, 0, (_PEER,))
            questions = [*data.round_data(round), *data.evaluation_data(HELD_OUT)]
            if different := environment_trial.first_difference(episodes, questions):
                raise BadGame(different)
            return len(questions)
        finally:
            episodes.close()
            data.close()


def first_difference(
    first: Sequence[Played],
    second: Sequence[Played],
    data: type[DataManager],
    place: Callable[[int], str] = lambda row: f"row {row}",
) -> str:
    """Return the first difference of two processes as sentences; empty where there is none.

    Args:
        place: returns where a row of a dataset is.
    """

    def sentence(played: Played, what: str) -> str:
        line = definition(getattr(data, played.method))
        made = f"{data.__name__}.{played.method}" + (f" at {short_path(line)}" if line else "")
        row = f" ({place(played.row)})" if played.row >= 0 else ""
        return (
            f"the data is not deterministic: {played.where}{row}: {what}; {made} made it. Other peers cannot make the "
            "same question, and drop what is published. Take no clock, no random without a seed, no order of a set, "
            "and no file that changes"
        )

    for before, after in zip(first, second, strict=False):
        names = sorted({*before.fields, *after.fields})
        for name in (each for each in names if before.fields.get(each) != after.fields.get(each)):
            found = (printable(repr(each.fields.get(name)), _SHOWN) for each in (before, after))
            return sentence(before, f"{name} is {' in one process and '.join(found)} in another")
        if before.where != after.where:
            return sentence(before, f"the other process has {after.where} in its place")
    if len(first) != len(second):
        longer = first if len(first) > len(second) else second
        return sentence(longer[min(len(first), len(second))], "only one of two processes has it")
    return ""


def play(manifest: SwarmGame, folder: Path) -> Iterator[Played]:
    """Yield the questions of a game in this process.

    Args:
        folder: of the manifest.
    """
    with local_modules(folder):
        resolved = resolve_data(manifest)
        component = cast(type[DataManager], resolved.component)
        data = component(resolved.config, context_of(manifest, folder=folder.absolute(), peer=_PEER))
        try:
            yield from _played(manifest, data)
        finally:
            data.close()


def _played(manifest: SwarmGame, data: DataManager) -> Iterator[Played]:
    game = manifest.spec.game
    members = (_PEER,) if manifest.spec.peers.replicas == 1 else (_PEER, _OTHER)
    for number in range(min(ROUNDS, game.max_rounds)):
        round = roles_of(manifest).round(game.seed, game.stages, _PEER, number, members)
        questions = list(data.round_data(round))
        prompts = {prompt.question_id: prompt for prompt in data.stage_inputs(GameState.begin(round, questions), 0)}
        for index, question in enumerate(questions):
            where = f"round {number}, question {index}"
            yield _record(data, where, "round_data", question, None)
            if (prompt := prompts.get(question.id)) is not None:
                yield _record(data, where, "stage_inputs", question, prompt)
        again = data.resolve_all([question.reference for question in questions])
        for index, made in enumerate(again):
            if made is not None:
                yield _record(data, f"round {number}, question {index} again", "resolve", made, None)
    for index, question in enumerate(data.evaluation_data(HELD_OUT)):
        yield _record(data, f"held-out question {index}", "evaluation_data", question, None)


def _record(data: DataManager, where: str, method: str, question: Question, prompt: Prompt | None) -> Played:
    reference = question.reference
    if prompt is not None:
        fields = {"prompt": json.dumps([[message.role, message.content] for message in prompt.messages])}
        fields["payload"] = _value(prompt.payload)
    else:
        fields = {
            "reference": json.dumps([reference.environment, reference.config, reference.seed, reference.index]),
            "question": question.text,
            "answer": question.answer,
            "payload": _value(question.payload),
            **{f"metadata.{name}": _value(value) for name, value in question.metadata.items()},
        }
    return Played(where, method, reference.index if isinstance(data, FiniteData) else -1, fields)


def _value(value: object) -> str:
    """Return a value as text; of what JSON cannot express and that is no array, its class alone."""
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()[:16]
    return json.dumps(value, default=lambda other: type(other).__name__)


# ── the two processes


def _start(game: Path, overrides: Sequence[str], result: Path, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "swarmgame.runtime.repeatable", str(game.absolute()), str(result), *overrides]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(process: subprocess.Popen[str], result: Path) -> list[Played]:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise BadGame(f"the data did not make the questions of {ROUNDS} rounds within {SECONDS:g} s") from error
    if process.returncode:
        last = "\n".join(output.strip().splitlines()[-_LINES:])
        raise BadGame(f"the data failed when it was played:\n{last}")
    return [Played(**found) for found in json.loads(result.read_bytes())]


def _main(game: Path, result: Path, overrides: Sequence[str]) -> None:
    manifest = load_manifest(game, overrides)
    found = [
        {"where": each.where, "method": each.method, "row": each.row, "fields": dict(each.fields)}
        for each in play(manifest, game.parent)
    ]
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
