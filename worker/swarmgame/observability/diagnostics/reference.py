"""Print `docs/reference/warnings.md`: `python -m swarmgame.observability.diagnostics.reference`."""

from __future__ import annotations

from swarmgame.observability.diagnostics.file_rules import OF_FILES
from swarmgame.observability.diagnostics.outcomes import OUTCOMES
from swarmgame.observability.diagnostics.rules import DROPPED, NOTHING_LEARNED, RULES, SCORING_FAILED
from swarmgame.observability.diagnostics.trainer_rules import OF_TRAINER
from swarmgame.rewards.failures import CURES, DEFAULT_CURE

PAGE = """\
# Warnings

This page is made by `python -m swarmgame.observability.diagnostics.reference > docs/reference/warnings.md`.

A run that goes on but does not do what was meant warns once for each cause: on the terminal of `swarmgame run` and
`join`, in the peer's log, in `/status` (`warnings`), in `peers/N/warnings.jsonl`, and in the report, where each has its
count. The metric `swarmgame_worker_warnings_total` counts them by code.

A warning does not end a run and does not change its exit code. A run whose policy was never updated ends with 0 and the
warning `nothing-learned`: every round was played, and a control (`update: none`) or a game that is solved looks the
same. Symptoms that are no warnings, and what ends a run, are in [the guide](../guide/troubleshooting.md).

| warning | when | likely cause | what to do |
|---|---|---|---|
{rules}
| `{dropped}` | Messages or groups of other peers are refused for one reason in several rounds in a row. | \
See the outcomes below. | See the outcomes below. |
| `{scoring_failed}` | A call of the reward function failed: the first of each exception and line, with the traceback \
of the function. | The function does not expect this answer. | See the failed calls below. |

## Outcomes

What became of messages and groups of other peers: `outcomes` in `metrics.jsonl`, the metric
`swarmgame_worker_contributions_total`. The last column: after so many rounds in a row with at least one, a peer warns.

| outcome | what it counts | likely cause | what to do | rounds |
|---|---|---|---|---|
{outcomes}

## Failed calls of a reward function

A failed call scores 0. A round in which every call failed ends the run with 78 and the first error; answers of other
peers alone never do. Where calls were not made after three that broke a limit, and the function has worked before, two
such rounds in a row do: the answers may be what takes too long. Rewards that are not one number per rollout (finite, or
NaN for one that could not be scored) end the run too, and so does a round in which no rollout was scored.

| failure | what to do |
|---|---|
{cures}
| any other exception | {default_cure}. |
"""


def page() -> str:
    """Return the page."""
    return PAGE.format(
        rules="\n".join(
            f"| `{rule.code}` | {rule.when}. | {rule.cause}. | {rule.cure}. |"
            for rule in (*RULES, NOTHING_LEARNED, *OF_TRAINER.values(), *OF_FILES.values())
        ),
        dropped=DROPPED,
        scoring_failed=SCORING_FAILED,
        outcomes="\n".join(
            f"| `{name}` | {outcome.meaning}. | {_sentence(outcome.cause)} | {_sentence(outcome.cure)} | "
            f"{outcome.warned_after or ''} |"
            for name, outcome in OUTCOMES.items()
        ),
        cures="\n".join(f"| {kind} | {cure}. |" for kind, cure in CURES.items()),
        default_cure=DEFAULT_CURE,
    )


def _sentence(text: str) -> str:
    return f"{text}." if text else ""


if __name__ == "__main__":
    print(page(), end="")
