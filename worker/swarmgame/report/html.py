"""The report as one HTML file, with pictures and tables inside.

Invariant: names and manifests are escaped; the page has no script and loads nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from swarmgame.report.data import RunData, Summary
from swarmgame.report.plots import Plot


def render(
    run: RunData, summary: Summary, plots: Sequence[Plot], *, manifest: str, version: str, rollouts: Markup
) -> str:
    """Return the page.

    Args:
        manifest: the resolved manifest, as text; empty when it is not known.
        rollouts: the section that shows some, already escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("swarmgame.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = lambda data: "data:image/png;base64," + base64.b64encode(data).decode()
    environment.filters["figure"] = _figure
    environment.filters["duration"] = _duration
    environment.filters["bytes"] = _bytes
    return environment.get_template("template.html").render(
        summary=summary,
        plots=plots,
        warnings=run.warnings,
        peers=run.peer_rows(),
        outcomes=sorted(run.totals("outcomes").items(), key=lambda pair: -pair[1]),
        counters=sorted(run.counters().items()),
        manifest=manifest,
        version=version,
        rollouts=rollouts,
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
