"""Warnings of files that a game does without: their writer gives the text, here are cause and cure."""

from __future__ import annotations

from swarmgame.observability.diagnostics.rules import Rule

OF_FILES = {
    rule.code: rule
    for rule in (
        Rule(
            "archive-off",
            "The archive of rollouts cannot be written",
            "The disk is full, or the folder is not writable",
            "Free space or make the folder writable, then start the peer again: rounds played meanwhile are not "
            "archived. Or set spec.observability.rollouts.enabled to false",
            lambda records, facts: None,
        ),
        Rule(
            "tracker-off",
            "An experiment tracker fails",
            "The disk is full, or the tracker's server does not answer",
            "Start the peer again once the cause is gone; metrics.jsonl has every number",
            lambda records, facts: None,
        ),
        Rule(
            "export-failed",
            "An export during the game fails; its count is that of such exports",
            "The disk is full, or the folder is not writable",
            "Free space; `swarmgame export` makes an export from a checkpoint at any time",
            lambda records, facts: None,
        ),
    )
}
"""By code."""
