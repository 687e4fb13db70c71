"""The one error of this package: a manifest that cannot be used, said so that its author can mend it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a manifest.

    Args:
        path: dotted, from the top of the manifest: `spec.game.trainer.with.generations`.
        got: the value found there, or None where the key itself is the problem.
        expected: what would have been right, as the end of a sentence.
    """

    path: str
    got: object
    expected: str

    def __str__(self) -> str:
        shown = repr(self.got)
        if len(shown) > 200:
            shown = f"{shown[:197]}..."
        return f"{self.path} is {shown}; expected {self.expected}"


class InvalidManifest(Exception):
    """A manifest that cannot be used; carries every problem found, not only the first."""

    def __init__(
        self,
        path: str = "",
        got: object = None,
        expected: str = "",
        *,
        source: str = "",
        problems: tuple[Problem, ...] = (),
    ) -> None:
        self.problems = problems or (Problem(path, got, expected),)
        self.source = source
        super().__init__(path, got, expected)

    def at(self, source: str) -> InvalidManifest:
        """The same error, naming the file it was found in."""
        return InvalidManifest(source=source, problems=self.problems)

    def __str__(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        return "\n".join(f"{prefix}{problem}" for problem in self.problems)
