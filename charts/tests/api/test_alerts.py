"""When each alert fires and when not, by promtool's evaluation of the rendered rules with the cases in rules/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from rendered import render

RULES = Path(__file__).parent / "rules"
pytestmark = pytest.mark.usefixtures("helm")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory, helm: object) -> Path:
    """The rendered rules, as Prometheus reads them."""
    spec = render(values={"metrics": {"prometheusRule": {"enabled": True}}}).one("PrometheusRule")["spec"]
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def run(promtool: Path, *arguments: str | Path) -> str:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules(promtool: Path, rules: Path) -> None:
    assert "SUCCESS: 5 rules found" in run(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules)


@pytest.mark.parametrize("cases", sorted(RULES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_alert_fires_when_it_should_and_only_then(promtool: Path, rules: Path, cases: Path) -> None:
    run(promtool, "test", "rules", shutil.copy(cases, rules.parent))


def test_every_alert_has_cases_that_fire_and_cases_that_do_not(rules: Path) -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]}
    assert alerts == {path.stem for path in RULES.glob("*.yaml")}
    for path in RULES.glob("*.yaml"):
        checks = [check for case in yaml.safe_load(path.read_text())["tests"] for check in case["alert_rule_test"]]
        assert {bool(check["exp_alerts"]) for check in checks} == {True, False}
        assert {check["alertname"] for check in checks} == {path.stem}
