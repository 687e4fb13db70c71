"""What the operator's chart renders, value by value."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from rendered import CHARTS, DEFINITION, EVERYTHING, NAMESPACE, OPERATOR, Rendered, environment, render

from swarmgame_operator.plan.network import WATCHERS
from swarmgame_operator.settings import PREFIX, OperatorSettings, operator_settings

pytestmark = pytest.mark.usefixtures("helm")

GAMES_LABELS = {
    "name": "swarmgame",
    "instance": "swarmgame",
    "component": "peer",
    "part-of": "swarmgame",
    "managed-by": "swarmgame-operator",
}
"""Labels of a peer of a game with the release's name."""
DIGEST = "sha256:" + "a1" * 32


def pod_of(rendered: Rendered) -> dict[str, Any]:
    return rendered.one("Deployment")["spec"]["template"]["spec"]


def container_of(rendered: Rendered) -> dict[str, Any]:
    (container,) = pod_of(rendered)["containers"]
    return container


def test_the_default_kinds_exist_in_every_cluster() -> None:
    kinds = {manifest["kind"] for manifest in render().manifests}
    assert kinds == {
        "Deployment",
        "ServiceAccount",
        "Service",
        "NetworkPolicy",
        "ClusterRole",
        "ClusterRoleBinding",
        "Pod",
    }


def test_every_namespaced_object_is_in_the_releases_namespace_and_labelled() -> None:
    for manifest in render(values=EVERYTHING).manifests:
        metadata = manifest["metadata"]
        assert metadata.get("namespace", NAMESPACE) == NAMESPACE
        assert metadata["labels"]["app.kubernetes.io/instance"] == "swarmgame"
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "swarmgame"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_no_name_is_made_twice() -> None:
    names = [
        (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in render(values=EVERYTHING).manifests
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("swarmgame", {}, "swarmgame"),
        ("research", {}, "research-swarmgame"),
        ("research", {"nameOverride": "games"}, "research-games"),
        ("research", {"fullnameOverride": "op"}, "op"),
        ("a" * 53, {}, "a" * 50),
    ],
)
def test_names_follow_the_release(release: str, values: dict[str, Any], name: str) -> None:
    assert render(values=values, release=release).one("Deployment")["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "ghcr.io/swarmgame/operator:0.1.0"),
        ({"tag": "main"}, "ghcr.io/swarmgame/operator:main"),
        ({"repository": "localhost/op", "tag": "e2e"}, "localhost/op:e2e"),
        ({"tag": "main", "digest": DIGEST}, f"ghcr.io/swarmgame/operator@{DIGEST}"),
    ],
)
def test_the_image_is_named_by_digest_else_by_tag(image: dict[str, str], reference: str) -> None:
    rendered = render(values={"image": image})
    assert container_of(rendered)["image"] == reference
    assert rendered.one("Pod")["spec"]["containers"][0]["image"] == reference
    assert environment(rendered.one("Deployment"))["SWARMGAME_OPERATOR_GATEWAY_IMAGE"] == reference


def test_the_games_images_reach_the_operator() -> None:
    values = {
        "games": {
            "workerImage": {"repository": "r/worker", "digest": DIGEST},
            "gatewayImage": {"repository": "r/gateway", "tag": "2"},
            "chainImage": {"repository": "r/chain"},
            "samplerImage": {"repository": "r/vllm", "tag": "v1"},
            "imagePullPolicy": "Never",
            "imagePullSecrets": ["one", "two"],
        }
    }
    variables = environment(render(values=values).one("Deployment"))
    assert variables["SWARMGAME_OPERATOR_WORKER_IMAGE"] == f"r/worker@{DIGEST}"
    assert variables["SWARMGAME_OPERATOR_GATEWAY_IMAGE"] == "r/gateway:2"
    assert variables["SWARMGAME_OPERATOR_CHAIN_IMAGE"] == "r/chain:0.1.0"
    assert variables["SWARMGAME_OPERATOR_SAMPLER_IMAGE"] == "r/vllm:v1"
    assert variables["SWARMGAME_OPERATOR_IMAGE_PULL_POLICY"] == "Never"
    assert variables["SWARMGAME_OPERATOR_IMAGE_PULL_SECRETS"] == "one,two"


def settings_of(values: dict[str, Any]) -> OperatorSettings:
    variables = environment(render(values=values).one("Deployment"))
    return operator_settings({name: value for name, value in variables.items() if isinstance(value, str)})


def test_the_operator_reads_the_settings_that_the_chart_writes() -> None:
    values = {
        "watchNamespaces": ["a", "b"],
        "operator": {
            "workers": 3,
            "debounceSeconds": 1,
            "progressSeconds": 30,
            "staleSeconds": 90,
            "logFormat": "text",
            "logLevel": "DEBUG",
        },
        "leaderElection": {"mode": "always", "leaseName": "one", "leaseSeconds": 20},
        "games": {"clusterDomain": "cluster.local", "imagePullSecrets": ["p"]},
    }
    settings = settings_of(values)
    assert settings.watch_namespaces == ("a", "b")
    assert (settings.workers, settings.debounce_seconds, settings.progress_seconds, settings.stale_seconds) == (
        3,
        1,
        30,
        90,
    )
    assert (settings.log_format, settings.log_level) == ("text", "DEBUG")
    assert (settings.lease_namespace, settings.lease_name, settings.lease_seconds) == (NAMESPACE, "one", 20)
    assert (settings.cluster_domain, settings.image_pull_secrets) == ("cluster.local", ("p",))


def test_every_setting_of_the_operator_is_a_value_of_the_chart() -> None:
    variables = environment(render(values={"replicaCount": 2}).one("Deployment"))
    given = {name.removeprefix(PREFIX).lower() for name in variables if name.startswith(PREFIX)}
    assert given == set(OperatorSettings.model_fields)


def test_the_charts_defaults_are_the_operators_except_for_the_images() -> None:
    chart, own = settings_of({}).model_dump(), OperatorSettings().model_dump()
    differing = {name for name in own if chart[name] != own[name]}
    assert differing == {"worker_image", "gateway_image", "chain_image", "image_pull_policy"}


def test_a_service_of_the_namespace_adds_no_setting() -> None:
    assert pod_of(render())["enableServiceLinks"] is False


def test_additional_variables_reach_the_operator() -> None:
    values = {"operator": {"extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}]}}
    assert environment(render(values=values).one("Deployment"))["HTTPS_PROXY"] == "http://proxy"


def test_one_replica_needs_no_lease_and_never_overlaps_with_the_next() -> None:
    rendered = render()
    assert rendered.one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert "SWARMGAME_OPERATOR_LEASE_NAME" not in environment(rendered.one("Deployment"))
    assert rendered.of("Role") == []
    assert "affinity" not in pod_of(rendered)


@pytest.mark.parametrize("values", [{"replicaCount": 2}, {"leaderElection": {"mode": "always"}}])
def test_several_operators_elect_a_leader_and_never_overlap_with_one_that_elects_none(values: dict[str, Any]) -> None:
    rendered = render(values=values)
    variables = environment(rendered.one("Deployment"))
    assert rendered.one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert variables["SWARMGAME_OPERATOR_LEASE_NAMESPACE"] == NAMESPACE
    assert variables["SWARMGAME_OPERATOR_LEASE_NAME"] == "swarmgame"
    assert rendered.one("Role", "swarmgame-lease")["rules"][0]["resourceNames"] == ["swarmgame"]


def test_several_replicas_prefer_different_nodes_unless_an_affinity_is_set() -> None:
    spread = pod_of(render(values={"replicaCount": 2}))["affinity"]["podAntiAffinity"]
    (term,) = spread["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
    own = {"nodeAffinity": {}}
    assert pod_of(render(values={"replicaCount": 2, "affinity": own}))["affinity"] == own


def test_the_values_set_where_and_how_the_operator_runs() -> None:
    values = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "pull"}],
        "podAnnotations": {"note": "kept"},
        "podLabels": {"team": "swarm"},
        "terminationGracePeriodSeconds": 7,
        "resources": {"limits": {"memory": "1Gi"}},
    }
    rendered = render(values=values)
    pod = pod_of(rendered)
    for name in ("nodeSelector", "tolerations", "topologySpreadConstraints", "priorityClassName", "imagePullSecrets"):
        assert pod[name] == values[name]
    assert pod["terminationGracePeriodSeconds"] == 7
    assert container_of(rendered)["resources"]["limits"]["memory"] == "1Gi"
    metadata = rendered.one("Deployment")["spec"]["template"]["metadata"]
    assert metadata["annotations"]["note"] == "kept"
    assert metadata["labels"]["team"] == "swarm"


def test_the_operator_is_probed_where_it_answers() -> None:
    container = container_of(render())
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    variables = environment(render().one("Deployment"))
    assert ports == {
        "metrics": int(variables["SWARMGAME_OPERATOR_METRICS_PORT"]),
        "probes": int(variables["SWARMGAME_OPERATOR_PROBE_PORT"]),
    }
    assert variables["SWARMGAME_OPERATOR_PROBE_HOST"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "probes"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_the_service_selects_the_operator_and_not_the_test_pod() -> None:
    rendered = render()
    selector = rendered.one("Service")["spec"]["selector"]
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert not selector.items() <= rendered.one("Pod")["metadata"]["labels"].items()


def test_selector_labels_do_not_change_with_the_version() -> None:
    selector = render().one("Deployment")["spec"]["selector"]["matchLabels"]
    assert set(selector) == {f"app.kubernetes.io/{name}" for name in ("name", "component", "instance")}


def test_the_games_network_policies_let_the_operator_in() -> None:
    labels = render(values={"nameOverride": "other"}).one("Deployment")["spec"]["template"]["metadata"]["labels"]
    (allowed,) = [
        peer["podSelector"]["matchLabels"]
        for peer in WATCHERS
        if "app.kubernetes.io/component" in peer["podSelector"]["matchLabels"]
    ]
    assert allowed.items() <= labels.items()


def test_selectors_keep_the_pods_of_operator_and_games_apart() -> None:
    games = {f"app.kubernetes.io/{name}": value for name, value in GAMES_LABELS.items()}
    rendered = render(values=EVERYTHING)
    operators = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not rendered.one("Deployment")["spec"]["selector"]["matchLabels"].items() <= games.items()
    monitored = rendered.one("PodMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= games.items()
    assert not monitored.items() <= operators.items()


def test_an_existing_service_account_is_used_and_none_is_created() -> None:
    rendered = render(values={"serviceAccount": {"create": False, "name": "mine"}})
    assert rendered.of("ServiceAccount") == []
    assert pod_of(rendered)["serviceAccountName"] == "mine"
    (binding,) = rendered.of("ClusterRoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "mine", "namespace": NAMESPACE}]


def test_no_rights_are_created_with_rbac_off() -> None:
    rendered = render(values={"replicaCount": 2, "rbac": {"create": False, "userRoles": False}})
    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} & {
        manifest["kind"] for manifest in rendered.manifests
    }


def test_the_pod_monitor_selects_the_watched_namespaces() -> None:
    monitor = render(values={"watchNamespaces": ["a"], "metrics": {"podMonitor": {"enabled": True}}}).one("PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["a"]}


def test_only_the_metrics_port_is_open_to_the_given_peers() -> None:
    prometheus = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    (rule,) = render(values={"networkPolicy": {"metricsFrom": prometheus}}).one("NetworkPolicy")["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": "metrics"}], "from": prometheus}
    assert render().one("NetworkPolicy")["spec"]["policyTypes"] == ["Ingress"]


def test_egress_is_restricted_on_demand_to_dns_the_api_server_and_the_games() -> None:
    values = {"networkPolicy": {"restrictEgress": True, "apiServerPorts": [16443]}}
    policy = render(values=values).one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["egress"]] == [[53, 53], [16443], [8080, 8645]]


def test_no_network_policy_is_created_with_it_off() -> None:
    assert render(values={"networkPolicy": {"enabled": False}}).of("NetworkPolicy") == []


def test_the_games_namespace_is_kept_when_prometheus_reads_the_operator() -> None:
    (endpoint,) = render(values=EVERYTHING).one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True


def test_every_alert_has_the_users_labels_and_a_runbook_below_the_users_address() -> None:
    values = {
        "metrics": {
            "prometheusRule": {
                "enabled": True,
                "alertLabels": {"team": "ml"},
                "runbookBaseUrl": "https://example.dev/runbooks/",
            }
        }
    }
    (group,) = render(values=values).one("PrometheusRule")["spec"]["groups"]
    assert len(group["rules"]) == 5
    for rule in group["rules"]:
        assert rule["labels"]["team"] == "ml"
        assert rule["annotations"]["runbook_url"] == f"https://example.dev/runbooks/{rule['alert']}.md"


def test_the_definition_is_that_of_the_repository() -> None:
    definition = yaml.safe_load((CHARTS.parent / "crds" / "swarmgame.yaml").read_text())
    assert render(DEFINITION).one("CustomResourceDefinition")["spec"] == definition["spec"]


@pytest.mark.parametrize("chart", [OPERATOR, DEFINITION], ids=lambda chart: chart.name)
def test_helm_lint_passes(chart: Any, helm: Any) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", chart, "--kube-version", "1.36.3").stdout
