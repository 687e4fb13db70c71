"""Fixtures: a real API server with the controllers, the CRD, and a fresh namespace."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from api_servers import ApiServer
from operators import collector_knows_games, eventually

from swarmgame_operator.api import Api, ResourceKind, connect

CRD = Path(__file__).parents[3] / "crds" / "swarmgame.yaml"
DEFINITION = ResourceKind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
NAMESPACE = ResourceKind("Namespace", "v1", "namespaces")
ACCOUNT = ResourceKind("ServiceAccount", "v1", "serviceaccounts")


@pytest.fixture(scope="session")
def cluster_config(api_server_with_controllers: ApiServer) -> Path:
    """The kubeconfig of an API server with the CRD, whose controllers know it."""

    async def install() -> None:
        api = await connect(config_file=str(api_server_with_controllers.kubeconfig))
        await api.apply(DEFINITION, None, yaml.safe_load(CRD.read_text(encoding="utf-8")))

        async def established() -> bool:
            found = await api.get(DEFINITION, None, "swarmgames.swarmgame.dev")
            conditions = ((found or {}).get("status") or {}).get("conditions") or ()
            return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

        await eventually(established)
        await collector_knows_games(api)
        await api.close()

    asyncio.run(install())
    return api_server_with_controllers.kubeconfig


@pytest_asyncio.fixture
async def api(cluster_config: Path) -> AsyncIterator[Api]:
    """An administrator's requests, apart from the operator's."""
    connection = await connect(config_file=str(cluster_config))
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def namespace(api: Api) -> str:
    """A new namespace in which pods can be made."""
    return await make_namespace(api)


@pytest.fixture
def new_namespace(api: Api) -> Callable[..., Awaitable[str]]:
    """Return a function that makes namespaces, with these labels if any are given."""
    return lambda labels=None: make_namespace(api, labels)


async def make_namespace(api: Api, labels: Mapping[str, str] | None = None) -> str:
    """Make a namespace. Pod Security obeys labels that it has from the start; later ones after a moment."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    await api.create(NAMESPACE, None, {"metadata": {"name": name, "labels": dict(labels or {})}})

    async def has_account() -> bool:
        return await api.get(ACCOUNT, name, "default") is not None

    await eventually(has_account)
    return name
