"""The benchmarks' shared code: the order of arms, claims, hung peers, the work and the pages."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other as they do when they are run: from their own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("harness", "channel", "work", "table", "attack_table"):
        sys.modules.pop(name, None)


def test_arms_alternate_and_warm_ups_are_dropped() -> None:
    import harness

    order: list[str] = []
    arms = {name: lambda name=name: order.append(name) or float(len(order)) for name in ("ours", "theirs")}
    samples = harness.interleave(arms, repeats=2, warmups=1)
    assert order == ["ours", "theirs"] * 3
    assert samples == {"ours": [3.0, 5.0], "theirs": [4.0, 6.0]}


def test_a_claim_that_was_not_measured_is_not_met() -> None:
    import harness

    assert harness.claim("c", 5.0, at_least=5)["met"]
    assert not harness.claim("c", 4.99, at_least=5)["met"]
    assert not harness.claim("c", 5.0, at_most=4)["met"]
    assert not harness.claim("c", math.nan, at_most=4)["met"]
    assert harness.summary([])["count"] == 0


def test_a_result_names_the_machine_and_has_no_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.publish("b", {"claims": [], "seconds": harness.summary([])}, began=harness.machine())
    printed = capsys.readouterr().out
    assert (tmp_path / "b.json").read_text() == printed
    assert json.loads(printed)["seconds"]["median"] is None
    assert harness.result("b") == json.loads(printed)
    harness.publish("c", {"claims": []}, began=harness.machine(), smoke=True)
    assert harness.result("c") is None


PEER = """
import subprocess, sys, time
from channel import Parent
parent = Parent()
print("noise of a library")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
for request in parent.requests():
    if request.get("hang"):
        time.sleep(600)
    parent.answer(child=child.pid, **request)
"""


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_a_hung_peer_is_detected_and_its_children_are_killed(tmp_path: Path) -> None:
    import channel

    with channel.Crew(tmp_path / "logs", {"PYTHONPATH": str(BENCHMARKS)}) as crew:
        for _ in range(2):
            crew.start([sys.executable, "-c", PEER])
        answers = crew.request({"number": 1}, 60)
        assert [answer and answer["number"] for answer in answers] == [1, 1]
        children = [answer["child"] for answer in answers if answer]
        crew.peers[0].send({"hang": True})
        crew.peers[1].send({"number": 2})
        first, second = crew.answers(1.0)
        assert first is None
        assert second is not None
        assert all(map(_alive, children))
        assert "noise" in crew.peers[0].log.read_text()
    deadline = time.monotonic() + 10
    while any(map(_alive, children)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(map(_alive, children))


def test_the_works_model_decodes_and_encodes_to_the_same_ids(tmp_path: Path) -> None:
    import work

    from swarmgame.models.loading import Source, load_tokenizer

    made = work.Work.make(
        tmp_path, work.Game("multistage", peers=1, stages=3, questions=2, generations=2, tokens=4), rounds=2
    )
    assert work.Work.read(tmp_path) == made
    tokenizer = load_tokenizer(Source("file://", str(made.model)))
    ids = list(range(3, work.VOCABULARY))
    assert tokenizer(tokenizer.decode(ids)).input_ids == ids
    assert work.reward("a") != work.reward("b")


def _result(name: str) -> dict[str, Any] | None:
    seconds = {"median": 1.2, "count": 5}
    hung = {"whole": 0, "calls": 8, "hung": 8, "short": 0, "seconds": {"median": None}}
    whole = {"whole": 40, "calls": 40, "hung": 0, "short": 0, "seconds": {"median": 0.05}}
    if name != "exchange_vs_genrl":
        return None
    claims = [{"what": "a figure", "measured": 1, "at_most": 0, "met": False}]
    machine = {"cpu": "a processor", "cores": 2, "load": 0.1, "load_at_end": 0.2}
    exchanges = {
        "8": {
            "1 KiB": {"genrl": {**whole, "seconds": seconds}, "swarmgame": whole},
            "256 KiB": {"genrl": hung, "swarmgame": whole},
        }
    }
    return {
        "date": "2026-01-01T00:00:00Z",
        "claims": claims,
        "machine": machine,
        "exchanges": exchanges,
        "thousand": None,
    }


def test_the_pages_are_made_from_the_results_and_show_missed_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import table

    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    for path in (page, readme):
        path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr(table, "result", _result)
    monkeypatch.setattr(sys, "argv", ["table.py", "--check"])
    with pytest.raises(SystemExit, match=r"benchmarks\.md is not"):
        table.main()
    monkeypatch.setattr(sys, "argv", ["table.py"])
    table.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    small = (
        "| Exchange, 8 peers × 1 KiB | GenRL 0.3.0: 1.20 s, 40 of 40 complete | 50 ms, 40 of 40 complete | **24.0×** |"
    )
    large = "| Exchange, 8 peers × 256 KiB | GenRL 0.3.0: 0 of 8 complete, 8 hung | 50 ms, 40 of 40 complete |  |"
    assert small in text
    assert large in text
    assert "missed: a figure: 1, expected at most 0" in text
    assert small not in readme.read_text()
    assert large in readme.read_text()
    assert "Claims: 1, missed: 1." in readme.read_text()
    monkeypatch.setattr(sys, "argv", ["table.py", "--check"])
    table.main()


def test_the_readme_has_five_headline_figures_and_both_pages_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    import table

    assert sum(row.headline for row in table._rows()) == 5
    monkeypatch.setattr(sys, "argv", ["table.py", "--check"])
    table.main()


def test_the_table_of_attacks_is_current() -> None:
    import attack_table

    page = attack_table.PAGE.read_text(encoding="utf-8")
    assert attack_table.written(page) == page
    assert page.count("hostile answers") >= 1


def test_a_page_without_marks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table

    page = tmp_path / "benchmarks.md"
    page.write_text("no marks\n")
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["table.py"])
    with pytest.raises(SystemExit, match="there is no place for the table"):
        table.main()
