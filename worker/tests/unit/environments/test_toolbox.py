"""Tools as environments: what the policy reads for its calls, and what a manifest may say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame import Config, Question, QuestionRef, Tool
from swarmgame.environments.calculator import calculated
from swarmgame.environments.play import BadStep, call_of, described, digest_of, made, play
from swarmgame.environments.search import Index, Passage, _passages
from swarmgame.errors import InvalidManifest
from swarmgame.game.environment import Environment, Step

QUESTION = Question(QuestionRef("sums", "v1", 3, 4), "12*34=", "408")
CALCULATOR = "swarmgame.environments.calculator:Calculator"
SEARCH = "swarmgame.environments.search:Search"
TOOLBOX = "swarmgame.environments.toolbox:Toolbox"
RESULT: Any = "five"


class Answering(Tool):
    """Returns what a test has set."""

    Config = Config
    parameters = {"a": "anything", "b": "another"}  # noqa: RUF012 — its type says so

    def call(self, arguments: Mapping[str, Any]) -> str:
        return RESULT(arguments) if callable(RESULT) else RESULT  # type: ignore[no-any-return]


class WithoutParameters(Answering):
    parameters = {}  # noqa: RUF012 — its type says so


def environment(use: str, options: dict[str, Any], folder: Path | None = None) -> Environment:
    return made(*call_of(use, options, folder, 0))


def answers(use: str, options: dict[str, Any], *turns: str, folder: Path | None = None) -> list[str]:
    found = play(*call_of(use, options, folder, 0), described(QUESTION), turns)
    return [observation for observation, _, _ in found["steps"]]


def toolbox(*tools: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"tools": list(tools), **options}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*(3+4)", "84"),
        ("7/2", "3.5"),
        ("1/3", "0.3333333333"),
        ("8/2", "4"),
        ("2**100", str(2**100)),
        ("sqrt(2) + max(1, 2)", "3.414213562"),
        ("sum(range(10))", "45"),
        ("round(2.345, 2)", "2.35"),
        ("3 < 4", "True"),
        ("pi", "3.141592654"),
        ("1/0", "error: division by zero"),
        ("exp(1000)", "error: the result is too large"),
        ("2**5000", "error: the result is too large"),
        ("1e308*10", "error: the result is not finite"),
        ("2**10**10", "error: not calculated: a number that may have more than 16384 bits"),
        ("1 +", "error: this is no expression"),
        ("", "error: this is no expression"),
        ("speed * 2", "error: there is no such name"),
        ("(1, 2)", "error: the result is no number"),
        ("'a' * 3", "error: the result is no number"),
        ("(-1)**0.5", "error: the result is no number"),
        ("sqrt(-1)", "error: a function or an operator does not take these values"),
        ("round(12, -10**9)", "error: a function or an operator does not take these values"),
        ("1" * 1001, "error: the expression is no text of at most 1000 characters"),
        ("().__class__", "error: not calculated: a Attribute"),
        ("open('/etc/passwd')", "error: there is no such name"),
        ("breakpoint", "error: there is no such name"),
        ("aiter", "error: there is no such name"),
        ("sum([0.1]*10)", "1"),
        ("sum([1e16, 1, -1e16])", "1"),
        ("sum([2**60, 1], True)", str(2**60 + 2)),
        ("sum([[1]], [])", "error: a function or an operator does not take these values"),
        ("sum(['a'])", "error: a function or an operator does not take these values"),
        ("sum([1e308, 1e308])", "error: the result is too large"),
        ("2**(10**12 + (0 and speed))", "error: there is no such name"),
        ("2**(10**12 + (0 and sqrt))", "error: not calculated: a number that may have more than 16384 bits"),
        ("sum(range(200000))", "error: not calculated: a sequence that may have more than 131072 items"),
        ("(lambda: 1)()", "error: not calculated: a arguments"),
        ("__import__", "error: not calculated: the name __import__"),
    ],
)
def test_expressions_have_a_value_or_a_sentence(expression: str, result: str) -> None:
    assert calculated(expression, 10) == result


@pytest.mark.parametrize("expression", ["sum([[0]]*60000)", "sum([[0]]*60000, [])", "sum([(0,)]*60000, ())"])
def test_a_sum_of_sequences_is_refused_before_one_is_added(expression: str) -> None:
    """Python would copy the sequence so far for each of them, in quadratic time."""
    assert calculated(expression, 10) == "error: a function or an operator does not take these values"


@given(st.lists(st.integers(-(10**20), 10**20), max_size=5), st.lists(st.floats(-1e9, 1e9), max_size=5))
def test_sums_are_those_of_fractions(whole: list[int], others: list[float]) -> None:
    exact = sum(map(Fraction, [*whole, *others]), Fraction(0))
    found = calculated(f"sum({[*whole, *others]})", 15)
    assert found == (f"{float(exact):.15g}" if others else str(exact))


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from("+-*"))
def test_whole_numbers_are_exact(a: int, b: int, operator: str) -> None:
    expected = {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert calculated(f"({a}){operator}({b})", 3) == str(expected)


@given(st.text(alphabet="0123456789+-*/(). ,<>=ipesqrtlogabmnx'_[]", max_size=40))
def test_any_expression_has_a_short_answer(expression: str) -> None:
    found = calculated(expression, 10)
    assert found.startswith("error: ") or found in ("True", "False") or math.isfinite(float(found))
    assert 0 < len(found) < 400


@pytest.mark.parametrize("expression", [None, 3, ["1"], {"a": 1}])
def test_an_expression_that_is_no_text_is_answered(expression: object) -> None:
    assert calculated(expression, 10).startswith("error: the expression is no text")


def test_a_call_is_answered_and_a_turn_without_one_ends_the_episode() -> None:
    found = play(
        *call_of("swarmgame.environments.calculator:CalculatorEnvironment", {"name": "c"}, None, 0),
        described(QUESTION),
        ["I need <c>12*34</c>", "408", "<c>1</c>"],
    )
    assert found == {"first": "", "steps": [["408", None, False], ["", None, True]]}


def test_json_calls_are_answered_as_templates_write_responses() -> None:
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>'
    (found,) = answers("swarmgame.environments.calculator:CalculatorEnvironment", {"calls": "json"}, call)
    assert found == "<tool_response>\n2\n</tool_response>"


def test_calls_of_one_turn_are_answered_in_order_and_bounded() -> None:
    options = toolbox({"use": CALCULATOR, "name": "c"}, maxCalls=2)
    assert answers(TOOLBOX, options, "<c>1</c><c>1/0</c><c>3</c>") == [
        "1\nerror: division by zero\nerror: at most 2 calls a turn"
    ]
    assert answers(TOOLBOX, options, "<c>1</c><c>") == ["1\nerror: <c> without </c>"]


def test_the_policy_reads_how_tools_are_called_where_the_manifest_wants_it() -> None:
    options = toolbox({"use": CALCULATOR, "name": "c"}, instructions=True)
    first = environment(TOOLBOX, options).start(QUESTION).first()
    assert first == ("Tools, each with how it is called:\nc: <c>expression</c>\nA turn without a call is the answer.")
    options = toolbox({"use": f"{__name__}:Answering"}, instructions=True, calls="json")
    first = environment(TOOLBOX, options).start(QUESTION).first()
    assert '<tool_call>{"name": "answering", "arguments": {"a": "anything", "b": "another"}}</tool_call>' in first


def test_a_tool_of_ones_own_gets_its_arguments_and_long_results_lose_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = toolbox({"use": f"{__name__}:Answering", "name": "t"}, calls="json", maxResult=20)
    call = '<tool_call>{"name": "t", "arguments": {"a": 1, "b": [2]}}</tool_call>'
    monkeypatch.setitem(globals(), "RESULT", lambda arguments: f"{arguments['a']} {arguments['b']}")
    assert answers(TOOLBOX, options, call) == ["<tool_response>\n1 [2]\n</tool_response>"]
    monkeypatch.setitem(globals(), "RESULT", "x" * 21)
    assert answers(TOOLBOX, options, call) == [f"<tool_response>\n{'x' * 20}\n</tool_response>"]
    monkeypatch.setitem(globals(), "RESULT", "")
    assert answers(TOOLBOX, options, call) == ["<tool_response>\nno result\n</tool_response>"]
    monkeypatch.setitem(globals(), "RESULT", None)
    with pytest.raises(BadStep, match="the tool t returned None; expected a text"):
        answers(TOOLBOX, options, call)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": []}, r"with\.tools"),
        (toolbox({"use": "calculater"}), r"with\.tools\[0\]\.use is \"calculater\"; expected one of"),
        (toolbox({"use": f"{__name__}:QUESTION"}), r"tools\[0\]\.use is .*; expected a subclass of swarmgame\.Tool"),
        (toolbox({"use": f"{__name__}:WithoutParameters"}), r"expected a tool with `parameters`, one or more"),
        (toolbox({"use": CALCULATOR, "with": {"digits": 0}}), r"with\.tools\[0\]\.with\.digits is 0"),
        (toolbox({"use": CALCULATOR}, {"use": CALCULATOR}), "two tools have one name; give one of them another"),
        (toolbox({"use": CALCULATOR, "name": "a b"}), r"tools\[0\]\.name"),
        (
            toolbox({"use": CALCULATOR}, {"use": f"{__name__}:Answering", "name": "t"}),
            r"with\.calls is \"tags\"; expected json: t takes the arguments a, b, and a tag holds one",
        ),
        (toolbox({"use": CALCULATOR}, calls="xml"), r"with\.calls is \"xml\""),
        (
            toolbox({"use": SEARCH, "with": {"folder": "texts"}}),
            r"tools\[0\]\.with\.folder is \"texts\"; expected a fol",
        ),
    ],
)
def test_mistakes_in_a_toolbox_are_named_with_their_path(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=said) as raised:
        environment(TOOLBOX, options, tmp_path)
    assert all(problem.path.startswith("spec.game.environment.with") for problem in raised.value.problems)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "rivers.txt").write_text("The Rhine flows to Basel.\n\nThe Po flows\nthrough Turin. Turin!")
    (tmp_path / "texts" / "deep" / "lakes.md").write_text("# Lakes\n\nLake Zurich is long.")
    (tmp_path / "texts" / "table.csv").write_text("Turin,1")
    return tmp_path


FINDS = "swarmgame.environments.search:SearchEnvironment"


def test_passages_that_fit_best_come_first_with_the_name_of_their_file(texts: Path) -> None:
    found = answers(FINDS, {"folder": "texts", "results": 2}, "<search>where flows TURIN</search>", folder=texts)
    assert found == ["rivers.txt: The Po flows through Turin. Turin!\nrivers.txt: The Rhine flows to Basel."]
    found = answers(FINDS, {"folder": "texts"}, "<search>lake</search>", "<search>?</search>", folder=texts)
    assert found == ["deep/lakes.md: Lake Zurich is long.", "nothing found"]


def test_the_digest_of_a_search_is_that_of_its_files(texts: Path) -> None:
    options = {"tools": [{"use": CALCULATOR}, {"use": SEARCH, "with": {"folder": "texts"}}]}
    before = digest_of(TOOLBOX, options, texts, 0)
    assert before != ""
    made.cache_clear()
    assert digest_of(TOOLBOX, options, texts, 0) == before
    (texts / "texts" / "rivers.txt").write_text("The Rhone flows to Lyon.")
    made.cache_clear()
    assert digest_of(TOOLBOX, options, texts, 0) != before


def test_a_folder_that_the_sandbox_cannot_read_is_refused(
    texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    with pytest.raises(InvalidManifest, match=r"with\.folder is .*; expected a folder in that of the manifest"):
        environment(FINDS, {"folder": str(outside)}, texts)
    (texts / "texts" / "link.txt").symlink_to(outside / "secret.txt")
    with pytest.raises(InvalidManifest, match=r"link\.txt links to another one"):
        environment(FINDS, {"folder": "texts"}, texts)
    (texts / "empty").mkdir()
    with pytest.raises(InvalidManifest, match=r"expected a folder with files that end in \.txt or \.md"):
        environment(FINDS, {"folder": "empty"}, texts)
    (texts / "empty" / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidManifest, match=r"expected files in UTF-8 that can be read; .*bytes\.txt"):
        environment(FINDS, {"folder": "empty"}, texts)
    with pytest.raises(InvalidManifest, match="expected a game with a manifest"):
        environment(FINDS, {"folder": "texts"}, None)


def test_a_folder_of_too_many_bytes_is_refused_before_it_is_read(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmgame.environments.search.MOST_BYTES", 10)
    with pytest.raises(InvalidManifest, match="expected at most 10000 files and 0 MiB; it has 2 files"):
        environment(FINDS, {"folder": "texts"}, texts)


def test_long_paragraphs_are_divided_between_words(texts: Path) -> None:
    (texts / "texts" / "long.txt").write_text("word " * 100 + "x" * 120)
    options = {"folder": "texts", "passage": 50, "results": 10}
    (found,) = answers(FINDS, options, "<search>word</search>", folder=texts)
    assert {len(line) for line in found.splitlines()} == {len("long.txt: ") + 49}
    (found,) = answers(FINDS, options, f"<search>{'x' * 50}</search>", folder=texts)
    assert found.splitlines() == [f"long.txt: {'x' * 50}"] * 2


def test_a_folder_of_too_many_passages_is_refused(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmgame.environments.search.MOST_PASSAGES", 3)
    with pytest.raises(InvalidManifest, match=r"with\.folder is .*; expected texts of at most 3 passages; raise"):
        environment(FINDS, {"folder": "texts"}, texts)


def test_a_query_looks_at_a_bounded_number_of_places_the_rarest_terms_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmgame.environments.search.MOST_PLACES", 5)
    index = Index([Passage(str(number), f"the {'rare' if number in (6, 8) else 'usual'}") for number in range(10)])
    assert [each.file for each in index.best("the rare", 9)] == ["6", "8"], "the is in ten passages"
    assert [each.file for each in index.best("the", 9)] == ["0", "1", "2", "3", "4"], "the first of them, not none"
    assert [each.file for each in index.best("rare usual the", 9)] == ["6", "8"]


@given(st.text("ab \n", max_size=80), st.integers(1, 9))
def test_passages_hold_all_words_and_are_no_longer_than_wanted(text: str, longest: int) -> None:
    passages = [each.text for each in _passages("f", text, longest)]
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(0 < len(each) <= longest and each == each.strip() for each in passages)
    words = set(text.split())
    if all(len(word) <= longest for word in words):
        assert {word for each in passages for word in each.split()} == words


@given(st.lists(st.text("ab ", max_size=8), max_size=12), st.text("ab ", max_size=8))
def test_every_passage_with_a_term_of_the_query_is_found_once(texts: list[str], query: str) -> None:
    passages = [Passage(str(number), text) for number, text in enumerate(texts)]
    found = Index(passages).best(query, len(texts))
    assert sorted(found) == sorted(each for each in passages if set(each.text.split()) & set(query.split()))


def test_a_step_is_what_an_environment_must_return() -> None:
    episode = environment(TOOLBOX, toolbox({"use": CALCULATOR, "name": "c"})).start(QUESTION)
    assert episode.step("408") == Step(done=True)
