"""The letter that an answer chooses, among the letters of its question.

A letter stands by itself: not in a word, an initialism (`U.S.`), a contraction (`don't`) or a name (`C++`). The last
one in the highest of three ranks is chosen: named as the answer (`the answer is C because …`), marked by brackets or
punctuation (`(C)`, `C.`, `C: Rome`), or within a sentence. A lower-case letter must be named or marked, so that the
article in "because a dog barks" is no choice. All functions take time proportional to the text's length.
"""

from __future__ import annotations

import re
import unicodedata
from string import ascii_uppercase

from swarmgame.rewards.numbers_in_text import boxed

ANY = frozenset(ascii_uppercase)
_WORD = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
"""Letters of the scripts that put a space between words, and digits: Latin, Greek, Cyrillic."""
_LETTER = re.compile(rf"(?<![{_WORD}])[A-Za-z](?![{_WORD}])")
_PART_OF_A_NAME = re.compile(r"[A-Za-z]['’.&-]\Z|[#@]\Z"), re.compile(r"['’&-][A-Za-z]|\.\w|[+#]")
_NAMED = re.compile(
    r"\b(?:answer|option|choice|choose|select|pick)s?(?:\s{1,3}(?:is|are|be|was|would\sbe))?[\W_]{0,8}\Z", re.I
)
_BRACKETS = frozenset("([{*_\"“'‘#=:>")
_AFTER = re.compile(r"[)\]}*_\"”'’.:,;!?<\n]|\s*\Z")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_HIGHEST = 4
_LISTED = re.compile(r"(?:^|[\s(\[])([A-Za-z])[).:\]](?=[\s\w])")


def chosen_letter(text: str, letters: frozenset[str] = ANY) -> str | None:
    """Return the letter that a text chooses, in upper case; None when there is none.

    Args:
        letters: the letters that the question has, in upper case. Any other one is no choice.
    """
    text = _COMMAND.sub(" ", unicodedata.normalize("NFKC", boxed(text)))
    best, chosen = 0, None
    for found in reversed(list(_LETTER.finditer(text))):
        if found[0].upper() not in letters:
            continue
        rank = _rank(text, *found.span())
        if rank > best:
            best, chosen = rank, found[0].upper()
        if best == _HIGHEST:
            break
    return chosen


def listed_letters(question: str) -> frozenset[str]:
    """Return the letters of the choices that a question lists (`A) Paris  B) Rome`); all letters where it lists fewer
    than two, or does not begin with A.
    """
    found = {letter.upper() for letter in _LISTED.findall(question)}
    count = next((count for count, letter in enumerate(ascii_uppercase) if letter not in found), len(ascii_uppercase))
    return frozenset(ascii_uppercase[:count]) if count >= 2 else ANY


def _rank(text: str, start: int, end: int) -> int:
    """Return how clearly a letter is a choice: 4 when it is named, 3 when it is marked, 2 within a sentence, 1 for the
    pronoun I, 0 for no choice.
    """
    letter, before, after = text[start:end], text[max(0, start - 40) : start], text[end : end + 40]
    if _PART_OF_A_NAME[0].search(before) or _PART_OF_A_NAME[1].match(after):
        return 0
    opened, closed = before[-1:] in _BRACKETS, _AFTER.match(after) is not None
    named = _NAMED.search(before) is not None
    if letter.islower():
        begins_line = not before.rpartition("\n")[2].strip() and ("\n" in before or start < 40)
        article = letter in "ai" and not (opened or begins_line)
        return 0 if not closed else _HIGHEST if named else 0 if article else 3
    if named:
        return _HIGHEST
    if letter == "I" and not (opened and closed):
        return 1
    return 3 if opened or closed else 2
