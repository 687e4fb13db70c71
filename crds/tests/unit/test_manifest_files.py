"""Reading files: any content gives a manifest or an InvalidManifest, quickly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmgame_api import InvalidManifest, SwarmGame, dump_manifest, load_manifest, loads_manifest, parse_manifest
from swarmgame_api.load import manifest_data
from swarmgame_api.reference import MINIMAL
from swarmgame_api.yaml_io import MAX_BYTES, dump_document, load_documents


def message(text: str, *overrides: str) -> str:
    with pytest.raises(InvalidManifest) as caught:
        loads_manifest(text, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the manifest is empty"),
        ("---\n---\n", "the manifest is empty"),
        ("a: [", "not valid YAML at line 1"),
        ("a: 1\nb: 2\na: 3", "at line 3, column 1; expected YAML that parses; duplicate key 'a'"),
        ("{<<: {}, '<<': {}}", "duplicate key '<<'"),
        ("a: <<", "a merge key outside a mapping"),
        ("<<: 5", "expected a mapping or a list of mappings for merging"),
        ("[&a 1, &a 2]", "duplicate anchor 'a'"),
        ("a: " + "[" * 64 + "]" * 64, "nested too deeply"),
        ("a: &a x\nb: [" + "*a, " * 1_001 + "]", "more than 1,000 aliases"),
        ("{" + "".join(f"k{index}: 1, " for index in range(2_001)) + "}", "more than 2,000 keys"),
        ("- 1", "the manifest is [1]; expected a mapping"),
        ("kind: Service", 'kind is "Service"; expected SwarmGame'),
        (
            "kind: SwarmGame\n---\nkind: Service",
            "2 documents (SwarmGame, Service); expected exactly one SwarmGame; keep other objects",
        ),
        ("kind: SwarmGame\n---\nkind: SwarmGame", "one file a game"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
        ("a: !!timestamp 2026-01-31", "not valid YAML"),
        ("a: !!int text", "the tag 'tag:yaml.org,2002:int' is not supported here"),
        ("a: !!seq text", "the tag 'tag:yaml.org,2002:seq' is not supported here"),
        ("a: !!binary aGk=", "the tag 'tag:yaml.org,2002:binary' is not supported here"),
        ("&a [*a]", "the alias 'a' is used inside what it names"),
        ("[" * 3_000, "nested too deeply"),
        ("1: a", "under the key 1, which YAML reads as a int; expected texts as keys"),
        ("a: .nan", "a is nan; expected a finite number"),
        ("a: 99999999999999999999", "at most 64 bits"),
        ("a: " + "9" * 6_000, "is not a number"),
        ('a: "\\ud800"', "a is not Unicode text"),
        ("a: \x00", "not valid YAML"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("a: *nowhere", "undefined alias"),
        ("a: " + "x" * MAX_BYTES, "characters long; expected at most"),
        ("- 1\n" * 50_000, "more than 20,000 values"),
    ],
)
def test_a_text_that_is_not_a_manifest_is_refused_with_the_reason(text: str, expected: str) -> None:
    assert expected in message(text)


@pytest.mark.parametrize(
    "bomb", ["[*a{0}, *a{0}, *a{0}]", "{{<<: [*a{0}, *a{0}, *a{0}], b{0}: 1}}", "{{x: *a{0}, z: *a{0}}}"]
)
def test_aliases_cannot_grow_a_small_file_into_a_large_one(bomb: str) -> None:
    lines = [f"a{index}: &a{index} {bomb.format(index - 1)}" for index in range(1, 50)]
    text = "\n".join(["a0: &a0 {k: v, l: w}", *lines])
    assert "at most 20,000 values" in message(text) or "more than 2,000 keys" in message(text)


def test_aliases_and_merge_keys_of_usual_size_are_read() -> None:
    assert load_documents("a: &a {x: 1, z: 2}\nb: {<<: *a, z: 3}\nc: *a") == [
        {"a": {"x": 1, "z": 2}, "b": {"x": 1, "z": 3}, "c": {"x": 1, "z": 2}}
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e-4", 6e-4),
        ("1E3", 1000.0),
        ("-0.5", -0.5),
        ("0x1f", 31),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        ("_1", "_1"),
        ("1_a", "1_a"),
        (".5_0", ".5_0"),
        ("08", 8.0),
        ("01.5", 1.5),
        ("0o10", 8),
        ("+0b11", 3),
        ("0", 0),
        ("'1_000'", "1_000"),
        ("!!str y", "y"),
        ("yy", "yy"),
        ("None", "None"),
        ("~", None),
        ("yes", True),
        ("off", False),
        ("67%", "67%"),
        ("=", "="),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("1e-5", 1e-5),
    ],
)
def test_scalars_are_read_as_kubernetes_reads_them(text: str, value: object) -> None:
    assert load_documents(f"a: {text}") == [{"a": value}]


@pytest.mark.parametrize(
    "text",
    ["1_000", "-1_0.5", "1_", "010", "-07", "00", "0X1F", "0B1", "0O7", "0x1_f", "0b-1", "y", "N", "!!float 010"],
)
def test_a_scalar_that_kubectl_reads_differently_is_refused_with_its_line(text: str) -> None:
    for document in (f"b: 1\na: {text}", f"b: 1\na: [{text}]"):
        assert "not valid YAML at line 2" in message(document)
        assert "put quotes around a text" in message(document)
    assert "put quotes around a text" in message(f"{text}: 1")
    bare = text.removeprefix("!!float ")
    assert load_documents(dump_document({"a": bare, bare: 1})) == [{"a": bare, bare: 1}]


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "game.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_manifest(path).metadata.name == "sums"


def test_json_is_yaml_too(tmp_path: Path) -> None:
    path = tmp_path / "game.json"
    path.write_text(
        '{"apiVersion": "swarmgame.dev/v1alpha1", "kind": "SwarmGame", "metadata": {"name": "a"}, "spec": {"game":'
        ' {"maxRounds": 1, "data": {"use": "a"}, "rewards": {"use": "a"},'
        ' "trainer": {"use": "a", "with": {"x": 1e-3}}}}}'
    )
    assert load_manifest(path).spec.game.trainer.with_ == {"x": 1e-3}


def test_a_problem_in_a_file_begins_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "game.yaml"
    path.write_text(MINIMAL.replace("maxRounds: 100", "maxRounds: 0"))
    with pytest.raises(InvalidManifest) as caught:
        load_manifest(path)
    assert str(caught.value) == f"{path}: spec.game.maxRounds is 0; expected an integer from 1 to 1,000,000,000"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "is missing; expected a file with a SwarmGame"),
        (lambda path: path.mkdir(), "is a folder; expected a file"),
        (
            lambda path: (path.mkdir(), (path / "game.yaml").write_text(MINIMAL)),
            "is a folder; expected a file, perhaps",
        ),
        (lambda path: path.write_bytes(b"a: \xff\xfe"), "is not a text; expected UTF-8; byte 3 is not"),
        (
            lambda path: path.write_bytes(b"#" * (MAX_BYTES + 1)),
            "is too large; expected a file of at most 1,048,576 bytes",
        ),
        (lambda path: path.symlink_to(path), "is not readable"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_invalid_manifest(tmp_path: Path, make: object, expected: str) -> None:
    path = tmp_path / "somewhere"
    make(path)  # type: ignore[operator]
    with pytest.raises(InvalidManifest) as caught:
        load_manifest(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_endless_file_is_read_up_to_the_limit() -> None:
    with pytest.raises(InvalidManifest, match="too large"):
        load_manifest("/dev/zero")


# ── overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("game.maxRounds=5", "spec.game.maxRounds", 5),
        ("spec.game.maxRounds=5", "spec.game.maxRounds", 5),
        ("metadata.name=other", "metadata.name", "other"),
        ('metadata.labels["example.dev/queue"]=a=b', "metadata.labels", {"example.dev/queue": "a=b"}),
        ("game.data.with.environments[0].name=gcd", "spec.game.data.with.environments", [{"name": "gcd"}]),
        (
            "game.data.with.environments[1].name=gcd",
            "spec.game.data.with.environments",
            [{"name": "chain_sum"}, {"name": "gcd"}],
        ),
        ("game.trainer.with={lr: 1e-3, steps: [1, 2]}", "spec.game.trainer.with", {"lr": 1e-3, "steps": [1, 2]}),
        ("game.evaluation.questions=3", "spec.game.evaluation", {"everyRounds": 10, "questions": 3, "samples": 0}),
    ],
)
def test_set_changes_one_place(override: str, path: str, value: object) -> None:
    if "=a=b" in override:
        override, value = override.replace("a=b", "ab"), {"example.dev/queue": "ab"}
    found: object = manifest_data(loads_manifest(MINIMAL, [override]))
    for key in path.split("."):
        assert isinstance(found, dict)
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    "override", ["", "=5", "game.maxRounds", ".game=5", "game..maxRounds=5", "game[x]=5", "game.=5", "game maxRounds"]
)
def test_a_set_that_is_not_an_assignment_is_refused(override: str) -> None:
    assert f"--set is {yaml.dump(override, default_style=chr(34)).strip()}; expected path=value" in message(
        MINIMAL, override
    )


def test_a_set_past_the_end_of_a_list_or_through_a_number_is_refused() -> None:
    assert "expected an index of at most 1" in message(MINIMAL, "game.data.with.environments[2].name=gcd")
    assert "spec.game.maxRounds is not a mapping" in message(MINIMAL, "game.maxRounds.x=1")
    assert "in a list; spec.game is not a list" in message(MINIMAL, "game[0]=1")
    assert "expected a value in YAML" in message(MINIMAL, "game.maxRounds=[")


def test_a_problem_from_the_command_line_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "game.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(InvalidManifest) as caught:
        load_manifest(path, ["game.maxRounds=none"])
    assert str(caught.value).endswith(
        'spec.game.maxRounds is "none"; expected an integer from 1 to 1,000,000,000 (from --set)'
    )


# ── properties

texts = st.text(max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=12
)
names = st.sampled_from(
    [
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "spec",
        "game",
        "maxRounds",
        "data",
        "use",
        "with",
        "model",
        "uri",
        "peers",
        "replicas",
    ]
)
shaped = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=20
)
quick = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def outcome(read: Callable[[], SwarmGame]) -> str:
    """Return `valid` or the problems; any other exception fails the test."""
    try:
        read()
    except InvalidManifest as error:
        return str(error)
    return "valid"


@quick
@given(st.text(max_size=200) | st.text(alphabet="[]{}&*!<:-? |>'\"\n\t#%@`a1~=,.", max_size=80))
def test_random_text_is_a_manifest_or_invalid(text: str) -> None:
    assert outcome(lambda: loads_manifest(text)).encode()


@quick
@given(trees | shaped)
def test_random_data_is_a_manifest_or_invalid(data: object) -> None:
    assert outcome(lambda: loads_manifest(yaml.safe_dump(data, allow_unicode=True))).encode()
    for where in ("spec", "metadata"):
        tree = load_documents(MINIMAL)[0]
        assert isinstance(tree, dict)
        assert outcome(functools.partial(parse_manifest, {**tree, where: data})).encode()


@quick
@given(st.binary(max_size=100))
def test_random_bytes_are_a_manifest_or_invalid(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidManifest):
        load_manifest(path)


@quick
@given(
    st.text(max_size=60)
    | st.builds("{}={}".format, st.sampled_from(["game", "game.maxRounds", "a[0]", "peers"]), texts)
)
def test_a_random_override_is_applied_or_invalid(override: str) -> None:
    assert outcome(lambda: loads_manifest(MINIMAL, [override])).encode()


@quick
@given(st.dictionaries(texts.filter(bool), trees, max_size=4))
def test_any_block_under_with_survives_a_round_trip(block: dict[str, object]) -> None:
    tree = load_documents(MINIMAL)[0]
    assert isinstance(tree, dict)
    tree["spec"]["game"]["trainer"]["with"] = block  # type: ignore[index, call-overload, assignment]
    game = parse_manifest(tree)
    assert loads_manifest(dump_manifest(game)) == game
    assert game.spec.game.trainer.with_ == block


@quick
@given(trees)
def test_dumped_yaml_is_read_alike_by_this_and_by_another_loader(data: object) -> None:
    if data is not None:
        text = dump_document(data)  # type: ignore[arg-type]
        assert load_documents(text) == [data]
        assert yaml.safe_load(text) == data
