"""The guides are right: manifests, names of methods, options, warnings and messages are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from guides import GUIDES, blocks, links
from running import ROOT

from swarmgame import DataManager, Demonstrations, Trainer
from swarmgame.errors import ExitCode
from swarmgame.observability.diagnostics.outcomes import OUTCOMES
from swarmgame.observability.diagnostics.rules import DROPPED, NOTHING_LEARNED, RULES, SCORING_FAILED
from swarmgame_api import loads_manifest

PAGES = sorted(GUIDES.glob("*.md"))
NEW = ("first-game", "write-a-game", "trainers", "read-a-report", "join-a-swarm", "troubleshooting")


def read(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text(encoding="utf-8")


def cells(text: str, column: int = 0) -> set[str]:
    """Return the names in code style that a column of the tables holds."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name for row in rows if len(row) > column for name in re.findall(r"`([^`]+)`", row[column])}


def test_every_guide_is_in_the_list_and_the_readme_leads_there() -> None:
    listed = {target for target in links(GUIDES / "README.md") if "/" not in target}
    assert listed == {page.name for page in PAGES} - {"README.md"}
    assert {f"docs/guide/{name}.md" for name in NEW} <= set(links(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_manifest_of_a_guide_is_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        if text.startswith("apiVersion"):
            assert loads_manifest(text).spec.game.max_rounds


def test_every_exit_code_warning_and_outcome_has_its_row() -> None:
    text = read("troubleshooting")
    table = text.partition("## Exit codes")[2].partition("## It does not start")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(ExitCode)
    warnings = {rule.code for rule in (*RULES, NOTHING_LEARNED)} | {DROPPED, SCORING_FAILED}
    assert warnings <= cells(text)
    assert set(OUTCOMES) <= cells(text)
    outcomes = cells(read("write-a-game").partition("## What became of the rollouts")[2])
    assert outcomes >= set(OUTCOMES)


def test_messages_in_the_table_of_symptoms_are_those_of_the_code() -> None:
    folders = ("worker/swarmgame", "crds/swarmgame_api")
    source = "".join(path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    rows = [line for line in read("troubleshooting").splitlines() if re.match(r"\| `[^`]*[…a-z] [^`]*`", line)]
    assert len(rows) > 25
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            for part in re.split(r"…|\b[NM]\b|hf://|\bis false", message):
                words = part.strip(" ;:")
                if len(words) > 8 and " " in words and "swarmgame" not in words:
                    assert words in joined, f"no message has {words!r}: {row}"


def test_every_method_that_an_author_may_write_is_explained() -> None:
    def methods(component: type) -> set[str]:
        return {name for name in vars(component) if not name.startswith("_")}

    trainers, game = read("trainers"), read("write-a-game")
    left_out = {"sampling_version", "Config"}
    assert not {name for name in methods(Trainer) - left_out if f"`{name}" not in trainers}
    of_data = methods(DataManager) - {"resolve_all", "knows_next_round", "load_state_dict"} | methods(Demonstrations)
    assert not {name for name in of_data if f"`{name}" not in game}


def test_every_option_that_a_guide_names_exists() -> None:
    known = set(re.findall(r"`(--[a-z][-a-z/]*)", (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")))
    known |= {option for both in known for option in both.split("/")} | {"--help"}
    for name in NEW:
        assert set(re.findall(r"(?<![\w-])--[a-z][-a-z]*", read(name))) <= known, name


@pytest.mark.parametrize("name", NEW)
def test_lines_of_prose_are_short(name: str) -> None:
    assert not [line for line in read(name).splitlines() if len(line) > 120 and not line.startswith("|")]


def test_the_loss_and_the_options_of_trl_that_the_guide_shows_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swarmgame.trainer.grpo.config import GRPOConfig
    from swarmgame.trainer.grpo.own_loss import try_loss
    from swarmgame.trainer.trl.config import TrlConfig
    from swarmgame.trainer.trl.options import checked_options

    page = GUIDES / "trainers.md"
    loss = next(text for text in blocks(page, "python") if "def loss(" in text)
    (tmp_path / "my_loss.py").write_text(loss)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(try_loss(GRPOConfig(loss_type="my_loss:loss"))) == []
    shown = yaml.safe_load(next(text for text in blocks(page, "yaml") if text.startswith("trainer:")))["trainer"]
    assert shown["use"] == "trl"
    config = TrlConfig.model_validate(shown["with"], by_alias=True, by_name=False)
    assert checked_options(config.options).keys() == {
        "loss_type", "learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps",
    }  # fmt: skip
