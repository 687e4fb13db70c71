"""Two operators in one program: one that stops leaves nothing behind and does not disturb the other."""

from __future__ import annotations

from pathlib import Path

from operators import eventually, manifest, names, operator, settled

from swarmgame_operator.api import GAME, JOB, LEASE, Api


async def test_an_operator_that_stops_leaves_no_task_and_no_lease_and_the_other_goes_on(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    lease = {"lease_namespace": namespace, "lease_seconds": 600}
    async with operator(cluster_config, namespace, **lease) as second_to_stop:
        await second_to_stop.works()
        async with operator(cluster_config, namespace, lease_name="another", **lease) as first_to_stop:
            await first_to_stop.works()
        assert not first_to_stop.alive
        assert first_to_stop.tasks_left == []
        released = await api.get(LEASE, namespace, "another")
        assert released is not None
        assert released["spec"]["holderIdentity"] == ""
        assert not second_to_stop.inner.readiness_problem()
        await api.create(GAME, namespace, manifest("g0"))

        async def has_job() -> bool:
            return "g0-peers" in await names(api, JOB, namespace)

        await eventually(has_job)
        await settled(second_to_stop)
        held = await api.get(LEASE, namespace, "swarmgame-operator")
        assert held is not None
        assert held["spec"]["holderIdentity"] != ""
    assert second_to_stop.tasks_left == []
