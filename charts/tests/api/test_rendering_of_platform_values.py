"""What platforms ask of a chart: labels on everything, a registry of their own, volumes, secure metrics, monitors."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from rendered import EVERYTHING, NAMESPACE, OPERATOR, SECURE, Refused, Rendered, environment, render

from swarmgame_api.pods import PodDefaults
from swarmgame_operator.settings import PREFIX, operator_settings

pytestmark = pytest.mark.usefixtures("helm")

READ = (f"{PREFIX}REACH_PODS", f"{PREFIX}API_SERVER_ADDRESSES")
DIGEST = "sha256:" + "a1" * 32


def containers_of(rendered: Rendered) -> dict[str, dict[str, Any]]:
    pod = rendered.one("Deployment")["spec"]["template"]["spec"]
    return {container["name"]: container for container in pod["containers"]}


def test_common_labels_are_on_every_object_and_pod_and_in_no_selector() -> None:
    rendered = render(values={**EVERYTHING, "commonLabels": {"team": "swarm"}, "podLabels": {"tier": "system"}})
    for manifest in rendered.manifests:
        assert manifest["metadata"]["labels"]["team"] == "swarm", manifest["kind"]
    deployment = rendered.one("Deployment")["spec"]
    assert deployment["template"]["metadata"]["labels"].items() >= {"team": "swarm", "tier": "system"}.items()
    assert deployment["selector"] == render().one("Deployment")["spec"]["selector"]


def test_a_label_of_a_pod_wins_over_a_common_one_and_neither_changes_what_selects_the_pods() -> None:
    rendered = render(
        values={
            "commonLabels": {"team": "all"},
            "podLabels": {"team": "swarm", "app.kubernetes.io/instance": "another"},
        }
    )
    deployment = rendered.one("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels["team"] == "swarm"
    assert deployment["selector"]["matchLabels"].items() <= labels.items()


def test_a_common_label_that_the_chart_sets_itself_is_refused() -> None:
    with pytest.raises(Refused, match="/commonLabels"):
        render(values={"commonLabels": {"app.kubernetes.io/name": "other"}})


@pytest.mark.parametrize("registry", ["mirror.example.com/hub", "localhost:5000"])
def test_one_registry_replaces_the_host_of_every_image(registry: str) -> None:
    values = {
        "global": {"imageRegistry": registry},
        "games": {"chainImage": {"repository": "team/chain", "digest": DIGEST}},
        "metrics": {"secure": {"enabled": True}},
    }
    rendered = render(values=values)
    containers = containers_of(rendered)
    variables = {each["name"]: each.get("value") for each in containers["operator"]["env"]}
    assert containers["operator"]["image"] == f"{registry}/swarmgame/operator:0.1.0"
    assert containers["kube-rbac-proxy"]["image"].startswith(f"{registry}/brancz/kube-rbac-proxy:v")
    assert rendered.one("Pod")["spec"]["containers"][0]["image"] == f"{registry}/swarmgame/operator:0.1.0"
    assert variables["SWARMGAME_OPERATOR_WORKER_IMAGE"] == f"{registry}/swarmgame/worker:0.1.0"
    assert variables["SWARMGAME_OPERATOR_SAMPLER_IMAGE"].startswith(f"{registry}/vllm/vllm-openai:v")
    assert variables["SWARMGAME_OPERATOR_CHAIN_IMAGE"] == f"{registry}/team/chain@{DIGEST}"


def test_volumes_and_variables_reach_the_operators_container() -> None:
    authority = {"name": "authority", "configMap": {"name": "ca"}}
    mount = {"name": "authority", "mountPath": "/etc/ssl/custom", "readOnly": True}
    operator = {
        "extraVolumes": [authority],
        "extraVolumeMounts": [mount],
        "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/etc/ssl/custom/ca.crt"}],
        "extraEnvFrom": [{"configMapRef": {"name": "proxy"}}],
    }
    rendered = render(values={"operator": operator})
    container = containers_of(rendered)["operator"]
    assert authority in rendered.one("Deployment")["spec"]["template"]["spec"]["volumes"]
    assert mount in container["volumeMounts"]
    assert container["envFrom"] == operator["extraEnvFrom"]
    assert environment(rendered.one("Deployment"))["SSL_CERT_FILE"] == "/etc/ssl/custom/ca.crt"


@pytest.mark.parametrize(
    "values",
    [
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        {"extraVolumeMounts": [{"name": "scratch", "mountPath": "/tmp"}]},
    ],
)
def test_a_volume_that_would_replace_the_charts_own_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="/operator/"):
        render(values={"operator": values})


def test_the_containers_security_context_can_be_changed() -> None:
    rendered = render(values={"securityContext": {"readOnlyRootFilesystem": False}})
    context = containers_of(rendered)["operator"]["securityContext"]
    assert context["readOnlyRootFilesystem"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_secure_metrics_are_served_by_the_proxy_alone() -> None:
    rendered = render(values=SECURE)
    proxy = containers_of(rendered)["kube-rbac-proxy"]
    assert proxy["args"] == [
        "--secure-listen-address=:8443",
        "--upstream=http://127.0.0.1:8080/",
        "--allow-paths=/metrics",
        "--tls-cert-file=/certificate/tls.crt",
        "--tls-private-key-file=/certificate/tls.key",
    ]
    volumes = rendered.one("Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "certificate", "secret": {"secretName": "metrics-tls"}} in volumes
    (port,) = rendered.one("Service")["spec"]["ports"]
    assert port == {"name": "metrics", "port": 8443, "targetPort": "metrics-tls"}
    (rule,) = rendered.one("NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "metrics-tls"}]
    (endpoint,) = rendered.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["bearerTokenFile"] == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert "answer.code == 401" in rendered.one("Pod")["spec"]["containers"][0]["command"][2]
    variables = {each["name"]: each.get("value") for each in containers_of(rendered)["operator"]["env"]}
    assert variables["SWARMGAME_OPERATOR_LOCAL_METRICS"] == "true", "the plain port answers no other pod"
    assert environment(render().one("Deployment"))["SWARMGAME_OPERATOR_LOCAL_METRICS"] == "false"


def test_secure_metrics_may_ask_who_reads_and_only_the_given_subjects_may_read() -> None:
    rendered = render(values=SECURE)
    asks = rendered.one("ClusterRole", f"{NAMESPACE}-swarmgame-metrics-auth")["rules"]
    assert [(rule["resources"], rule["verbs"]) for rule in asks] == [
        (["tokenreviews"], ["create"]),
        (["subjectaccessreviews"], ["create"]),
    ]
    reads = rendered.one("ClusterRole", f"{NAMESPACE}-swarmgame-metrics-reader")["rules"]
    assert reads == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    binding = rendered.one("ClusterRoleBinding", f"{NAMESPACE}-swarmgame-metrics-reader")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring"}]


def test_metrics_are_plain_by_default_and_nothing_of_the_proxy_is_rendered() -> None:
    assert "kube-rbac-proxy" not in render(values=EVERYTHING).text
    assert list(containers_of(render())) == ["operator"]


@pytest.mark.parametrize(("name", "kind"), [("serviceMonitor", "ServiceMonitor"), ("podMonitor", "PodMonitor")])
def test_a_monitor_takes_a_namespace_a_timeout_and_relabelings(name: str, kind: str) -> None:
    relabeling = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}
    dropped = {"sourceLabels": ["__name__"], "regex": "python_gc_.*", "action": "drop"}
    values = {
        "enabled": True,
        "namespace": "monitoring",
        "annotations": {"note": "kept"},
        "scrapeTimeout": "10s",
        "relabelings": [relabeling],
        "metricRelabelings": [dropped],
    }
    monitor = render(values={"metrics": {name: values}}).one(kind)
    assert monitor["metadata"]["namespace"] == "monitoring"
    assert monitor["metadata"]["annotations"] == {"note": "kept"}
    (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["scrapeTimeout"] == "10s"
    assert endpoint["relabelings"][-1] == relabeling
    assert endpoint["metricRelabelings"] == [dropped]
    if kind == "ServiceMonitor":
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}


def test_the_rules_can_be_in_another_namespace() -> None:
    values = {"metrics": {"prometheusRule": {"enabled": True, "namespace": "monitoring"}}}
    assert render(OPERATOR, values).one("PrometheusRule")["metadata"]["namespace"] == "monitoring"


POD_DEFAULTS: dict[str, Any] = {
    "labels": {"team": "swarm"},
    "annotations": {"mesh.example/inject": "false"},
    "arbitraryUser": True,
    "securityContext": {"supplementalGroups": [7]},
    "containerSecurityContext": {"procMount": "Default"},
    "nodeSelector": {"pool": "games"},
    "tolerations": [{"key": "games", "operator": "Exists"}],
    "priorityClassName": "low",
    "resources": {"limits": {"cpu": "2"}},
    "imagePullSecrets": [{"name": "registry"}],
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
    "volumes": [{"name": "authority", "configMap": {"name": "ca"}}],
    "volumeMounts": [{"name": "authority", "mountPath": "/etc/ssl/custom", "readOnly": True}],
}


def test_the_defaults_of_the_games_pods_reach_the_operator_as_it_reads_them() -> None:
    variables = environment(render(values={"games": {"podDefaults": POD_DEFAULTS}}).one("Deployment"))
    found = operator_settings({name: text for name, text in variables.items() if name == f"{PREFIX}POD_DEFAULTS"})
    data = found.pod_defaults.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    assert data == POD_DEFAULTS
    assert environment(render().one("Deployment"))[f"{PREFIX}POD_DEFAULTS"] == "{}"


def test_the_chart_takes_every_default_of_pods_that_a_game_takes() -> None:
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text())["games"]["podDefaults"]
    assert set(values) == {field.alias for field in PodDefaults.model_fields.values()}


@pytest.mark.parametrize(
    "defaults",
    [
        {"nodeSelektor": {}},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        {"env": [{"name": "SWARMGAME_INDEX", "value": "1"}]},
        {"env": [{"name": "POD_IP", "value": "1"}]},
        {"imagePullSecrets": ["registry"]},
    ],
    ids=str,
)
def test_defaults_that_the_operator_would_refuse_are_refused_by_the_chart(defaults: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="/games/podDefaults"):
        render(values={"games": {"podDefaults": defaults}})


def rules_of(rendered: Rendered, resource: str) -> list[dict[str, Any]]:
    return [
        rule
        for kind in ("ClusterRole", "Role")
        for role in rendered.of(kind)
        for rule in role["rules"]
        if resource in rule.get("resources", [])
    ]


def test_the_right_to_reach_pods_through_the_api_server_is_given_only_where_it_is_chosen() -> None:
    chosen = {"reachPods": "Proxy", "apiServerAddresses": ["10.0.0.0/24", "fd00::/64"]}
    plain = render(values={"networkPolicy": {"restrictEgress": True}})
    proxied = render(values={"operator": chosen, "networkPolicy": {"restrictEgress": True}})
    assert rules_of(plain, "pods/proxy") == []
    assert [rule["verbs"] for rule in rules_of(proxied, "pods/proxy")] == [["get"]]
    some = render(values={"operator": chosen, "watchNamespaces": ["a", "b"]})
    assert len(rules_of(some, "pods/proxy")) == 2
    variables = environment(proxied.one("Deployment"))
    found = operator_settings({name: variables[name] for name in READ})
    assert found.through_api_server
    assert found.api_server_addresses == ("10.0.0.0/24", "fd00::/64")
    ports = [port["port"] for rule in proxied.one("NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
    assert 8080 not in ports, "it connects to no pod"
    assert 8080 in [port["port"] for rule in plain.one("NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]


@pytest.mark.parametrize(
    ("family", "address", "ipv6"),
    [("", "10.0.0.7", False), ("", "fd00::7", True), ("IPv4", "fd00::7", False), ("IPv6", "10.0.0.7", True)],
)
def test_the_family_of_the_pods_addresses_is_the_operators_own_unless_it_is_set(
    family: str, address: str, ipv6: bool
) -> None:
    variables = environment(render(values={"games": {"ipFamily": family}}).one("Deployment"))
    assert variables[f"{PREFIX}PROBE_HOST"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    read = {f"{PREFIX}IP_FAMILY": variables[f"{PREFIX}IP_FAMILY"], f"{PREFIX}PROBE_HOST": address}
    assert operator_settings(read).defaults.ipv6 is ipv6


@pytest.mark.parametrize("value", [{"reachPods": "proxy"}, {"apiServerAddresses": ["10.0.0.1"]}], ids=str)
def test_another_way_to_the_pods_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="/operator/"):
        render(values={"operator": value})
