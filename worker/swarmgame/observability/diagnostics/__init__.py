"""Diagnostics: what a person should know about a run that goes on but does not do what was meant.

`records` reduces a round to what the rules read, `rules` and `outcomes` decide and explain, `log` keeps each warning
once, `observer` feeds them from the loop, `files` writes and reads `warnings.jsonl`, `reference` makes the page.
"""
