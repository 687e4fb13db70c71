"""The definition on a real API server: validation, defaults, pruning, scaling and columns."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_servers import ApiServer
from hypothesis import HealthCheck, Phase, event, given, settings
from kubernetes import client
from manifests import LARGEST, complete, fields, wrong_values
from rule_cases import CASES, CHANGES, rule_of, transition_of
from served_games import Games, Refusal, Refused, game_body, install
from structural import documents, fill_in

from native_cluster import tools
from swarmgame_api import InvalidManifest, parse_manifest
from swarmgame_api.crd import definition
from swarmgame_api.overrides import apply_overrides, parse_override
from swarmgame_api.reference import MINIMAL
from swarmgame_api.resource import GameResource, read_status, status_document
from swarmgame_api.type_descriptions import TypeInfo
from swarmgame_api.yaml_io import dump_document

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(ROOT.glob("examples/*/game.yaml"))
SPEC = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.fixture(scope="module")
def served(api_server: ApiServer) -> Iterator[client.ApiClient]:
    """A connection to a server with the definition."""
    with api_server.client() as connection:
        install(connection)
        yield connection


@pytest.fixture
def games(served: client.ApiClient, api_namespace: str) -> Games:
    return Games(served, api_namespace)


@pytest.fixture(scope="module")
def any_namespace(served: client.ApiClient) -> Games:
    """Games of the default namespace, for dry runs."""
    return Games(served, "default")


def refusal(games: Games, body: Any) -> Refusal:
    with pytest.raises(Refused) as caught:
        games.try_out(body)
    return caught.value.refusal


# ── the definition


def test_the_definition_is_structural_and_its_names_are_free(served: client.ApiClient) -> None:
    read = client.ApiextensionsV1Api(served).read_custom_resource_definition("swarmgames.swarmgame.dev")
    assert {condition.type: condition.status for condition in read.status.conditions} == {
        "NamesAccepted": "True",
        "Established": "True",
    }


def test_the_committed_file_is_applied_as_it_stands_and_changes_nothing(
    api_server: ApiServer, served: client.ApiClient
) -> None:
    kubectl(api_server, "apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds" / "swarmgame.yaml"))
    read = client.ApiextensionsV1Api(served).read_custom_resource_definition("swarmgames.swarmgame.dev")
    assert read.metadata.generation == 1


# ── rules


@pytest.mark.parametrize(("path", "text", "refused", "accepted"), CASES)
def test_a_rule_refuses_one_game_and_accepts_another(
    any_namespace: Games, path: str, text: str, refused: list[str], accepted: list[str]
) -> None:
    answer = refusal(any_namespace, game_body(refused))
    assert answer.code == 422
    assert (path, f"Invalid value: expected {rule_of(path, text).rule.expected}") in answer.causes
    assert any_namespace.try_out(game_body(accepted))["spec"]


@pytest.mark.parametrize(("path", "before", "after", "allowed"), CHANGES)
def test_what_is_immutable_may_not_change_and_the_rest_may(
    games: Games, path: str, before: list[str], after: list[str], allowed: bool
) -> None:
    stored = games.create(game_body(before))
    changed = {**game_body(after), "metadata": stored["metadata"]}
    if allowed:
        assert games.replace(changed)["metadata"]["generation"] == 2
        return
    with pytest.raises(Refused) as caught:
        games.replace(changed)
    assert caught.value.refusal.causes == (
        (path, f"Invalid value: expected {transition_of(path).transition.expected}"),
    )


@pytest.mark.parametrize(
    "after",
    [{}, {"other": 1}, {"known": 2}, {"known": 1, "other": 1}, {"known": None}, {"known": {"deep": 1}}],
    ids=["removed", "renamed", "changed", "added", "null", "deepened"],
)
def test_every_change_inside_a_free_form_block_is_covered_by_the_rule(games: Games, after: Any) -> None:
    stored = games.create(game_body(["game.trainer.with={known: 1}"]))
    stored["spec"]["game"]["trainer"]["with"] = after
    with pytest.raises(Refused, match="no change while the game runs"):
        games.replace(stored)


def test_a_chain_cannot_be_removed_by_leaving_out_its_block(games: Games) -> None:
    stored = games.create(game_body(["coordination.mode=Dev"]))
    del stored["spec"]["coordination"]
    with pytest.raises(Refused, match="no change once a chain is set"):
        games.replace(stored)


# ── fields


@pytest.mark.parametrize(
    ("path", "info"), [field for field in fields() if field[0].startswith("spec.")], ids=lambda value: str(value)[:60]
)
def test_a_value_of_the_wrong_kind_is_refused_at_its_path(any_namespace: Games, path: str, info: TypeInfo) -> None:
    steps, _ = parse_override(f"{path}=x")
    for wrong in wrong_values(info):
        changed: Any = apply_overrides(complete(), [(steps, wrong)])
        changed["metadata"].pop("namespace")
        if _read(changed) is None:
            assert path in refusal(any_namespace, changed).message, wrong
        else:
            any_namespace.try_out(changed)


def _read(data: Any) -> Any:
    try:
        return parse_manifest(data)
    except InvalidManifest:
        return None


def test_a_list_of_named_entries_takes_each_name_once(any_namespace: Games) -> None:
    answer = refusal(any_namespace, game_body(["peers.env=[{name: A}, {name: A}]"]))
    assert ("spec.peers.env[1]", 'Duplicate value: {"name":"A"}') in answer.causes


def test_an_unknown_field_is_refused_with_strict_validation_and_dropped_without(
    games: Games,
) -> None:
    body = game_body(["game.progression.deadline=5"], name="strict")
    assert refusal(games, body).message.endswith(
        'strict decoding error: unknown field "spec.game.progression.deadline"'
    )
    assert "deadline" not in games.create(body, validation="Ignore")["spec"]["game"]["progression"]


def test_free_form_blocks_are_kept_unchanged_with_nulls_and_fractions(games: Games) -> None:
    block = {"learningRate": 6.0e-4, "deep": {"list": [1, None, {"a": None}], "empty": {}}, "nothing": None}
    stored = games.create(
        game_body(
            [
                f"game.trainer.with={json.dumps(block)}",
                'peers.podTemplate.spec={"tolerations": [{"key": "gpu", "effect": null}]}',
            ]
        )
    )
    assert stored["spec"]["game"]["trainer"]["with"] == block
    assert stored["spec"]["peers"]["podTemplate"]["spec"] == {"tolerations": [{"key": "gpu", "effect": None}]}


# ── defaults


@pytest.mark.parametrize("text", [MINIMAL, LARGEST, *(path.read_text() for path in EXAMPLES)])
def test_the_server_fills_in_what_the_models_fill_in(any_namespace: Games, text: str) -> None:
    body = game_body(text=text)
    body["metadata"].pop("namespace", None)
    stored = any_namespace.try_out(body)
    assert stored["spec"] == fill_in(SPEC, body["spec"])
    read = GameResource.parse(stored)
    assert read.game is not None
    assert read.game.spec == parse_manifest(body).spec


@settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(spec=documents(SPEC))
def test_any_game_is_accepted_or_refused_and_defaulted_as_by_the_models(
    any_namespace: Games, spec: dict[str, Any]
) -> None:
    body = {**game_body(), "spec": spec}
    game = _read(body)
    event("refused" if game is None else "taken")
    if game is None:
        assert refusal(any_namespace, body).code == 422
        return
    stored = any_namespace.try_out(body)
    assert GameResource.parse(stored).game.spec == game.spec  # type: ignore[union-attr]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_every_example_is_applied_by_kubectl_without_a_warning(
    api_server: ApiServer, games: Games, path: Path, api_namespace: str
) -> None:
    done = kubectl(api_server, "apply", "-n", api_namespace, "-f", str(path))
    assert done.stdout.endswith(" created\n")
    assert done.stderr == ""


# ── subresources


def test_the_scale_subresource_sets_replicas_within_the_rules_and_shows_what_runs(games: Games) -> None:
    games.create(game_body(["peers.maxReplicas=8"]))
    games.merge("sums", {"status": {"replicas": 3, "selector": "swarmgame.dev/game=sums"}}, "status")
    scale = games.get("sums", "scale")
    assert scale["spec"]["replicas"] == 4
    assert scale["status"] == {"replicas": 3, "selector": "swarmgame.dev/game=sums"}
    games.merge("sums", {"spec": {"replicas": 6}}, "scale")
    stored = games.get("sums")
    assert stored["spec"]["peers"]["replicas"] == 6
    assert stored["metadata"]["generation"] == 2
    with pytest.raises(Refused, match="expected 0, or a number from minReplicas to maxReplicas"):
        games.merge("sums", {"spec": {"replicas": 9}}, "scale")
    games.merge("sums", {"spec": {"replicas": 0}}, "scale")
    assert games.get("sums")["spec"]["peers"]["replicas"] == 0


STATUS = read_status(
    {
        "observedGeneration": 1,
        "startTime": "2026-01-31T12:00:00Z",
        "replicas": 4,
        "peers": {"desired": 4, "active": 4, "ready": 3, "registered": 2},
        "progress": {
            "round": 7,
            "maxRounds": 100,
            "metrics": [{"name": "loss", "value": "0.1"}, {"name": "reward", "value": "0.41"}],
        },
        "coordination": {"contractAddress": "0x00000000000000000000000000000000000000aa", "chainId": 1, "round": 6},
        "unhealthyPeers": [{"index": 3, "reason": "OutOfMemory"}],
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "PeersReady", "lastTransitionTime": "2026-01-31T12:00:00Z"},
            {"type": "Suspended", "status": "False", "reason": "Resumed", "lastTransitionTime": "2026-01-31T12:00:00Z"},
        ],
    }
)


def test_a_status_is_kept_as_it_was_written_and_reads_back_equal(games: Games) -> None:
    stored = games.create(game_body())
    document = status_document(STATUS)
    answer = games.apply({**game_body(), "status": document}, "swarmgame-operator", "status")
    assert answer["status"] == document
    assert GameResource.parse(games.get("sums")).status == STATUS
    assert answer["metadata"]["generation"] == stored["metadata"]["generation"]


def test_nothing_is_filled_into_a_status(games: Games) -> None:
    games.create(game_body())
    games.merge("sums", {"status": {"peers": {"ready": 1}}}, "status")
    assert games.get("sums")["status"] == {"peers": {"ready": 1}}


def test_a_status_can_only_be_written_as_a_status(games: Games) -> None:
    stored = games.create(game_body() | {"status": {"replicas": 9}})
    assert "status" not in stored
    games.merge("sums", {"spec": {"suspend": True}, "status": {"replicas": 2}}, "status")
    assert games.get("sums")["spec"]["suspend"] is False


def test_a_status_holds_one_condition_a_type(games: Games) -> None:
    games.create(game_body())
    condition = status_document(STATUS)["conditions"][0]
    with pytest.raises(Refused, match="Duplicate value"):
        games.merge("sums", {"status": {"conditions": [condition, condition]}}, "status")


def test_a_status_with_an_unknown_condition_is_refused(games: Games) -> None:
    games.create(game_body())
    condition = status_document(STATUS)["conditions"][0] | {"type": "Happy"}
    with pytest.raises(Refused, match=r"status\.conditions\[0\]\.type: Unsupported value"):
        games.merge("sums", {"status": {"conditions": [condition]}}, "status")


# ── what people see


def test_the_columns_show_a_games_status(games: Games) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research"}
    body = game_body()
    body["metadata"]["labels"] = labels
    games.create(body)
    games.apply({**game_body(), "status": status_document(STATUS)}, "swarmgame-operator", "status")
    table = games.request("GET", "sums", accept=TABLE)
    names = [column["name"] for column in table["columnDefinitions"]]
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    age = cells.pop("Age")
    assert age.endswith("s")
    assert cells == {
        "Name": "sums",
        "Ready": "True",
        "Reason": "PeersReady",
        "Peers": 3,
        "Desired": 4,
        "Round": 7,
        "Rounds": 100,
        "Reward": "0.41",
        "Registered": 2,
        "Queue": "research",
        "Chain-Round": 6,
        "Model": "builtin://tiny",
        "Suspended": "False",
    }
    wide = {column["name"] for column in table["columnDefinitions"] if column["priority"] == 1}
    assert wide == {"Registered", "Queue", "Chain-Round", "Model", "Suspended"}


def test_a_new_game_without_a_status_is_shown_too(api_server: ApiServer, games: Games, api_namespace: str) -> None:
    games.create(game_body())
    head, row = kubectl(api_server, "get", "sg", "-n", api_namespace).stdout.splitlines()
    assert head.split() == ["NAME", "READY", "REASON", "PEERS", "DESIRED", "ROUND", "ROUNDS", "REWARD", "AGE"]
    assert row.split()[:3] == ["sums", "4", "100"]
    assert "swarmgame.swarmgame.dev/sums" in kubectl(api_server, "get", "all", "-n", api_namespace).stdout


def test_kubectl_shows_what_a_bad_manifest_should_have(api_server: ApiServer, games: Games, tmp_path: Path) -> None:
    file = tmp_path / "game.yaml"
    file.write_text(
        dump_document(game_body(["peers={replicas: 12, maxReplicas: 8}", "coordination.mode=External"])),
        encoding="utf-8",
    )
    done = kubectl(api_server, "apply", "-f", str(file), fails=True)
    first, *others = done.stderr.replace("* ", "").splitlines()
    assert first == 'The SwarmGame "sums" is invalid: '
    assert sorted(others) == [  # the server follows no order
        "spec.coordination: Invalid value: expected chainId, contractAddress, rpcSecretRef and walletSecretRef"
        " with mode External",
        "spec.peers.replicas: Invalid value: expected 0, or a number from minReplicas to maxReplicas",
    ]


def test_kubectl_explains_a_field_with_the_text_of_the_reference(api_server: ApiServer, games: Games) -> None:
    shown = " ".join(kubectl(api_server, "explain", "swarmgame.spec.game.progression.quorum").stdout.split())
    assert (
        "Share of the live members that must publish before a stage may close. The deadline closes it regardless."
        in shown
    )


def test_two_managers_of_one_game_each_own_their_variables(games: Games) -> None:
    game = game_body(["peers.env=[{name: A, value: a}]"])
    games.apply(game, "first")
    identity = {key: game[key] for key in ("apiVersion", "kind", "metadata")}
    games.apply({**identity, "spec": {"peers": {"env": [{"name": "B", "value": "b"}]}}}, "second")
    names = [variable["name"] for variable in games.get("sums")["spec"]["peers"]["env"]]
    assert names == ["A", "B"]


def kubectl(server: ApiServer, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    command = [str(tools.tool("kubectl")), f"--kubeconfig={server.kubeconfig}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done
