"""A trial of a game before anything starts: one question of the data, and one call of the rewards.

It runs what a peer does first (questions, prompts, a round with other peers, the score of a right answer and of an
empty one) and stops after a few seconds. Errors of the author's code come with the author's lines; what is legal but
probably not meant becomes a warning. Invariant: a reward function runs where the game runs it, in the sandbox unless it
is trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread, get_ident
from typing import Any, NamedTuple

from swarmgame.errors import BadGame, InvalidManifest, SwarmGameError
from swarmgame.game.components import ComponentContext, DataManager, RewardManager
from swarmgame.game.explained import explained
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange
from swarmgame.game.reward_checks import checked_rewards
from swarmgame.game.roles import RoleManager
from swarmgame.game.state import Contribution, GameState, Group, PeerId, Prompt, Question, Rollout, Round
from swarmgame.runtime.turn_trial import try_turns
from swarmgame.user_code import describe, kind_of, printable

_MOST_MEMBERS = 8
"""Most peers of the trial, of which each has its own instance of the data."""
TRIAL_SECONDS = 15.0
"""Most processor time of the trial's thread. A slow game is not a wrong one: it is left out, with a warning."""
WALL_FACTOR = 4
"""The trial's most wall-clock time, as a multiple of that: it may wait, for the sandbox or for a busy processor."""


class _Asked(NamedTuple):
    """The questions of the first round, and the prompts of its first stage, which may be none."""

    round: Round
    questions: Sequence[Question]
    prompts: Sequence[Prompt]


class TrialResult(NamedTuple):
    """What a trial found.

    Args:
        warnings: as sentences.
        prompt: one of the first stage; None where the game has none, or the trial took too long.
        question: of that prompt; likewise.
    """

    warnings: tuple[str, ...]
    prompt: Prompt | None
    question: Question | None = None


def try_game(
    progression: Progression,
    data: type[DataManager],
    data_config: Any,
    rewards: type[RewardManager],
    rewards_config: Any,
    context: ComponentContext,
    *,
    roles: RoleManager | None = None,
    replicas: int = 2,
    seconds: float = TRIAL_SECONDS,
) -> TrialResult:
    """Create the data, and try it and the rewards.

    Args:
        roles: of the game; None where it has none.
        replicas: number of peers of the game; 0 where it is suspended.
        seconds: most processor time of the trial, without that of creating the data; it may take `WALL_FACTOR` times
            that by the clock.

    Returns:
        What the trial found.

    Raises:
        InvalidManifest: a configuration cannot be used.
        BadGame: the author's code failed; with the author's lines.
    """
    roles = roles or RoleManager()
    members = _members(roles, replicas)[: 1 if progression.single_peer else None]
    with explained(data, "its constructor"):
        created = [data(data_config, replace(context, peer=members[0]))]
    warnings: list[str] = []
    rounds: list[Round] = []
    prompts: list[Prompt] = []
    questions: list[Question] = []

    def trial() -> None:
        with explained(data, "content_digest"):
            created[0].content_digest()
        asked = _try_data(created[0], progression, rounds, warnings)
        if asked is None:
            return
        gathers, trains = progression.exchange is Exchange.GATHER, progression.sharing.external_groups > 0
        if not progression.single_peer and (gathers or trains):
            problem = _other_question(created[0], asked.questions[0])
            if problem and trains:
                raise BadGame(problem)
            warnings.extend([problem] if problem else [])
            players = list(zip(created if len(created) > 1 else created * len(rounds), rounds, strict=True))
            stages = progression.stages if gathers else 1
            if len(members) < _MOST_MEMBERS or _has_takers(roles, members):
                warnings.extend(try_turns(players, stages, progression.seed, trains_on_others=trains))
            else:
                warnings.append(f"the roles need more than {_MOST_MEMBERS} peers, so the turns were not tried")
        prompts.extend(asked.prompts)
        questions.extend(asked.questions)
        with explained(rewards, "check_with"):
            rewards.check_with(rewards_config, context, asked.questions[0])
        if asked.prompts and rewards.needs_trial(rewards_config):
            warnings.extend(_try_rewards(rewards, rewards_config, context, created[0], asked))

    try:
        if data.__module__.partition(".")[0] != "swarmgame":  # built-in data depends on no peer, and may be large
            for peer in members[1:]:
                with explained(data, "its constructor"):
                    created.append(data(data_config, replace(context, peer=peer)))
        rounds = [roles.round(progression.seed, progression.stages, peer, 0, members) for peer in members]
        exceeded = _limit_exceeded(seconds, trial)
        if exceeded:
            warnings.append(
                f"the trial of {data.__name__} and {rewards.__name__} took longer than {exceeded} and was left out: "
                "a mistake in them shows in the first round"
            )
    finally:
        for each in created:
            each.close()
    first = prompts[0] if prompts else None
    question = next((each for each in questions if first is not None and each.id == first.question_id), None)
    return TrialResult(tuple(warnings), first, question)


def _members(roles: RoleManager, replicas: int) -> tuple[PeerId, ...]:
    """Return as few peers as leave no role of the manifest without a taker: at least two, and at most `replicas`."""
    peers = tuple(f"peer-{number:03}" for number in range(max(2, min(replicas or _MOST_MEMBERS, _MOST_MEMBERS))))
    sizes = range(2, len(peers) + 1)
    return peers[: next((size for size in sizes if _has_takers(roles, peers[:size])), len(peers))]


def _has_takers(roles: RoleManager, members: Sequence[PeerId]) -> bool:
    """Return whether each role of the manifest has a taker where peers have roles by rank."""
    return {role.name for role in roles.roles} <= {*RoleManager(roles.roles).assign(tuple(members)).values()}


def _try_data(
    data: DataManager, progression: Progression, rounds: Sequence[Round], warnings: list[str]
) -> _Asked | None:
    """Return what the first round asks; None where it asks nothing.

    Args:
        rounds: the first round as each peer sees it. The next peer's is tried where one asks nothing, such as a judge.
    """
    name = type(data).__name__
    for here in rounds:
        questions = _questions_of(data, here)
        if questions:
            break
    else:
        warnings.append(f"{name}.round_data returns no question in round 0, so nothing is sampled there")
        return None
    with explained(type(data), "stage_inputs"):
        state = GameState.begin(here, questions)
        prompts: Sequence[Prompt] = _all_of(data.stage_inputs(state, 0), Prompt, f"{name}.stage_inputs")
    if not prompts:
        warnings.append(f"{name}.stage_inputs returns no prompt in stage 0 of round 0, so nothing is sampled there")
        return _Asked(here, questions, ())
    if progression.evaluate_every:
        with explained(type(data), "evaluation_data"):
            held_out = data.evaluation_data(1)
        if not held_out:
            warnings.append(
                f"spec.game.evaluation is set, but {name}.evaluation_data returns no question: nothing is evaluated"
            )
    return _Asked(here, questions, prompts)


def _questions_of(data: DataManager, round: Round) -> Sequence[Question]:
    with explained(type(data), "round_data"):
        return _all_of(data.round_data(round), Question, f"{type(data).__name__}.round_data")


def _other_question(data: DataManager, question: Question) -> str:
    """Return a sentence where another peer would make another question of a reference; otherwise an empty text."""
    with explained(type(data), "resolve_all"):
        resolved = data.resolve_all([question.reference])[0]
    if resolved is None or (resolved.text, resolved.answer) == (question.text, question.answer):
        return ""
    return (
        f"{type(data).__name__}.resolve makes another question from a reference than round_data did: other peers score "
        "answers to a question that nobody asked. Derive everything from the reference"
    )


def _try_rewards(
    rewards: type[RewardManager], config: Any, context: ComponentContext, data: DataManager, asked: _Asked
) -> list[str]:
    """Score a rollout with the right answer to a question, and an empty one.

    Returns:
        Warnings: what failed on a rollout that the game may never have.

    Raises:
        BadGame: the right answer cannot be scored, or what was returned is no reward; with the author's lines.
    """
    prompt = asked.prompts[0]
    question = next((each for each in asked.questions if each.id == prompt.question_id), asked.questions[0])
    with explained(rewards, "its constructor"):
        manager = rewards(config, context)
    try:
        if not prompt.messages:
            return _try_answer(manager, data, asked.round, question, prompt, "0", "action 0", certain=False)
        right = f"the right answer of a question ({printable(repr(question.answer), 60)})"
        if question.answer:
            warnings = _try_answer(manager, data, asked.round, question, prompt, question.answer, right, certain=True)
            if warnings:
                return warnings
        empty = "an empty answer, as a policy gives that ends at once"
        return _try_answer(manager, data, asked.round, question, prompt, "", empty, certain=False)
    finally:
        manager.close()


def _try_answer(
    manager: RewardManager,
    data: DataManager,
    round: Round,
    question: Question,
    prompt: Prompt,
    text: str,
    what: str,
    *,
    certain: bool,
) -> list[str]:
    """Score two rollouts with one text, in every stage.

    Args:
        what: names the text.
        certain: the game has such rollouts, so that a failure is an error instead of a warning.
    """
    name = type(manager).__name__
    doing = ""
    rollouts = (Rollout(text, (0,), (-1.0,)),) * 2
    state = GameState.begin(round, [question])
    prompts: Sequence[Prompt] = [prompt]
    try:
        for stage in range(round.stages):
            if stage:
                doing = f"{type(data).__name__}.stage_inputs"
                prompts = data.stage_inputs(state, stage)
            groups = tuple(Group(each, rollouts) for each in prompts)
            made = Contribution(round.peer, round.number, stage, groups, {question.id: question.reference})
            state = state.with_contribution(made)
        doing = f"{name}.rewards"
        returned = manager.rewards(state)
    except (SwarmGameError, InvalidManifest):
        raise
    except Exception as error:
        found = describe(error)
        if not found.trace:  # our own code
            raise
        sentence = f"{doing} failed when it was tried once, with {what}: {found}"
        if round.stages > 1 and any(role for peer, role in round.roles.items() if peer != round.peer):
            return [f"{sentence}. No other role had made a move, as where its peer is lost"]
        if certain:
            raise BadGame(f"{sentence}\n{found.trace}") from error
        return [sentence]
    checked_rewards(returned, state, name)
    return []


def _all_of(values: object, kind: type[Any], place: str) -> Sequence[Any]:
    """Return the values, if they are a sequence of that class."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise BadGame(f"{place} returned {kind_of(values)}; expected a list of {kind.__name__}")
    wrong = [value for value in values if not isinstance(value, kind)]
    if wrong:
        raise BadGame(f"{place} returned a list with {kind_of(wrong[0])}; expected a list of {kind.__name__}")
    return values


def _limit_exceeded(seconds: float, work: Callable[[], None]) -> str:
    """Run a function in a thread, up to its limits. Its exception is raised here.

    Args:
        seconds: most processor time of the thread. Other threads and processes do not shorten it.

    Returns:
        The limit that it has exceeded; empty where it has ended before.
    """
    failed: list[BaseException] = []
    clocks: list[int] = []
    started = Event()

    def run() -> None:
        try:
            with suppress(AttributeError, OSError):  # not every system has clocks of threads; then the wall's decides
                clocks.append(time.pthread_getcpuclockid(get_ident()))
            started.set()
            work()
        except BaseException as error:  # noqa: BLE001 — raised by the caller's thread
            failed.append(error)

    thread = Thread(target=run, name="trial", daemon=True)
    thread.start()
    started.wait()
    end = time.monotonic() + WALL_FACTOR * seconds
    while True:
        thread.join(min(0.1, seconds))
        if not thread.is_alive():
            break
        if time.monotonic() >= end:
            return f"{WALL_FACTOR * seconds:g} s"
        if clocks and _processor_seconds(clocks[0]) > seconds:
            return f"{seconds:g} s of processor time"
    if failed:
        raise failed[0]
    return ""


def _processor_seconds(clock: int) -> float:
    """Return the time of a thread's clock; 0 where the thread has just ended."""
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0
