"""Templates of prompts: `{NAME}` stands for the column of that name.

One pass fills a template, so braces in a value stay as they are. A name that is no column is an error, since the
template would ask the same words of every row; so is the column of the answer, unless the game asks for it. Braces
around anything else than a name are text (`{"a": 1}`), and so is another name in double braces (`{{x}}` is `{x}`) or
behind a LaTeX command (`\\boxed{answer}`, `x^{2}`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping

from swarmgame.errors import InvalidManifest

_MOST_COLUMNS = 20


class Template:
    """A template whose names are checked.

    Args:
        text: the template.
        columns: names that it may use.
        answer: name of the answer's column, which it may not use; empty where it may use all.
        path: of the option in the manifest, for messages.

    Raises:
        InvalidManifest: a name is no column, or the answer's, or there is no name at all.
    """

    def __init__(self, text: str, columns: Collection[str], *, answer: str = "", path: str) -> None:
        self._known = frozenset(columns) - {answer}
        self._parts = tuple(_parts(text, self._known))
        self.names = tuple(dict.fromkeys(name for name, _ in self._parts if name))
        unknown = next((name for name in self.names if name not in self._known), None)
        if unknown is not None and unknown == answer:
            expected = (
                f"no {{{answer}}}, which would show the policy the answer. Write {{{{{answer}}}}} for the word in "
                "braces, or set spec.game.data.with.answerInPrompt: true"
            )
            raise InvalidManifest(path, text, expected)
        if unknown is not None:
            expected = (
                f"no {{{unknown}}}, which is no column{_suggestion(unknown, self._known)}; there are "
                f"{_listed(self._known)}. Write {{{{{unknown}}}}} for the word in braces"
            )
            raise InvalidManifest(path, text, expected)
        if not self.names:
            expected = f"a text with a column in braces, such as {{question}}; there are {_listed(self._known)}"
            raise InvalidManifest(path, text, expected)

    def fill(self, value: Callable[[str], str] | Mapping[str, str]) -> str:
        """Return the text with a value for each name."""
        found = value.__getitem__ if isinstance(value, Mapping) else value
        return "".join(found(name) if name else text for name, text in self._parts)


def _parts(text: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a template, in order: a name and nothing, or no name and a text."""
    columns = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    pattern = re.compile(
        rf"\{{(?P<column>{columns or '(?!)'})\}}|\{{\{{(?P<word>\w+)\}}\}}|\{{(?P<unknown>\w+)\}}"
        rf"|(?P<latex>(?:\\[A-Za-z]+|[\^_])(?:\{{(?!(?:{columns or '(?!)'})\}})[^{{}}]*\}})+)"
    )
    end = 0
    for found in pattern.finditer(text):
        yield "", text[end : found.start()]
        if found["word"] in known:
            yield from (("", "{"), (found["word"], ""), ("", "}"))
        elif found["word"] is not None:
            yield "", f"{{{found['word']}}}"
        elif found["latex"] is not None:
            yield "", found["latex"]
        else:
            yield found["column"] or found["unknown"], ""
        end = found.end()
    yield "", text[end:]


def _listed(columns: Collection[str]) -> str:
    named = [f"{{{name}}}" for name in sorted(columns)]
    more = len(named) - _MOST_COLUMNS
    return ", ".join(named[:_MOST_COLUMNS]) + (f" and {more} more" if more > 0 else "")


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {{{close[0]}}}?)" if close else ""
