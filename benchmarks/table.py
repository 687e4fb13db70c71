"""The comparison table of README.md, made from `results/*.json`, between the marks `benchmarks:begin` and
`benchmarks:end`.

Nothing is typed by hand and nothing is left out: a claim that was missed stands there as missed. `--check` fails when
the table is not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness import result

README = Path(__file__).parents[1] / "README.md"
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
    """One line of the table, as text."""

    what: str
    other: str
    ours: str
    ratio: str


def table() -> str:
    """The table and, below it, under what it was measured."""
    rows = [
        *_rounds(result("round_vs_genrl")),
        *_exchanges(result("exchange_vs_genrl")),
        *_generation(result("generation")),
    ]
    rows += [
        *_on_a_device(result("generation_cuda")),
        *_training(result("training_cuda")),
        *_step(result("step_vs_trl")),
        *_scaling(result("exchange_scaling")),
        *_operator(result("operator_scale")),
    ]
    rows += _images(result("image_sizes"))
    lines = ["| | the other | SwarmGame | |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    names = ("round_vs_genrl", "exchange_vs_genrl", "generation", "generation_cuda", "training_cuda", "step_vs_trl")
    names += ("exchange_scaling", "operator_scale")
    results = {name: found for name in names if (found := result(name)) is not None}
    missed = [
        f"- missed: {claim['what']}: {_bound(claim)}"
        for found in results.values()
        for claim in found.get("claims", [])
        if not claim["met"]
    ]
    notes = [
        "",
        "Medians; “whole” counts the calls, one a peer, that returned with every body. " + " ".join(_measured(results)),
    ]
    return "\n".join([*lines, *notes, *(["", *missed] if missed else [])])


def _rounds(found: Mapping[str, Any] | None) -> Iterator[Row]:
    for game, figures in (found or {}).get("games", {}).items():
        other, ours = figures["genrl"]["seconds"]["median"], figures["swarmgame"]["seconds"]["median"]
        yield Row(GAMES[game], f"GenRL 0.3.0: {_seconds(other)}", _seconds(ours), _times(other, ours))


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
        yield Row(
            what, f"one `generate`: {_seconds(other)}" if other else "", speed, _times(other, ours) if other else ""
        )


def _training(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    device, work, arms = found["machine"]["device"].removeprefix("NVIDIA "), found["work"], found["arms"]
    padded, packed = found["seconds"]["padded"]["median"], found["seconds"]["packed"]["median"]
    what = f"Training on one {device}, {work['prompts']} × {work['completions']} × {work['new_tokens']} tokens, the same model"
    share = f"{_seconds(packed)}, {arms['packed']['share_of_matrix_rate']:.0%} of the card's matrix rate"
    yield Row(what, f"our padded pass: {_seconds(padded)}", share, _times(padded, packed))


def _step(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is not None:
        other, ours = found["seconds"]["trl"]["median"], found["seconds"]["ours"]["median"]
        what = "Training step, 8 prompts × 8 completions × 32 tokens"
        yield Row(
            what, f"TRL {found['machine']['versions']['trl']}: {_seconds(other)}", _seconds(ours), _times(other, ours)
        )


def _scaling(found: Mapping[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    fewest, most = found["rows"][0]["peers"], found["rows"][-1]["peers"]
    growth = ", ".join(f"{name.replace('_', ' ')} {value:.2f}×" for name, value in found["growth"].items())
    yield Row(f"Cost a peer and round as the swarm grows from {fewest} to {most} peers, pull mode", "", growth, "")


def _operator(found: Mapping[str, Any] | None) -> Iterator[Row]:
    for size in (found or {}).get("sizes", ()):
        cold, memory = (
            size["cold_start"],
            max(size["cold_start"]["resident_mib_at_most"], size["growth"]["resident_mib_at_most"]),
        )
        writes = max(size["idle"]["writes_a_second"], size["idle_after_it"]["writes_a_second"])
        wait = size["growth"]["apply_to_job_seconds"]["p99"]
        figures = f"apply → Job p99 {_seconds(wait)}, cold start {_seconds(cold['seconds'])}, {memory:.0f} MiB, idle {writes:.1f} writes a second"
        yield Row(
            f"Operator, {size['objects']['swarmgames']:,} games, {size['objects']['pods']:,} pods, API server and all on two cores",
            "",
            figures,
            "",
        )


def _images(found: Mapping[str, Any] | None) -> Iterator[Row]:
    images = (found or {}).get("images", {})
    if images:
        figures = ", ".join(
            f"{name} {each['bytes'] / 1e6:,.0f} MB (code {each['code_bytes'] / 1e6:.1f})"
            for name, each in images.items()
        )
        yield Row("Images, uncompressed; of it what a change of the code makes anew", "", figures, "")


def _calls(figures: Mapping[str, Any]) -> str:
    median, fate = figures["seconds"]["median"], f"{figures['whole']} of {figures['calls']} whole"
    hung = f", {figures['hung']} hung" if figures["hung"] else ""
    return f"{_seconds(median)}, {fate}{hung}" if median else f"{fate}{hung}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _times(other: float, ours: float) -> str:
    return f"**{other / ours:.1f}×**"


def _bound(claim: Mapping[str, Any]) -> str:
    return f"{claim['measured']}, expected " + " and ".join(
        f"{name.replace('_', ' ')} {claim[name]}" for name in ("at_least", "at_most") if name in claim
    )


def _measured(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, found in results.items():
        machine = found.get("machine")
        if machine is None:
            continue
        device = f"{machine['device']}, " if "device" in machine else ""
        under = (
            f"{device}{machine['cpu']}, {machine['cores']} cores, load {machine['load']} to {machine['load_at_end']}"
        )
        yield f"`{name}`: {found['date'][:10]}, {under}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when README.md is not current")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{README.name}: there is no place for the table; put {BEGIN} and {END} on lines of their own")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if options.check:
        sys.exit(
            0
            if made == text
            else f"{README.name}: the table is not what benchmarks/results say; run python benchmarks/table.py"
        )
    README.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
