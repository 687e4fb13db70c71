"""SwarmGames on a real API server: installing the definition, and the requests of the tests.

For any test that has the fixture `api_server`: `install(connection)`, then `Games(connection, namespace)`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from polling import until

from swarmgame_api.crd import GROUP, PLURAL, VERSION, definition
from swarmgame_api.overrides import apply_overrides, parse_override
from swarmgame_api.reference import MINIMAL
from swarmgame_api.yaml_io import load_documents

Body = dict[str, Any]


def game_body(overrides: list[str] | None = None, text: str = MINIMAL, name: str | None = None) -> Body:
    """Return a manifest without defaults, as its author writes it."""
    changes = [*(overrides or []), *([f"metadata.name={name}"] if name else [])]
    (document,) = load_documents(text)
    changed = apply_overrides(document, [parse_override(change) for change in changes])
    assert isinstance(changed, dict)
    return changed


def install(connection: client.ApiClient) -> None:
    """Install the definition once, and wait until games are served."""
    definitions = client.ApiextensionsV1Api(connection)
    try:
        definitions.create_custom_resource_definition(definition())
    except client.ApiException as error:
        if error.status != 409:
            raise
    games = client.CustomObjectsApi(connection)

    def served() -> bool:
        try:
            games.list_cluster_custom_object(GROUP, VERSION, PLURAL)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    until(served, 30)


@dataclass(frozen=True)
class Refusal:
    """The API server's reasons for refusing a request.

    Args:
        code: the HTTP status.
        message: the complete message.
        causes: field and message of each problem.
    """

    code: int
    message: str
    causes: tuple[tuple[str, str], ...]


class Refused(Exception):
    """A request was refused."""

    def __init__(self, code: int, answer: Body) -> None:
        causes = (answer.get("details") or {}).get("causes") or ()
        self.refusal = Refusal(
            code, answer["message"], tuple((cause.get("field", ""), cause["message"]) for cause in causes)
        )
        super().__init__(answer["message"])


class Games:
    """SwarmGames of one namespace."""

    def __init__(self, connection: client.ApiClient, namespace: str) -> None:
        self._connection = connection
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"

    def try_out(self, body: Body) -> Body:
        """Return what a dry run would store."""
        return self.request("POST", body=body, fieldValidation="Strict", dryRun="All")

    def create(self, body: Body, validation: str = "Strict") -> Body:
        return self.request("POST", body=body, fieldValidation=validation)

    def get(self, name: str, subresource: str = "") -> Body:
        return self.request("GET", name, subresource)

    def replace(self, body: Body, subresource: str = "") -> Body:
        return self.request("PUT", body["metadata"]["name"], subresource, body=body, fieldValidation="Strict")

    def apply(self, body: Body, manager: str, subresource: str = "") -> Body:
        """Apply by server-side apply."""
        kind = "application/apply-patch+yaml"
        return self.request("PATCH", body["metadata"]["name"], subresource, body=body, kind=kind, fieldManager=manager)

    def merge(self, name: str, patch: Body, subresource: str = "") -> Body:
        return self.request("PATCH", name, subresource, body=patch, kind="application/merge-patch+json")

    def request(
        self,
        method: str,
        name: str = "",
        subresource: str = "",
        *,
        body: Body | None = None,
        kind: str = "application/json",
        accept: str = "application/json",
        **query: str,
    ) -> Body:
        """Send one request.

        Raises:
            Refused: it was refused.
        """
        path = "/".join(part for part in (self._path, name, subresource) if part)
        headers = {"Accept": accept, "Content-Type": kind}
        call = self._connection.param_serialize(
            method, path, query_params=list(query.items()), header_params=headers, body=body
        )
        response = self._connection.call_api(*call)
        answer = json.loads(response.read())
        assert isinstance(answer, dict)
        if response.status >= 400:
            raise Refused(response.status, answer)
        return answer
