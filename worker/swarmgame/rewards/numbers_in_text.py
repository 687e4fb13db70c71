"""Numbers in the text of an answer: the last one, as an exact fraction. Nothing is computed.

`last_number` reads an answer, `known_number` the answer of the data, `plain_number` a text that is a decimal number and
nothing else. docs/reference/answers.md lists what is read as which number. All functions take time proportional to the
text's length, for any text. Invariant: a value depends on the text alone, and has no rounding.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

LONGEST = 1000
"""Most digits of a number, and largest exponent of ten."""

_TOKEN = re.compile(r"(?:\d++(?:\.\d++)*+|(?<![\w.])\.\d++)(?:[eE][-+]?\d++)?+")
_PLAIN = re.compile(r"[-+]?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?", re.ASCII)
_FRACTION = re.compile(r"(?:(\d)\s*)?\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", re.ASCII)
_BOX = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_POWER = re.compile(r"\s*(?:\^|\*\*)\s*\{?\s*[-+]?")
_RAISED = re.compile(r"(?:\^|(?<=[A-Za-z0-9)])\*\*)\s?\{?\s?[-+]?\Z", re.ASCII)
_NAMED = re.compile(r"(?:[A-Za-z]|(?<=[A-Za-z})])_\{?)\Z", re.ASCII)
_TIMES = re.compile(r"\s*[×xX*]\s*")
_OVER = re.compile(r" ?/ ?")
_GROUPING = frozenset(",_ '")
_CURRENCY = "$€£¥₹"
_LIST_ONLY = re.compile(r"[\s,;:/.'_()\[\]{}+*^%$€£¥₹-]*")
_DASHES = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{MINUS SIGN}\N{SMALL HYPHEN-MINUS}"
_CHARACTERS = {
    **dict.fromkeys(map(ord, f"{_DASHES}\N{FULLWIDTH HYPHEN-MINUS}"), "-"),
    **dict.fromkeys(map(ord, "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}\N{FIGURE SPACE}"), " "),
    **dict.fromkeys(map(ord, "\N{FRACTION SLASH}\N{DIVISION SLASH}"), "/"),
    **dict.fromkeys(map(ord, "\N{DOT OPERATOR}\N{BULLET OPERATOR}\N{MIDDLE DOT}"), "×"),
    ord("\N{ARABIC DECIMAL SEPARATOR}"): ".",
    ord("\N{FULLWIDTH FULL STOP}"): ".",
    ord("\N{ARABIC THOUSANDS SEPARATOR}"): ",",
    ord("\N{RIGHT SINGLE QUOTATION MARK}"): "'",
    ord("\N{FULLWIDTH PLUS SIGN}"): "+",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED_CHARACTERS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LATEX = (
    (re.compile(r"\\!|\{(?=,\})|(?<=\{,)\}"), ""),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[A-Za-z]+"), " "),
)


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text, or in its last complete `\\boxed{…}`; None when there is none that can be read.

    The last number decides: where it cannot be read (`1/0`, `2^8`, `1.2.3`), no earlier one is taken.
    """
    found = _read(_ascii(boxed(text)))
    return found[0] if found is not None else None


def known_number(text: str) -> Fraction | None:
    """Return the number in an answer of the data, as `last_number` does; None also where the text is only a list of
    numbers (`3,14`, `2024-10-05`), since none of them is the answer.
    """
    plain = _ascii(boxed(text))
    found = _read(plain)
    if found is None:
        return None
    value, start, end = found
    rest = f"{plain[:start]} {plain[end:]}"
    return None if _TOKEN.search(rest) and _LIST_ONLY.fullmatch(_TOKEN.sub("", rest)) else value


def plain_number(text: str) -> Fraction | None:
    """Return the value of a text that is a decimal number and nothing else; None for any other, `007` and `1,000`
    among them, which may be codes or lists.
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    return Fraction(text) if len(text) <= LONGEST and _PLAIN.fullmatch(text) else None


def boxed(text: str) -> str:
    """Return the content of the last complete `\\boxed{…}`, the inner one of nested boxes; the text itself where there
    is none.
    """
    if "\\boxed" not in text:
        return text
    opened: list[int] = []  # where the content of an open brace's box begins; -1 for any other brace
    last = (-1, -1)
    for mark in _BOX.finditer(text):
        if mark[0] == "}":
            start = opened.pop() if opened else -1
            last = max(last, (start, mark.start()))
        elif mark[0] == "{" or mark[0].startswith("\\boxed"):
            opened.append(mark.end() if mark[0] != "{" else -1)
    return text[last[0] : last[1]] if last[0] >= 0 else text


def _ascii(text: str) -> str:
    """Return a text with ASCII digits, signs and fractions, and without LaTeX commands."""
    if not text.isascii():
        text = _RAISED_CHARACTERS.sub(lambda found: f"^{found[0].translate(_SUPERSCRIPTS)}", text)
        text = text.translate(_CHARACTERS)
        text = text.translate({ord(each): _character(each) for each in set(text) if not each.isascii()})
    if "\\" in text or "{,}" in text:
        text = _FRACTION.sub(_written_fraction, text)
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text


def _character(character: str) -> str:
    """Return an ASCII form of a character that is a digit or a fraction; any other as it is."""
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).startswith(
        "<fraction>"
    ):  # ½ → 1⁄2; the space parts it from a whole number before it
        return " " + unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")
    return character


def _written_fraction(found: re.Match[str]) -> str:
    whole, *parts = found.groups()
    numerator, denominator = (next(part for part in parts[at : at + 2] if part) for at in (0, 2))
    return f"{whole} {numerator}/{denominator}" if whole else f"{numerator}/{denominator}"


def _read(text: str) -> tuple[Fraction, int, int] | None:
    """Return the last number with its place in the text."""
    tokens = list(_TOKEN.finditer(text))
    power = None
    while tokens:
        if _is_raised(text, tokens[-1]):
            power = _POWER.fullmatch(_gap(text, tokens, len(tokens) - 1))
            if power is not None:
                break
        elif not _NAMED.search(text, max(0, tokens[-1].start() - 3), tokens[-1].start()):
            break
        tokens.pop()  # part of a name (`H2O`, `x_1`) or of a unit (`m^2`)
    if not tokens:
        return None
    end, last = tokens[-1].end(), len(tokens) - 1
    if power is None:
        return _mantissa(text, tokens, last, Fraction(1), end)
    exponent, base = tokens[last][0], tokens[last - 1]
    if base[0] != "10" or not exponent.isdigit() or len(exponent) > 3:
        return None
    scale = Fraction(10) ** (-int(exponent) if power[0].endswith("-") else int(exponent))
    if _TIMES.fullmatch(_gap(text, tokens, last - 1)):
        return _mantissa(text, tokens, last - 2, scale, end)
    start, sign = _sign(text, base.start())
    return sign * scale, start, end


def _is_raised(text: str, token: re.Match[str]) -> bool:
    """Return whether a token is an exponent: after `^`, or after `**` that is not the mark of bold text."""
    found = _RAISED.search(text, max(0, token.start() - 6), token.start())
    return found is not None and not (found[0] == "**" and text.startswith("**", token.end()))


def _gap(text: str, tokens: Sequence[re.Match[str]], index: int) -> str:
    """Return the text between a token and the one before it; a letter, which separates nothing, for the first."""
    return text[tokens[index - 1].end() : tokens[index].start()] if index > 0 else "a"


def _mantissa(
    text: str, tokens: Sequence[re.Match[str]], index: int, scale: Fraction, end: int
) -> tuple[Fraction, int, int] | None:
    """Read the number that ends with a token: plain, with thousands, a fraction, or a mixed number."""
    over = _OVER.fullmatch(_gap(text, tokens, index)) is not None
    if over and not _OVER.fullmatch(_gap(text, tokens, index - 1)):
        denominator = _decimal(tokens[index][0])
        numerator, first = _grouped(text, tokens, index - 1)
        if not denominator or numerator is None:
            return None
        value = numerator / denominator
        mixed = _gap(text, tokens, first) == " " and not _OVER.fullmatch(_gap(text, tokens, first - 1))
        if mixed and 0 < value < 1 and tokens[first - 1][0].isdigit():
            whole, first = _decimal(tokens[first - 1][0]), first - 1
            if whole is None:
                return None
            value += whole
    else:
        found, first = _grouped(text, tokens, index)
        if found is None:
            return None
        value = found
    start, sign = _sign(text, tokens[first].start())
    return sign * value * scale, start, end


def _grouped(text: str, tokens: Sequence[re.Match[str]], index: int) -> tuple[Fraction | None, int]:
    """Return the value of the decimal number that ends with a token, and its first token: 1,234.5 has two."""
    separator, first = _gap(text, tokens, index), index
    while separator in _GROUPING and _gap(text, tokens, first) == separator and tokens[first - 1][0].isdigit():
        first -= 1
    groups = [token[0] for token in tokens[first : index + 1]]
    head, *others = groups
    whole = re.split(r"[.eE]", groups[-1])[0]
    thousands = len(head) <= 3 and head[0] != "0" and all(len(group) == 3 for group in [*others[:-1], whole])
    if others and thousands:
        return _decimal("".join(groups)), first
    return _decimal(groups[-1]), index


def _decimal(token: str) -> Fraction | None:
    number, _, exponent = token.lower().partition("e")
    too_large = len(number) > LONGEST or len(exponent) > 4 or abs(int(exponent or 0)) > LONGEST
    return None if too_large or number.count(".") > 1 else Fraction(token)


def _sign(text: str, start: int) -> tuple[int, int]:
    """Return where a number begins with its sign, and -1 or 1. A sign after a digit, a letter or a bracket is an
    operator.
    """
    at = start - 1 if text[start - 1 : start] and text[start - 1] in _CURRENCY else start
    sign, before = text[at - 1 : at], text[at - 2 : at - 1]
    if at == 0 or sign not in ("-", "+") or re.fullmatch(r"[A-Za-z0-9)\]}%'+-]", before, re.ASCII):
        return start, 1
    return at - 1, -1 if sign == "-" else 1
