"""Metrics: the series of games, and the definitions of all metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client.exposition import generate_latest

from swarmgame_operator.api import GAME
from swarmgame_operator.cache import ClusterCache
from swarmgame_operator.metrics import OPERATOR_METRICS, GameCollector, OperatorMetrics, reference

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "operator-metrics.md"


def body(name: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "n",
            "uid": name,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-31T12:00:00Z",
            "labels": {"kueue.x-k8s.io/queue-name": "q"},
        },
        "spec": {"model": {"uri": "builtin://tiny"}},
        "status": status,
    }


def scrape(cache: ClusterCache) -> str:
    metrics = OperatorMetrics("1.2.3")
    metrics.registry.register(GameCollector(cache.games, lambda: [("swarmgame_operator_queue_depth", (), 7.0)]))
    return generate_latest(metrics.registry).decode()


def test_a_game_has_series_until_it_is_deleted() -> None:
    cache = ClusterCache(changed=lambda key: None)
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-31T12:01:30Z"}]
    first = body("a", peers={"desired": 4, "ready": 3}, progress={"round": 41, "maxRounds": 200}, conditions=conditions)
    for game in (first, body("b")):
        cache.put(GAME, game)
        cache.put_game(("n", game["metadata"]["name"]), game)
    text = scrape(cache)
    for line in (
        'swarmgame_info{coordination="None",model="builtin://tiny",name="a",namespace="n",queue="q"} 1.0',
        'swarmgame_peers{name="a",namespace="n",state="ready"} 3.0',
        'swarmgame_round{name="a",namespace="n"} 41.0',
        'swarmgame_condition{name="a",namespace="n",status="True",type="Ready"} 1.0',
        'swarmgame_time_to_ready_seconds{name="a",namespace="n"} 90.0',
        "swarmgame_operator_queue_depth 7.0",
        'swarmgame_operator_build_info{version="1.2.3"} 1.0',
    ):
        assert line in text.splitlines()
    cache.remove(GAME, "n", "a", "a")
    assert 'name="a"' not in scrape(cache)
    assert 'name="b"' in scrape(cache)


def test_writes_are_counted_apart_from_reads() -> None:
    metrics = OperatorMetrics("1")
    for verb in ("get", "list", "watch", "create_dry_run", "apply", "patch", "create", "delete", "update"):
        metrics.requested(verb, "200")
    assert metrics.writes == 5


def test_the_page_of_metrics_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m swarmgame_operator.metrics`"
    assert len({entry.name for entry in OPERATOR_METRICS}) == len(OPERATOR_METRICS)


def test_every_metric_of_the_operator_that_the_chart_shows_or_watches_exists() -> None:
    import re

    charts = Path(__file__).parents[4] / "charts" / "swarmgame"
    text = "\n".join(
        path.read_text(encoding="utf-8") for pattern in ("*.yaml", "*.json") for path in charts.rglob(pattern)
    )
    known = {entry.name for entry in OPERATOR_METRICS}
    used = set(re.findall(r"swarmgame_operator_[a-z0-9_]+(?=[\[{(]|\s*[\])}])", text))
    bare = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in used}
    assert bare <= known
    assert bare
