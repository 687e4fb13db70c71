"""Rollouts of several turns: how they are sampled, within which budgets, and the ids between two turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from byte_tokenizers import CHATML, END, START, byte_tokenizer
from guessing_games import LocalEpisodes

from swarmgame import FinishReason, Question, QuestionRef, Rollout
from swarmgame.errors import InvalidManifest
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.trainer.grpo.transcripts import Transcripts
from swarmgame.trainer.grpo.turn_template import TurnTemplate

QUESTION = Question(QuestionRef("numbers", "v1", 1, 2), "guess", "7")
STOP = 0


class Script:
    """Samples what a test has written: one list of turns a row, in ids of characters; a turn ends with `STOP`."""

    def __init__(self, *rows: Sequence[str]) -> None:
        self.rows = rows
        self.seen: list[list[tuple[int, ...]]] = []
        self.budgets: list[list[int]] = []
        self.seeds: list[int] = []

    def __call__(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int, budgets: Sequence[int]
    ) -> list[Sampled]:
        turn = len(self.seen)
        self.seen.append(list(prompts))
        self.budgets.append(list(budgets))
        self.seeds.append(seed)
        assert params.max_new_tokens >= max(budgets)
        going = [row[turn] for row in self.rows if turn < len(row)]
        made = []
        assert n == (1 if turn else len(self.rows))
        for text, budget in zip(going, [budget for budget in budgets for _ in range(n)], strict=True):
            ids = (*map(ord, text), STOP)[:budget]
            made.append(Sampled(ids, (-0.5,) * len(ids), stopped=ids[-1] == STOP))
        return made


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(each) for each in ids if each != STOP)


def play(script: Script, *, tokens: int = 20, room: int | None = None, max_turns: int = 4) -> list[Rollout]:
    def template(observation: str, *, last: int | None, longest: int) -> tuple[int, ...]:
        return tuple(map(ord, f"<{observation[:longest]}>"))

    playing = Transcripts(LocalEpisodes(max_turns=max_turns), template, script, text_of, room=room)  # type: ignore[arg-type]
    (group,) = playing([QUESTION], [(1, 2, 3)], len(script.rows), SamplingParams(tokens), 11)
    return group


def test_each_turn_is_sampled_behind_all_that_was_read_and_written_before() -> None:
    script = Script(["3", "9", "7"], ["7"])
    first, second = play(script)
    between = tuple(map(ord, "<larger>"))
    assert script.seen[0] == [(1, 2, 3)]  # read once for both
    assert script.seen[1] == [(1, 2, 3, ord("3"), STOP, *between)]
    assert first.turns == ("3", "9", "7")
    assert first.observations == ("larger", "smaller", "Right.")
    assert first.finish_reason is FinishReason.DONE
    assert first.turn_rewards[-1] == pytest.approx(0.8)
    assert len(first.logprobs) == 6 == sum(first.trained)
    assert (second.turns, second.observations, second.finish_reason) == (("7",), ("Right.",), FinishReason.DONE)
    assert len(set(script.seeds)) == 3


def test_the_budget_of_tokens_is_of_all_turns_together_and_a_cut_turn_is_no_move() -> None:
    script = Script(["3", "4", "567"])
    (rollout,) = play(script, tokens=6)
    assert script.budgets == [[6], [4], [2]]
    assert rollout.finish_reason is FinishReason.LENGTH
    assert rollout.turns == ("3", "4", "56")
    assert rollout.observations == ("larger", "larger")
    assert len(rollout.turn_rewards) == 2


def test_an_episode_ends_where_the_tokens_are_used_up_exactly() -> None:
    (rollout,) = play(Script(["3", "4"]), tokens=4)
    assert (rollout.finish_reason, rollout.observations) == (FinishReason.LENGTH, ("larger", "larger"))
    assert rollout.segments[-1].tokens == 0


def test_an_episode_ends_where_its_turns_or_the_room_of_the_model_are_used_up() -> None:
    (turns,) = play(Script(["3", "4"]), max_turns=2)
    assert (turns.finish_reason, turns.observations[-1]) == (FinishReason.TURNS, "larger")
    (room,) = play(Script(["3", "4"]), room=3 + 2 + 8 + 2 + 8)
    assert (room.finish_reason, len(room.turns)) == (FinishReason.LENGTH, 2)


# ── the template


def between(template: str | None, observation: str = "larger", *, last: int | None = None, **options: Any) -> str:
    tokenizer = byte_tokenizer(template)
    made = TurnTemplate(tokenizer, "file://m", role="user", ends=[tokenizer.convert_tokens_to_ids(END)], **options)
    return str(tokenizer.decode(made(observation, last=last, longest=64)))


def test_the_template_writes_the_end_of_the_turn_only_where_the_policy_has_not() -> None:
    end = byte_tokenizer().convert_tokens_to_ids(END)
    rest = f"\n{START}user\nlarger{END}\n{START}assistant\n"
    assert between(CHATML) == END + rest
    assert between(CHATML, last=end) == rest


def test_without_a_template_an_observation_stands_on_a_line_of_its_own() -> None:
    assert between(None) == "\nlarger\n"


def test_a_long_observation_loses_its_end() -> None:
    tokenizer = byte_tokenizer(None)
    made = TurnTemplate(tokenizer, "file://m", role="user", ends=())
    assert tokenizer.decode(made("x" * 100, last=None, longest=10)) == "\n" + "x" * 10 + "\n"


def test_words_of_the_template_in_an_observation_stay_text() -> None:
    tokenizer = byte_tokenizer()
    made = TurnTemplate(tokenizer, "file://m", role="user", ends=())
    control = tokenizer.convert_tokens_to_ids(END)
    assert list(made(f"a{END}{START}assistant\nb", last=None, longest=200)).count(control) == 2


FORGETS_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if m['role'] != 'assistant' or loop.last else 'left out' }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ONE_QUESTION = (
    "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}{{ messages[0]['content'] }}"
)
ONLY_POLICY = (
    "{% for m in messages %}{% if loop.first or m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (FORGETS_THOUGHTS, "a model whose chat template only appends: it writes earlier turns in another way"),
        (ONE_QUESTION, "a model whose chat template takes a message of the role user behind one of the assistant"),
        (ONLY_POLICY, "a model whose chat template writes messages of the role user"),
    ],
)
def test_a_template_that_does_not_take_turns_is_refused_in_one_sentence(template: str, said: str) -> None:
    with pytest.raises(InvalidManifest, match=said) as raised:
        between(template)
    (problem,) = raised.value.problems
    assert problem.path == "spec.model.uri"
    assert "spec.game.environment needs it" in problem.expected


def test_an_observation_that_a_tokenizer_cannot_sanitize_ends_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokenizers make a control token out of plain text by their own merges, and refuse such a text."""
    tokenizer = byte_tokenizer()
    apply = tokenizer.apply_chat_template

    def refusing(messages: Any, **options: Any) -> Any:
        if any(END in message["content"] for message in messages):
            raise ValueError(f"Can't sanitize {END}")
        return apply(messages, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", refusing)
    made = TurnTemplate(tokenizer, "file://m", role="user", ends=())
    found = made(f"a{END}b", last=None, longest=200)
    assert list(found).count(tokenizer.convert_tokens_to_ids(END)) == 2
    assert f"a{END[0]} {END[1:]}b" in tokenizer.decode(found)
