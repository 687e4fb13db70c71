"""Write the table of docs/benchmarks.md and the headline figures of README.md from `results/*.json`.

The text between the marks `benchmarks:begin` and `benchmarks:end` of each page is replaced. The table has every
result, missed claims included; the README has five rows of it. `--check` fails when a page is not current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from attack_table import influence_rows
from harness import result

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
GAMES = {
    "swarm": "Swarm round: 4 peers, 8 questions × 8 completions × 32 tokens, hivemind",
    "multistage": "multistage_math round: 1 peer, 3 stages, 4 questions × 4 completions × 64 tokens",
}
EXCHANGES = (
    ("2", "32 KiB"),
    ("4", "32 KiB"),
    ("8", "1 KiB"),
    ("8", "16 KiB"),
    ("8", "32 KiB"),
    ("8", "256 KiB"),
    ("8", "1 MiB"),
    ("8", "10 MiB"),
)


class Row(NamedTuple):
    """One row of the table, as text."""

    what: str
    other: str
    ours: str
    ratio: str
    headline: bool = False
    """Whether README.md shows it."""


NAMES = (
    "round_vs_genrl",
    "exchange_vs_genrl",
    "generation",
    "generation_cuda",
    "training_cuda",
    "step_vs_trl",
    "step_vs_trl_cuda",
    "exchange_scaling",
    "operator_scale",
    "operator_turns",
    "time_to_first_round",
    "rollout_archive",
    "smollm",
    "influence",
)


def table() -> str:
    """Return the table of all results, the conditions of each, and the missed claims."""
    results = _results()
    missed = [f"- missed: {claim['what']}: {_bound(claim)}" for claim in _claims(results) if not claim["met"]]
    note = "Medians. “Complete” counts the calls, one per peer, that returned every body."
    conditions = [f"- {line}" for line in _conditions(results)]
    return "\n".join([*_lines(_rows()), "", note, "", *conditions, *(["", *missed] if missed else [])])


def headlines() -> str:
    """Return the rows for README.md, and how many claims are missed in all."""
    claims = list(_claims(_results()))
    missed = sum(1 for claim in claims if not claim["met"])
    rows = [row for row in _rows() if row.headline]
    return "\n".join([*_lines(rows), "", f"Claims: {len(claims)}, missed: {missed}."])


def _rows() -> list[Row]:
    return [
        *_rounds(result("round_vs_genrl")),
        *_exchanges(result("exchange_vs_genrl")),
        *_generation(result("generation")),
        *_on_a_device(result("generation_cuda")),
        *_training(result("training_cuda")),
        *_step(result("step_vs_trl")),
        *_step(result("step_vs_trl_cuda")),
        *_scaling(result("exchange_scaling")),
        *_operator(result("operator_scale")),
        *_operator_turns(result("operator_turns")),
        *_first_round(result("time_to_first_round")),
        *_archive(result("rollout_archive")),
        *_images(result("image_sizes")),
        *_language_model(result("smollm")),
        *_influence(result("influence")),
    ]


def _lines(rows: Iterable[Row]) -> list[str]:
    head = ["| | compared with | SwarmGame | |", "|---|---|---|---|"]
    return head + [f"| {row.what} | {row.other} | {row.ours} | {row.ratio} |" for row in rows]


def _results() -> dict[str, Mapping[str, Any]]:
    return {name: found for name in NAMES if (found := result(name)) is not None}


def _claims(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for found in results.values():
        yield from found.get("claims", [])


def _rounds(found: Mapping[str, Any] | None) -> Iterator[Row]:
    for game, figures in (found or {}).get("games", {}).items():
        other, ours = figures["genrl"]["seconds"]["median"], figures["swarmgame"]["seconds"]["median"]
        ratio = _times(other, ours)
        yield Row(GAMES[game], f"GenRL 0.3.0: {_seconds(other)}", _seconds(ours), ratio, game == "swarm")


def _exchanges(found: Mapping[str, Any] | None) -> Iterator[Row]:
    for peers, size in EXCHANGES:
        figures = (found or {}).get("exchanges", {}).get(peers, {}).get(size)
        if figures is None:
            continue
        other, ours = figures["genrl"]["seconds"]["median"], figures["swarmgame"]["seconds"]["median"]
        yield Row(
            f"Exchange, {peers} peers × {size}",
            f"GenRL 0.3.0: {_calls(figures['genrl'])}",
            _calls(figures["swarmgame"]),
            _times(other, ours) if other and ours else "",
            (peers, size) == ("8", "256 KiB"),
        )
    many = (found or {}).get("thousand")
    if many:
        hung = f"{many['hung']} of {many['calls']:,} calls hung, {_seconds(many['seconds']['median'])}"
        yield Row(f"Exchange, {many['peers']} peers × {many['size']}, {many['exchanges']:,} times", "", hung, "")


def _generation(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    seconds = found["fixed"]["seconds"]
    ours = seconds["ours"]["median"]
    for name, what in (
        ("sequential", "8 calls of `generate`, as GenRL"),
        ("num_return_sequences", "one `generate`, `num_return_sequences=8`"),
    ):
        other = seconds[name]["median"]
        yield Row(
            "Generation, 8 prompts × 8 completions × 32 tokens",
            f"{what}: {_seconds(other)}",
            _seconds(ours),
            _times(other, ours),
        )


def _on_a_device(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    device, size = (
        found["machine"]["device"].removeprefix("NVIDIA "),
        f"{found['shape']['parameters'] / 1e6:.0f} M parameters, bfloat16",
    )
    for name in ("usual", "wide", "stream", "uneven"):
        figures = found[name]
        tokens = f"100 to {figures['new_tokens']:,}" if name == "uneven" else f"{figures['new_tokens']:,}"
        what = f"Generation on one {device}, {figures['rows']} × {tokens} tokens, {size}"
        ours, other = (
            figures["seconds"]["ours"]["median"],
            figures["seconds"].get("num_return_sequences", {}).get("median"),
        )
        speed = f"{_seconds(ours)}, {figures['tokens_per_second']:,} tokens/s"
        compared = f"one `generate`: {_seconds(other)}" if other else ""
        yield Row(what, compared, speed, _times(other, ours) if other else "", name == "usual")


def _training(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    device, work, arms = found["machine"]["device"].removeprefix("NVIDIA "), found["work"], found["arms"]
    padded, packed = found["seconds"]["padded"]["median"], found["seconds"]["packed"]["median"]
    tokens = f"{work['prompts']} × {work['completions']} × {work['new_tokens']} tokens"
    what = f"Training on one {device}, {tokens}, the same model"
    share = f"{_seconds(packed)}, {arms['packed']['share_of_matrix_rate']:.0%} of the card's matrix rate"
    yield Row(what, f"the padded pass: {_seconds(padded)}", share, _times(padded, packed))


def _step(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is not None:
        other, ours = found["seconds"]["trl"]["median"], found["seconds"]["ours"]["median"]
        work, device = found["work"], found["machine"].get("device")
        what = (
            f"Training step{' on one ' + device.removeprefix('NVIDIA ') if device else ''}, "
            f"{work['prompts']} prompts × {work['completions']} completions × {work['new_tokens']} tokens"
        )
        compared = f"TRL {found['machine']['versions']['trl']}: {_seconds(other)}"
        yield Row(what, compared, _seconds(ours), _times(other, ours), not device)


def _scaling(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    fewest, most = found["rows"][0]["peers"], found["rows"][-1]["peers"]
    growth = ", ".join(f"{name.replace('_', ' ')} {value:.2f}×" for name, value in found["growth"].items())
    yield Row(f"Cost per peer and round as the swarm grows from {fewest} to {most} peers, pull mode", "", growth, "")


def _first_round(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is not None:
        what = f"`swarmgame run` to the end of round 0: quickstart, {found['shape']['peers']} peers, warm caches"
        yield Row(what, "", _seconds(found["seconds"]["median"]), "")


def _archive(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is not None:
        share, kept = (claim["measured"] for claim in found["claims"])
        what = f"Archive of rollouts and hash of the weights, quickstart, {found['shape']['peers']} peers"
        yield Row(what, "", f"{share:.1%} of a round, {kept:.0f} MB kept after an hour", "")


def _operator(found: Mapping[str, Any] | None) -> Iterator[Row]:
    for index, size in enumerate((found or {}).get("sizes", ())):
        cold, growth, objects = size["cold_start"], size["growth"], size["objects"]
        memory = max(cold["resident_mib_at_most"], growth["resident_mib_at_most"])
        writes = max(size["idle"]["writes_a_second"], size["idle_after_it"]["writes_a_second"])
        pace = f"{(found or {})['pace_a_second']:.0f} a second"
        what = f"Operator, {objects['swarmgames']:,} games at {pace}, {objects['pods']:,} pods, API server here too"
        wait = f"apply → Job p99 {_seconds(growth['apply_to_job_seconds']['p99'])}"
        start = f"cold start {_seconds(cold['seconds'])}, {memory:.0f} MiB"
        yield Row(what, "", f"{wait}, {start}, idle {writes:.1f} writes/s", "", index == 0)


def _operator_turns(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is not None:
        work, arms = found["work"], found["arms"]
        what = f"Operator, before kopf ({work['other']}) and with it, in turn: {work['games']} games, "
        what += f"{work['pace_a_second']:.0f} a second: apply → Job p99, processor time a game"
        other, ours = (
            f"{_seconds(arms[name]['p99']['median'])}, {arms[name]['processor_ms_a_game']['median']:.0f} ms"
            for name in ("other", "this")
        )
        yield Row(what, other, ours, "")


def _images(found: Mapping[str, Any] | None) -> Iterator[Row]:
    images = (found or {}).get("images", {})
    if images:
        figures = ", ".join(
            f"{name} {each['bytes'] / 1e6:,.0f} MB (code {each['code_bytes'] / 1e6:.1f})"
            for name, each in images.items()
        )
        yield Row("Images, uncompressed (rebuilt after a change of the code)", "", figures, "")


def _language_model(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is not None:
        game, control = found["game"], found["control"]
        shape = f"2 peers on two cores, {game['rounds']} rounds"
        what = f"SmolLM2-135M, {shape}: mean of {game['questions']} held-out questions"
        ours = (
            f"{game['before']:.3f} → {game['after']:.3f} in {game['seconds'] / 60:.0f} minutes, "
            f"change {game['change']:+.3f} ± {game['standard_error']:.3f}"
        )
        yield Row(what, f"shuffled rewards: {control['change']:+.3f} ± {control['standard_error']:.3f}", ours, "")


def _influence(found: Mapping[str, Any] | None) -> Iterator[Row]:
    for attack, what, other, ours in influence_rows(found):
        yield Row(f"{attack}: {what}", f"without the bounds: {other}", ours, "")


def _calls(figures: Mapping[str, Any]) -> str:
    median, complete = figures["seconds"]["median"], f"{figures['whole']} of {figures['calls']} complete"
    hung = f", {figures['hung']} hung" if figures["hung"] else ""
    return f"{_seconds(median)}, {complete}{hung}" if median else f"{complete}{hung}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _times(other: float, ours: float) -> str:
    return f"**{other / ours:.1f}×**"


def _bound(claim: Mapping[str, Any]) -> str:
    return f"{claim['measured']}, expected " + " and ".join(
        f"{name.replace('_', ' ')} {claim[name]}" for name in ("at_least", "at_most") if name in claim
    )


def _conditions(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, found in results.items():
        machine = found.get("machine")
        if machine is None:
            continue
        device = f"{machine['device']}, " if "device" in machine else ""
        under = (
            f"{device}{machine['cpu']}, {machine['cores']} cores, load {machine['load']} to {machine['load_at_end']}"
        )
        yield f"`{name}`: {found['date'][:10]}, {under}."


def _replaced(page: Path, made: str) -> str:
    """Return the page's text with what is between its marks replaced.

    Raises:
        SystemExit: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{page.name}: there is no place for the table; put {BEGIN} and {END} on lines of their own")
    return f"{text.split(BEGIN)[0]}{BEGIN}\n{made}\n{END}{text.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not current")
    options = parser.parse_args()
    for page, made in ((PAGE, table()), (README, headlines())):
        text = _replaced(page, made)
        if not options.check:
            page.write_text(text, encoding="utf-8")
        elif text != page.read_text(encoding="utf-8"):
            sys.exit(f"{page.name} is not what benchmarks/results say; run python benchmarks/table.py")


if __name__ == "__main__":
    main()
