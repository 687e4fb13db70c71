"""A trial of a game before anything starts: one question of the data, and one call of the reward function.

It runs what a peer does first (questions, prompts, another peer's view of them, one score) and stops after a few
seconds. Errors of the author's code come with the author's lines; what is legal but probably not meant becomes a
warning. Invariant: a reward function runs where the game runs it, in the sandbox unless it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

from swarmgame.errors import BadGame, InvalidManifest, SwarmGameError
from swarmgame.game.components import Component, ComponentContext, DataManager, RewardManager
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange
from swarmgame.game.state import GameState, PeerId, Prompt, Question, Round
from swarmgame.seeds import derive_seed
from swarmgame.user_code import describe, kind_of

TRIAL_SECONDS = 15.0
"""Longest time of the trial. A slow game is not a wrong one: it is left out, with a warning."""
THIS_PEER, OTHER_PEER = "peer-a", "peer-b"


def try_game(
    progression: Progression,
    data: type[DataManager],
    data_config: Any,
    rewards: type[RewardManager],
    rewards_config: Any,
    context: ComponentContext,
    *,
    seconds: float = TRIAL_SECONDS,
) -> tuple[str, ...]:
    """Create the data, and try it and the rewards.

    Args:
        seconds: longest time of the trial, without that of creating the data.

    Returns:
        Warnings, as sentences.

    Raises:
        InvalidManifest: a configuration cannot be used.
        BadGame: the author's code failed; with the author's lines.
    """
    with _explained(data, "its constructor"):
        created = data(data_config, context)
    warnings: list[str] = []

    def trial() -> None:
        question = _try_data(created, progression, warnings)
        if question is not None:
            with _explained(rewards, "check_with"):
                rewards.check_with(rewards_config, context, question)

    try:
        if not _within(seconds, trial):
            warnings.append(
                f"the trial of {data.__name__} and {rewards.__name__} took longer than {seconds:g} s and was left out: "
                "a mistake in them shows in the first round"
            )
    finally:
        created.close()
    return tuple(warnings)


def _try_data(data: DataManager, progression: Progression, warnings: list[str]) -> Question | None:
    """Return a question of the first round; None where there is none."""
    name = type(data).__name__
    here = _first_round(progression, THIS_PEER)
    with _explained(type(data), "round_data"):
        questions: Sequence[Question] = _all_of(data.round_data(here), Question, f"{name}.round_data")
    if not questions:
        warnings.append(f"{name}.round_data returns no question in round 0, so nothing is sampled there")
        return None
    with _explained(type(data), "stage_inputs"):
        state = GameState.begin(here, questions)
        prompts: Sequence[Prompt] = _all_of(data.stage_inputs(state, 0), Prompt, f"{name}.stage_inputs")
    if not prompts:
        warnings.append(f"{name}.stage_inputs returns no prompt in stage 0 of round 0, so nothing is sampled there")
        return questions[0]
    shares = progression.sharing.external_groups > 0 or progression.exchange is Exchange.GATHER
    if shares and not progression.single_peer:
        known = {question.id: question for question in questions}
        if prompts[0].question_id in known:
            warnings += _try_as_other_peer(data, progression, known[prompts[0].question_id], prompts[0])
    if progression.evaluate_every:
        with _explained(type(data), "evaluation_data"):
            held_out = data.evaluation_data(1)
        if not held_out:
            warnings.append(
                f"spec.game.evaluation is set, but {name}.evaluation_data returns no question: nothing is evaluated"
            )
    return questions[0]


def _try_as_other_peer(data: DataManager, progression: Progression, question: Question, prompt: Prompt) -> list[str]:
    """Return warnings about what another peer would drop, because it cannot make the same question or prompt."""
    name = type(data).__name__
    there = _first_round(progression, OTHER_PEER)
    with _explained(type(data), "resolve_all"):
        resolved = data.resolve_all([question.reference])[0]
    if resolved is None:
        return [
            f"{name}.resolve does not know a question of its own round_data: other peers drop all groups as "
            "unresolvable"
        ]
    if (resolved.text, resolved.answer) != (question.text, question.answer):
        return [
            f"{name}.resolve makes another question from a reference than round_data did: other peers score answers to "
            "a question that nobody asked. Derive everything from the reference"
        ]
    with _explained(type(data), "stage_inputs"):
        theirs = {p.question_id: p for p in data.stage_inputs(GameState.begin(there, [resolved]), 0)}
    expected = theirs.get(prompt.question_id)
    if expected is None or expected.messages != prompt.messages:
        found = "no prompt" if expected is None else "another prompt"
        return [
            f"{name}.stage_inputs makes {found} for the same question when another peer calls it: other peers drop "
            "all groups as prompt-mismatch. In stage 0 a prompt must depend on the question alone, not on "
            "state.round.peer, role or members"
        ]
    return []


def _first_round(progression: Progression, peer: PeerId) -> Round:
    return Round(
        number=0,
        seed=derive_seed(progression.seed, "round", 0),
        peer_seed=derive_seed(progression.seed, "peer", peer, 0),
        stages=progression.stages,
        peer=peer,
        members=(THIS_PEER,) if progression.single_peer else (THIS_PEER, OTHER_PEER),
    )


def _all_of(values: object, kind: type[Any], place: str) -> Sequence[Any]:
    """Return the values, if they are a sequence of that class."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise BadGame(f"{place} returned {kind_of(values)}; expected a list of {kind.__name__}")
    wrong = [value for value in values if not isinstance(value, kind)]
    if wrong:
        raise BadGame(f"{place} returned a list with {kind_of(wrong[0])}; expected a list of {kind.__name__}")
    return values


@contextmanager
def _explained(component: type[Component], doing: str) -> Iterator[None]:
    """Turn an exception of the author's code into `BadGame` with the author's lines."""
    try:
        yield
    except (SwarmGameError, InvalidManifest):
        raise
    except Exception as error:
        if component.__module__.partition(".")[0] == "swarmgame":
            raise
        found = describe(error)
        trace = f"\n{found.trace}" if found.trace else ""
        raise BadGame(f"{component.__module__}:{component.__name__} failed in {doing}: {found}{trace}") from error


def _within(seconds: float, work: Callable[[], None]) -> bool:
    """Run a function in a thread, and return whether it ended in time. Its exception is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 — raised by the caller's thread
            failed.append(error)

    thread = Thread(target=run, name="trial", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return False
    if failed:
        raise failed[0]
    return True
