"""The operator as a process: its exit codes, its probes, and `kopf run` with its handlers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from api_proxy import Fault, api_proxy, kopf_watches_games
from operator_process import operator_process
from operators import eventually, manifest, names

from native_cluster.control_plane import free_ports
from swarmgame_operator.api import GAME, JOB, LEASE, Api

STOPPED, LOST, BAD_CONFIG = 0, 75, 78
"""Exit codes. 75 is for all that may work if it is started again."""
HANDLERS = ("-m", "swarmgame_operator.handlers")


async def has_job(api: Api, namespace: str, name: str) -> bool:
    return f"{name}-peers" in await names(api, JOB, namespace)


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_the_probes_answer_on_their_ports(api: Api, cluster_config: Path, namespace: str, tmp_path: Path) -> None:
    (one,) = free_ports(1)
    async with operator_process(tmp_path, cluster_config, watch_namespaces=namespace, probe_port=str(one)) as well:
        await well.logs("cache synced")
        port = await well.port()
        assert await get(one, "/healthz") == (200, '{"operator": "ok"}')
        assert await get(port, "/readyz") == (200, "ok\n")
        status, metrics = await get(port, "/metrics")
        assert status == 200
        assert "swarmgame_operator_watch_synced" in metrics


async def test_a_process_whose_lease_is_taken_by_another_or_cannot_be_renewed_ends_with_75(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    async with api_proxy(api) as proxy:
        common = {"watch_namespaces": namespace, "lease_namespace": namespace}
        config = proxy.kubeconfig(tmp_path / "config")
        async with (
            # Long: it must see the other holder, and not fail to renew meanwhile.
            operator_process(tmp_path, cluster_config, lease_name="taken", lease_seconds="30", **common) as robbed,
            operator_process(tmp_path, config, lease_name="cut-off", lease_seconds="3", **common) as cut_off,
        ):
            await robbed.logs('"leading"')
            await cut_off.logs('"leading"')
            proxy.fault = Fault(lambda request: True, "hang")
            proxy.cut()

            async def take() -> bool:
                found = await api.get(LEASE, namespace, "taken")
                assert found is not None
                if found["spec"]["holderIdentity"] != "another":
                    await api.merge(LEASE, namespace, "taken", {"spec": {"holderIdentity": "another"}})
                return robbed.process.returncode is not None

            await eventually(take, 60)
            ends = ((robbed, "taken is another operator's"), (cut_off, "cut-off could not be renewed in time"))
            for process, end in ends:
                assert await process.exit_code() == LOST
                assert f"the Lease {namespace}/{end}" in process.output.splitlines()[-1]
        held = await api.get(LEASE, namespace, "taken")
        assert held is not None
        assert held["spec"]["holderIdentity"] == "another"


async def test_a_process_whose_watch_of_games_breaks_for_good_ends_with_75_and_the_next_works(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    async with api_proxy(api) as proxy:
        config = proxy.kubeconfig(tmp_path / "config")
        async with operator_process(tmp_path, config, watch_namespaces=namespace) as first:
            await first.logs("cache synced")
            await eventually(lambda: proxy.count(kopf_watches_games))
            proxy.fault = Fault(kopf_watches_games, 400)
            proxy.cut(kopf_watches_games)
            assert await first.exit_code() == LOST
            assert "the watch of games broke for good; start again" in first.output
        proxy.fault = None
        async with operator_process(tmp_path, config, watch_namespaces=namespace) as second:
            await api.create(GAME, namespace, manifest("g0"))
            await eventually(lambda: has_job(api, namespace, "g0"))
            second.terminate()
            assert await second.exit_code() == STOPPED


async def test_what_the_user_can_mend_ends_with_its_exit_code_and_a_sentence(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    absent, broken, list_ = tmp_path / "absent", tmp_path / "broken", tmp_path / "list"
    broken.write_text("{", encoding="utf-8")
    list_.write_text("[]", encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases: list[tuple[Path, dict[str, str], int, str]] = [
            (cluster_config, {"workers": "none"}, BAD_CONFIG, "SWARMGAME_OPERATOR_WORKERS"),
            (cluster_config, {"wrokers": "3"}, BAD_CONFIG, "SWARMGAME_OPERATOR_WROKERS"),
            (absent, {}, BAD_CONFIG, "no API server: "),
            (broken, {}, BAD_CONFIG, f"no API server: {broken} is invalid: "),
            (list_, {}, BAD_CONFIG, f"no API server: {list_} is invalid: "),
            (cluster_config, {"metrics_port": port}, LOST, f"cannot serve /metrics on port {port}: "),
            (cluster_config, {"probe_port": port}, LOST, f"cannot serve /healthz on 0.0.0.0:{port}; set "),
        ]

        async def ends(kubeconfig: Path, settings: dict[str, str], directory: Path) -> tuple[int, str]:
            directory.mkdir()
            async with operator_process(directory, kubeconfig, watch_namespaces=namespace, **settings) as process:
                return await process.exit_code(), process.output

        found = await asyncio.gather(
            *(ends(config, settings, tmp_path / str(number)) for number, (config, settings, *_) in enumerate(cases))
        )
    for (code, output), (_, settings, expected, sentence) in zip(found, cases, strict=True):
        assert code == expected, (settings, output)
        assert sentence in output.splitlines()[-1], (settings, output)


@pytest.mark.parametrize("moment", ["starting", "no API server", "no answer", "leading, no answer"])
async def test_a_process_that_is_terminated_at_a_bad_moment_ends_with_0(
    api: Api, namespace: str, tmp_path: Path, moment: str
) -> None:
    async with api_proxy(api) as proxy:
        config = proxy.kubeconfig(tmp_path / "config")
        if moment == "no API server":
            proxy.fault = Fault(lambda request: True, "close")
        if moment == "no answer":
            proxy.fault = Fault(lambda request: True, "hang")
        lease = {"lease_namespace": namespace, "lease_seconds": "600"}
        async with operator_process(tmp_path, config, watch_namespaces=namespace, **lease) as process:
            if moment == "starting":
                await process.logs('"starting"')
            elif moment == "leading, no answer":
                await process.logs('"leading"')
                proxy.fault = Fault(lambda request: True, "hang")
                proxy.cut()
            else:
                await eventually(lambda: len(proxy.faulted) >= 3)
            process.terminate()
            assert await process.exit_code() == STOPPED, process.output


@pytest.mark.parametrize("everywhere", [True, False])
async def test_kopf_run_makes_a_games_job_and_ends_with_0(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path, everywhere: bool
) -> None:
    scope = ("-A",) if everywhere else ("-n", namespace)
    settings = {} if everywhere else {"watch_namespaces": namespace}
    command = ("-m", "kopf", "run", *scope, *HANDLERS)
    async with operator_process(tmp_path, cluster_config, command=command, **settings) as process:
        await api.create(GAME, namespace, manifest("g0"))
        try:
            await eventually(lambda: has_job(api, namespace, "g0"), 60)
        except AssertionError as error:
            raise AssertionError(process.output) from error
        process.terminate()
        assert await process.exit_code() == STOPPED, process.output


async def test_kopf_run_with_other_namespaces_than_the_settings_ends_with_a_sentence(
    cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    variable = "SWARMGAME_OPERATOR_WATCH_NAMESPACES"
    cases: list[tuple[tuple[str, ...], dict[str, str], str]] = [
        (
            ("-A",),
            {"watch_namespaces": namespace},
            f"all namespaces, and SWARMGAME_OPERATOR_WATCH_NAMESPACES is {namespace}",
        ),
        (("-n", namespace), {}, f"kopf watches other namespaces, and {variable} is empty (all)"),
        (
            ("-n", "default"),
            {"watch_namespaces": namespace},
            f"kopf watches other namespaces, and {variable} is {namespace}",
        ),
    ]

    async def ends(scope: tuple[str, ...], settings: dict[str, str], directory: Path) -> tuple[int, str]:
        directory.mkdir()
        command = ("-m", "kopf", "run", *scope, *HANDLERS)
        async with operator_process(directory, cluster_config, command=command, **settings) as process:
            return await process.exit_code(), process.output

    found = await asyncio.gather(
        *(ends(scope, settings, tmp_path / str(number)) for number, (scope, settings, _) in enumerate(cases))
    )
    for (code, output), (_, _, sentence) in zip(found, cases, strict=True):
        assert code == 1
        assert sentence in output
        assert "set both to the same" in output
