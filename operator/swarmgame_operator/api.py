"""A minimal REST client of the API server: a few verbs on plain JSON, over one session of `kubernetes.aio`.

It has no models and no discovery. Every request is counted, has a timeout, and ends with data or with an
`OperatorError`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yaml
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from swarmgame_operator.errors import AlreadyExists, Gone, Invalid, NotFound, OperatorError, Retry

MANAGER = "swarmgame-operator"
"""The operator's name as a field manager."""
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
TIMEOUT_SECONDS = 30
TOKEN_LIFETIME = timedelta(minutes=30)
"""After this long the token is read again. Kubernetes renews a pod's token when 80 % of its hour have passed."""
WRITTEN_BY: Mapping[str, str] = {"fieldManager": MANAGER, "fieldValidation": "Ignore"}
"""The query of writes. By default the API server decodes each body twice to warn of unknown fields, the second time as
YAML if it is applied; nothing reads the warnings.
"""
MAX_ERROR_BYTES = 64 * 1024
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of object, and its path on the API server."""

    name: str
    api: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of all objects, in a namespace or (None) in all namespaces."""
        root = f"/api/{self.api}" if "/" not in self.api else f"/apis/{self.api}"
        inside = f"/namespaces/{namespace}" if namespace else ""
        return "/".join(part for part in (f"{root}{inside}/{self.plural}", name, subresource) if part)


GAME = ResourceKind("SwarmGame", "swarmgame.dev/v1alpha1", "swarmgames")
POD = ResourceKind("Pod", "v1", "pods")
JOB = ResourceKind("Job", "batch/v1", "jobs")
SECRET = ResourceKind("Secret", "v1", "secrets")
CONFIG_MAP = ResourceKind("ConfigMap", "v1", "configmaps")
CLAIM = ResourceKind("PersistentVolumeClaim", "v1", "persistentvolumeclaims")
SERVICE = ResourceKind("Service", "v1", "services")
DEPLOYMENT = ResourceKind("Deployment", "apps/v1", "deployments")
STATEFUL_SET = ResourceKind("StatefulSet", "apps/v1", "statefulsets")
NETWORK_POLICY = ResourceKind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
LEASE = ResourceKind("Lease", "coordination.k8s.io/v1", "leases")
EVENT = ResourceKind("Event", "v1", "events")
KINDS: Mapping[str, ResourceKind] = {
    kind.name: kind
    for kind in (GAME, POD, JOB, SECRET, CONFIG_MAP, CLAIM, SERVICE, DEPLOYMENT, STATEFUL_SET, NETWORK_POLICY)
}


class Api:
    """Requests to one API server.

    Args:
        client: has the address, the credentials and the session.
        count: called with the verb and the status code of every request, or the error's name.
        seconds: how long a request may take, except a watch.
    """

    def __init__(
        self,
        client: Any,
        count: Callable[[str, str], None] = lambda verb, code: None,
        *,
        seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._client = client
        self._count = count
        self._seconds = seconds

    async def close(self) -> None:
        await self._client.close()

    async def credentials(self) -> dict[str, Any]:
        """Return what another client needs to reach the API server: the fields of kopf's `ConnectionInfo`.

        The token is read again each time, as it is renewed while the process runs.
        """
        configuration = self._client.configuration
        headers: dict[str, str] = {}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], "/", "GET", None)
        scheme, _, token = next(iter(headers.values()), "").partition(" ")
        return {
            "server": configuration.host,
            "ca_path": configuration.ssl_ca_cert,
            "insecure": not configuration.verify_ssl,
            "certificate_path": configuration.cert_file,
            "private_key_path": configuration.key_file,
            "scheme": scheme or None,
            "token": token or None,
            "proxy_url": configuration.proxy,
            "expiration": datetime.now(UTC) + TOKEN_LIFETIME if token else None,
        }

    async def get(
        self, kind: ResourceKind, namespace: str | None, name: str, *, metadata: bool = False
    ) -> Object | None:
        """Return the object, or with `metadata` that alone; None if it does not exist.

        Raises:
            Invalid: the name would lead to something else: none leads to the list of all objects.
        """
        if not name or name in (".", "..") or set(name) & set("/?#%"):
            raise Invalid("InvalidName", f'"{name}" is not the name of a {kind.name}')
        accept = METADATA if metadata else "application/json"
        try:
            return await self._call("get", "GET", kind.path(namespace, name), accept=accept)
        except NotFound:
            return None

    async def list_page(
        self,
        kind: ResourceKind,
        namespace: str | None,
        *,
        selector: str = "",
        fields: str = "",
        limit: int = 500,
        token: str = "",
        metadata: bool = False,
    ) -> Object:
        """Return one page of a list; `metadata.continue` of the answer is the token of the next.

        Raises:
            Gone: the token is too old.
        """
        query = {"labelSelector": selector, "fieldSelector": fields, "limit": limit, "continue": token}
        accept = METADATA_LIST if metadata else "application/json"
        return await self._call("list", "GET", kind.path(namespace), query=query, accept=accept)

    async def create(self, kind: ResourceKind, namespace: str | None, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object. A dry run goes through admission and validation, and writes nothing."""
        query = {**WRITTEN_BY, "dryRun": "All" if dry_run else ""}
        verb = "create_dry_run" if dry_run else "create"
        return await self._call(verb, "POST", kind.path(namespace), query=query, body=body)

    async def apply(self, kind: ResourceKind, namespace: str | None, body: Object) -> Object:
        """Apply server-side with force: the operator owns the body's fields afterwards."""
        path = kind.path(namespace, body["metadata"]["name"])
        return await self._call("apply", "PATCH", path, query={**WRITTEN_BY, "force": "true"}, body=body, content=APPLY)

    async def merge(
        self, kind: ResourceKind, namespace: str | None, name: str, patch: Object, *, subresource: str = ""
    ) -> Object:
        """Apply a merge patch."""
        path = kind.path(namespace, name, subresource)
        return await self._call("patch", "PATCH", path, query=WRITTEN_BY, body=patch, content=MERGE)

    async def replace(self, kind: ResourceKind, namespace: str | None, body: Object) -> Object:
        """Replace an object; a conflict if its resourceVersion is not the current one."""
        return await self._call("update", "PUT", kind.path(namespace, body["metadata"]["name"]), body=body)

    async def delete(
        self, kind: ResourceKind, namespace: str | None, name: str, *, propagation: str, uid: str = ""
    ) -> None:
        """Delete an object; one that does not exist is no error."""
        body: Object = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("delete", "DELETE", kind.path(namespace, name), body=body)
        except NotFound:
            return

    async def version(self) -> tuple[int, int]:
        """Return major and minor version of the cluster."""
        found = await self._call("get", "GET", "/version")
        return int(found["major"]), int("".join(filter(str.isdigit, found["minor"])))

    async def text(
        self, path: str, *, query: Mapping[str, Any] | None = None, largest: int = 4 << 20, seconds: float = 30
    ) -> str:
        """Return the answer as text, cut to a number of bytes: logs, or a pod's answer through the proxy."""
        return (await self.raw(path, query=query, largest=largest, seconds=seconds)).decode("utf-8", "replace")

    async def raw(
        self, path: str, *, query: Mapping[str, Any] | None = None, largest: int = 4 << 20, seconds: float = 30
    ) -> bytes:
        """Return the answer's bytes, cut to a number."""
        found = b""
        async with self._request("get", "GET", path, query=query, seconds=seconds) as response:
            async for part in response.content.iter_chunked(65_536):
                found += part
                if len(found) >= largest:
                    break
        return found[:largest]

    @asynccontextmanager
    async def lines(
        self,
        path: str,
        query: Mapping[str, Any],
        *,
        accept: str = "application/json",
        header_seconds: float | None = None,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Open a streaming answer: a watch, or a log that is followed. The caller sets timeouts for its messages.

        Args:
            header_seconds: how long the answer may take to begin. None: for ever, as a log without a line may.
        """
        async with self._request(
            "watch", "GET", path, query=query, accept=accept, seconds=None, header_seconds=header_seconds
        ) as response:
            yield response.content

    async def _call(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        async with self._request(
            verb, method, path, query=query, body=body, content=content, accept=accept, seconds=self._seconds
        ) as response:
            found: Object = json.loads(await response.read())
            return found

    @asynccontextmanager
    async def _request(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        seconds: float | None,
        header_seconds: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": accept, "Content-Type": content}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        parameters = urlencode({key: value for key, value in (query or {}).items() if value != ""})
        url = f"{self._client.configuration.host}{path}{f'?{parameters}' if parameters else ''}"
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=10)
        code, response = "broken", None
        try:
            async with asyncio.timeout(header_seconds):
                answer = await self._client.rest_client.request(
                    method, url, headers=headers, body=body, _request_timeout=timeout
                )
            response = answer.response
            code = str(response.status)
            if response.status >= 300:
                raise await _error_of(response, f"{method} {path}")
            yield response
        except TimeoutError as error:
            code = "timeout"
            raise Retry(
                None, "APITimeout", f"{method} {path} took longer than {seconds or header_seconds} s"
            ) from error
        except (aiohttp.ClientError, ConnectionError, json.JSONDecodeError) as error:
            code = "broken" if code == "200" or response is None else code
            raise Retry(None, "APIUnavailable", f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            self._count(verb, code)
            if response is not None:
                response.release()  # closes the connection if the answer was not read to its end


async def _error_of(response: aiohttp.ClientResponse, request: str) -> OperatorError:
    raw = await response.content.read(MAX_ERROR_BYTES)
    try:
        status = json.loads(raw)
        reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    except (ValueError, AttributeError):
        reason, message = "", raw[:200].decode("utf-8", "replace")
    return error_of(response.status, reason, f"{request}: {message}", response.headers.get("Retry-After", ""))


def error_of(code: int, reason: str, message: str, retry_after: str = "") -> OperatorError:
    """Return the error for an answer of the API server."""
    wait = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    if code == 409 and reason == "AlreadyExists":
        return AlreadyExists(None, reason, message, status=code)
    if code == 410:
        return Gone(None, reason or "Gone", message, status=code)
    if code in (404, 405):
        return NotFound(reason or "NotFound", message, status=code)
    if code in (401, 403, 408, 409, 425, 429) or code >= 500:
        # 401 and 403 pass when a token is renewed or a role is bound; meanwhile the metric shows them.
        return Retry(wait, reason or f"HTTP{code}", message, status=code)
    return Invalid(reason or f"HTTP{code}", message, status=code)


async def connect(
    count: Callable[[str, str], None] = lambda verb, code: None, *, config_file: str = "", context: str = ""
) -> Api:
    """Connect to the API server of KUBECONFIG, or of the cluster that the operator runs in. Needs a running loop.

    Raises:
        ConfigException: there is no kubeconfig, or it cannot be read.
    """
    configuration = kubernetes_client.Configuration()
    config_file = config_file or os.environ.get("KUBECONFIG", "")  # the package reads the variable when it is imported
    try:
        if config_file:
            await kubernetes_config.load_kube_config(
                config_file=config_file, context=context or None, client_configuration=configuration
            )
        else:
            try:
                kubernetes_config.load_incluster_config(client_configuration=configuration)
            except kubernetes_config.ConfigException:
                await kubernetes_config.load_kube_config(context=context or None, client_configuration=configuration)
        configuration.connection_pool_maxsize = 128
        configuration.proxy = configuration.proxy or proxy_of(configuration.host)
        # With trust_env, every request would use two threads: for ~/.netrc, and for a proxy.
        configuration.client_session_kwargs = {"trust_env": False, "trace_configs": [_refuse_redirects_of_pods()]}
        return Api(kubernetes_client.ApiClient(configuration=configuration), count)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:  # no YAML, another document, no certificate
        message = " ".join(str(error).split())
        raise kubernetes_config.ConfigException(f"{config_file or 'the kubeconfig'} is invalid: {message}") from error


def _refuse_redirects_of_pods() -> aiohttp.TraceConfig:
    """Return what ends a request that a pod answers with a redirect: it would be sent again with our token, to wherever
    the pod likes. kubernetes.aio has no option for it.
    """

    async def refuse(session: object, context: object, parameters: aiohttp.TraceRequestRedirectParams) -> None:
        if "/proxy/" in parameters.url.path:
            raise aiohttp.ClientError("the pod answered with a redirect")

    found = aiohttp.TraceConfig()
    found.on_request_redirect.append(refuse)
    return found


def proxy_of(address: str) -> str | None:
    """Return the environment's proxy for an address (HTTPS_PROXY, NO_PROXY), or None."""
    scheme, _, rest = address.partition("://")
    return None if proxy_bypass(rest) else getproxies().get(scheme)
