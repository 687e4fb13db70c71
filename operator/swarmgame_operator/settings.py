"""Settings: what an installation of the operator may choose, from the environment, as `SWARMGAME_OPERATOR_*`.

`python -m swarmgame_operator.settings [FILE]` writes docs/reference/operator-settings.md from here. Invariant: a
variable that starts with the prefix and is no setting is an error, so that a misspelt one is not silently without
effect.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from swarmgame_operator.defaults import Defaults

PREFIX = "SWARMGAME_OPERATOR_"


def _words(value: Any) -> Any:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class InvalidSettings(Exception):
    """The environment makes no sense; the message names each variable."""


class Settings(BaseModel):
    """The operator's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    worker_image: str = Defaults().worker_image
    """Image of peers, bootnode and initializer, where a game names none."""
    gateway_image: str = Defaults().gateway_image
    """Image of the gateway: the operator's own."""
    chain_image: str = Defaults().chain_image
    """Image of the Dev chain."""
    sampler_image: str = Defaults().sampler_image
    """Image of the vLLM server beside a peer, where a game generates with one and names no image."""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """Pull policy of all of them. Empty: Kubernetes' own choice."""
    image_pull_secrets: Words = ()
    """Names of pull Secrets, separated by commas; expected in the games' namespaces."""
    cluster_domain: str = ""
    """What follows `<service>.<namespace>.svc`; empty: nothing."""
    watch_namespaces: Words = ()
    """Namespaces to serve, separated by commas. Empty: all."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Games that are reconciled at the same time."""
    debounce_seconds: Annotated[float, Field(ge=0, le=60)] = 0.1
    """How long changes of a game's objects are gathered before it is reconciled."""
    lease_namespace: str = ""
    """Namespace of the Lease. Empty: no leader election; then run one replica only."""
    lease_name: str = "swarmgame-operator"
    """Name of the Lease."""
    lease_seconds: Annotated[int, Field(ge=2, le=600)] = 15
    """How long a leader that was not heard of stays leader."""
    metrics_port: Port = 8080
    """Port of /metrics. 0: a free one, which the log names."""
    probe_port: Port = 8081
    """Port of /healthz and /readyz. 0: a free one, which the log names."""
    progress_seconds: Annotated[float, Field(ge=0, le=3600)] = 10
    """How often a game's progress is asked for, at most. 0: never."""
    stale_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300
    """The operator is not alive when its oldest work, or the last word of a watch, is older than this."""
    log_format: Literal["json", "text"] = "json"
    """json: one object a line. text: for a terminal."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least important lines that are logged."""

    @property
    def defaults(self) -> Defaults:
        """What plans read of them."""
        return Defaults(**{name: getattr(self, name) for name in Defaults.__dataclass_fields__})


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in an environment.

    Raises:
        InvalidSettings: naming every variable that is unknown or has a value that cannot be.
    """
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(each['loc'][0]).upper()} is {each['input']!r}; {each['msg']}" for each in error.errors()
        ]
        raise InvalidSettings("\n".join(lines)) from error


def reference() -> str:
    """The page of all settings, as Markdown."""
    rows = []
    for name, field in Settings.model_fields.items():
        shown = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
        rows.append(
            f"| `{PREFIX}{name.upper()}` | {f'`{shown}`' if shown else ''} | {' '.join((field.description or '').split())} |"
        )
    return "\n".join(
        [
            "# Settings of the operator",
            "",
            "From the environment. The chart sets them from its values. This page is made by `python -m swarmgame_operator.settings`.",
            "`KUBECONFIG` says which cluster; without it, the one that the operator runs in.",
            "",
            "| variable | default | |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/operator-settings.md").write_text(
        reference(), encoding="utf-8"
    )
