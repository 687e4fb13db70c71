"""Settings of an installation, from environment variables `SWARMGAME_OPERATOR_*`.

`python -m swarmgame_operator.settings [FILE]` writes docs/reference/operator-settings.md. A variable that starts with
the prefix and is not a setting is an error, so a misspelt one is noticed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from swarmgame_api.pods import PodDefaults
from swarmgame_api.validation_messages import explain
from swarmgame_common.settings import (
    CommaSeparated,
    EnvironmentSettings,
    Port,
    Variable,
    read_settings,
    settings_table,
)
from swarmgame_common.sockets import EVERY_ADDRESS
from swarmgame_operator.defaults import Defaults

PREFIX = "SWARMGAME_OPERATOR_"


def _read_pod_defaults(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return PodDefaults.model_validate_json(value, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = explain(PodDefaults, error.errors(include_url=False), "games.podDefaults")
        raise PydanticCustomError("pod_defaults", "{problems}", {"problems": "; ".join(map(str, problems))}) from error


class OperatorSettings(EnvironmentSettings):
    """The operator's settings."""

    worker_image: str = Defaults().worker_image
    """Image of peers, bootnode and initializer, if a game names none."""
    gateway_image: str = Defaults().gateway_image
    """Image of the gateway: the operator's own."""
    chain_image: str = Defaults().chain_image
    """Image of the Dev chain."""
    sampler_image: str = Defaults().sampler_image
    """Image of the vLLM server beside a peer, if a game uses one and names no image."""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """Pull policy of all of them. Empty: Kubernetes' default."""
    image_pull_secrets: CommaSeparated = ()
    """Names of pull Secrets, separated by commas; expected in the games' namespaces."""
    cluster_domain: str = ""
    """Suffix of `<service>.<namespace>.svc`. Empty: none."""
    ip_family: Literal["", "IPv4", "IPv6"] = ""
    """Family of the pods' addresses, the first one in a cluster with both. Empty: that of `probe_host`, which the chart
    sets to the pod's own address."""
    pod_defaults: Annotated[PodDefaults, BeforeValidator(_read_pod_defaults), Variable(secret=True)] = PodDefaults()
    """Fields of the pods of all games as JSON, as in `spec.podDefaults` of a game, which overrides them."""
    watch_namespaces: CommaSeparated = ()
    """Namespaces to serve, separated by commas. Empty: all."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Games that are reconciled at the same time."""
    debounce_seconds: Annotated[float, Field(ge=0, le=60)] = 0.1
    """How long changes of a game's objects are collected before it is reconciled."""
    lease_namespace: str = ""
    """Namespace of the Lease. Empty: no leader election; then run one replica only."""
    lease_name: str = "swarmgame-operator"
    """Name of the Lease."""
    lease_seconds: Annotated[int, Field(ge=2, le=600)] = 15
    """Duration of the Lease: how long a leader that stopped renewing it still leads."""
    metrics_port: Port = 8080
    """Port of /metrics and /readyz. 0: a free port, which is logged."""
    local_metrics: bool = False
    """true: /metrics answers only requests from the pod itself, as those of a proxy beside the operator."""
    probe_host: str = "0.0.0.0"
    """Address on which kopf serves /healthz. The chart sets the pod's."""
    probe_port: Port = 8081
    """Port of /healthz. 0: none, so no probe."""
    progress_seconds: Annotated[float, Field(ge=0, le=3600)] = 10
    """Interval at which a game's status is polled. 0: never. With more than 200 games per second of it, it grows."""
    reach_pods: Literal["Address", "Proxy"] = "Address"
    """How /status of peers and gateways is read: at the pods' addresses, or through the API server's proxy where
    policies or a mesh forbid that. The proxy needs the right `get` on `pods/proxy`, which the chart then gives."""
    api_server_addresses: CommaSeparated = ()
    """Networks (CIDR), separated by commas, from which the API server reaches pods; with `reach_pods` Proxy the games'
    network policies admit them. Empty: any address may read the endpoints of peers and gateways."""
    stale_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300
    """The liveness probe fails if the oldest work, or the last message of a watch, is older than this. For watches at
    least 90: a quiet one has a message every minute."""
    log_format: Literal["json", "text"] = "json"
    """json: one object a line. text: for a terminal."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""

    @property
    def defaults(self) -> Defaults:
        """The settings that plans read."""
        return Defaults(**{name: getattr(self, name) for name in Defaults.__dataclass_fields__})

    @property
    def through_api_server(self) -> bool:
        """Whether pods are reached through the API server's proxy."""
        return self.reach_pods == "Proxy"

    @property
    def ipv6(self) -> bool:
        """Whether the pods' addresses are of IPv6, alone or first."""
        own = "IPv6" if ":" in self.probe_host and self.probe_host != EVERY_ADDRESS else "IPv4"
        return (self.ip_family or own) == "IPv6"


def operator_settings(environment: Mapping[str, str]) -> OperatorSettings:
    """Read the settings from an environment.

    Raises:
        InvalidSettings: for unknown variables and invalid values.
    """
    return read_settings(OperatorSettings, environment, prefix=PREFIX, refuse_unknown=True, keep_empty=True)


def reference() -> str:
    """Return the page of all settings, as Markdown."""
    head = [
        "# Settings of the operator",
        "",
        "From the environment. The chart sets them from its values.",
        "Generated by `python -m swarmgame_operator.settings`.",
        "`KUBECONFIG` selects the cluster; without it, the operator uses the cluster that it runs in.",
        "",
    ]
    return "\n".join([*head, *settings_table(OperatorSettings, PREFIX), ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/operator-settings.md").write_text(
        reference(), encoding="utf-8"
    )
