"""The report as one HTML file, with pictures and tables inside.

Invariant: names, manifests and whatever other peers sent are escaped; the page has no script and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from swarmgame.observability.text import counted, duration
from swarmgame.report.data import RunData, Summary
from swarmgame.report.drawing import Plot
from swarmgame.report.tables import (
    author_rows,
    metric_rows,
    option_rows,
    outcome_rows,
    peer_rows,
    result_rows,
    time_rows,
)


def render(run: RunData, summary: Summary, plots: Sequence[Plot], *, version: str, rollouts: Markup) -> str:
    """Return the page.

    Args:
        rollouts: the section that shows some, already escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("swarmgame.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "signed": _signed,
        "plus_minus": _plus_minus,
        "short": _short,
        "share": _share,
        "duration": duration,
        "bytes": _bytes,
        "plural": counted,
        "clear": _clear,
    }
    return environment.get_template("template.html").render(
        summary=summary,
        held_out=summary.held_out,
        plots=plots,
        warnings=run.warnings,
        results=result_rows(run, summary.held_out),
        peers=peer_rows(run),
        times=time_rows(run),
        metrics=metric_rows(run),
        outcomes=outcome_rows(run),
        authors=author_rows(run),
        counters=sorted(run.counters().items()),
        options=option_rows(run.options),
        version=version,
        rollouts=rollouts,
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.3f}"


def _short(value: float) -> str:
    """Return a number of any size with four digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _clear(difference: float | None, error: float | None) -> str:
    """Return a class for a change: `up` or `down` where it is at least two standard errors, else nothing."""
    if difference is None or error is None or abs(difference) < 2 * error:
        return ""
    return "up" if difference > 0 else "down"
