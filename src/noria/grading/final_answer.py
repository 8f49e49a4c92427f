"""Where in a reply the final answer stands, and which exact number it states.

The rule is *one commitment*: a reply that boxes or marks several different answers, hedges ("42 or 43") or lists
candidates states none. Otherwise a model in RL learns to name every number it can think of.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 2000
MAX_DIGITS = 100  # int() of a long digit string is quadratic, and no task has such an answer

_MARK = re.compile(r"(?:\bfinal\s+answer|\banswer|\bresult)\s*(?:is|:|=|equals)\s*:?|####", re.IGNORECASE)
_LINK = re.compile(r"=|\b(?:is|are|equals|gives|makes|get)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"\b(?:not|or|either|neither|nor|maybe|perhaps|possibly|about|around|approximately|almost|nearly|between|than|least"
    r"|most|except|wrong|unsure|unless|if|to|versus|vs)\b|n't\b|[?<>≈≠±~]",
    re.IGNORECASE,
)
# A word after the number that changes its value is not a unit.
_SCALE = re.compile(
    r"\b(?:hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half|halves|thirds?|quarters?|tenths?|hundredths?"
    r"|tens|ones|pairs?|scores?|gross|less|more|off|short|over|under|each|twice|one|two|three|percent|pct|squared|cubed|factorial|times|plus|minus|point|degrees?|k|m|bn|i|e|pi|x)\b|[%‰!^°√²³]",
    re.IGNORECASE,
)
# A sentence that denies what follows ("it is false that it is 42") states nothing.
_DENIAL = re.compile(r"\b(?:not|no|never|false|wrong|incorrect|anything\s+but|unlike)\b|n't\b", re.IGNORECASE)
_REASON = re.compile(r"[,;]?\s+(?:because|since)\b.*", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:\d+[.)]|[*•])\s+(?=\S)")  # not "-": "- 42" may be negative
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LITERAL = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?:\.(?P<decimals>\d+))?(?:[eE](?P<exponent>[+-]?\d{1,2}))?"
    r"(?:\s*/\s*(?P<denominator>\d+))?"
)
_FRACTION = re.compile(r"(?P<sign>[+-]?)\s*\\[dt]?frac\s*\{(?P<above>[+-]?\d+)\}\s*\{(?P<below>[+-]?\d+)\}")
_UNIT = re.compile(r"[a-zA-Z]+(?: [a-zA-Z]+)?\.?")
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence|it's|that's|it|that|the|we|i|get|got|have|total|sum|of|equal)\b[\s,:]*)+", re.I
)


def commitment(text: str) -> str | None:
    """The one expression that `text` commits to as its final answer, or None where there is none or more than one."""
    text = plain_symbols(text.strip())
    if not text or len(text) > MAX_CHARACTERS:
        return None
    boxed = boxes(text)
    if boxed:
        return boxed[0] if len({_squeeze(box) for box in boxed}) == 1 else None
    marks = list(_MARK.finditer(text))
    if marks:
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        stated = [first_statement(text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
        return stated[0] if len({_squeeze(one) for one in stated}) == 1 else None
    lines = [line for line in text.splitlines() if line.strip()]
    listed = {number(first_statement(_BULLET.sub("", line))) for line in lines} - {None}
    if not lines or len(listed) > 1:  # one bare number a line is a list of guesses
        return None
    return first_statement(_after_last_link(_BULLET.sub("", lines[-1])))


def boxes(text: str) -> list[str]:
    r"""The contents of every \boxed{...}, braces matched."""
    found = []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, place = 1, match.end()
        while place < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            place += 1
        if depth == 0:
            found.append(text[match.end() : place - 1].strip())
    return found


def first_statement(text: str) -> str:
    """`text` up to its first line break, without quotes, full stop, emphasis and LaTeX delimiters around it."""
    lines = text.strip().splitlines()
    line = _REASON.sub("", re.sub(r"\\[()\[\]]|\$|\*\*|`", " ", lines[0] if lines else ""))
    return line.strip().strip("\"'“”‘’ ").rstrip(".;, ").strip("\"'“”‘’* ")


def number(expression: str | None) -> Fraction | None:
    """The exact number that `expression` states as a literal: 42, -1,234, 42.0, 84/2, or 42 apples. Else None.

    Arithmetic is refused ("17 + 25" for 42): a reply that repeats the question has not answered it. So are hedges, a
    second number, and words that change the value (42 %, 42 thousand, 42 squared).
    """
    if expression is None or _HEDGE.search(expression):
        return None
    expression = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", re.sub(r"\\[,;! ]", "", expression))
    expression = _LEAD.sub("", expression.strip()).strip()
    fraction = _FRACTION.fullmatch(expression)
    if fraction:
        return _ratio(fraction["sign"], int(fraction["above"][:MAX_DIGITS]), int(fraction["below"][:MAX_DIGITS]))
    match = _LITERAL.match(expression)
    if not match or not (match["whole"] or match["decimals"]) or len(match[0]) > MAX_DIGITS:
        return None
    rest = expression[match.end() :]
    if rest and (not rest[0].isspace() or not _UNIT.fullmatch(rest.strip()) or _SCALE.search(rest)):
        return None
    digits = (match["whole"] or "0").replace(",", "") + (match["decimals"] or "")
    power = int(match["exponent"] or 0) - len(match["decimals"] or "")
    value = Fraction(int(digits)) * Fraction(10) ** power
    return _ratio(match["sign"], value, int(match["denominator"] or 1))


def numbers_in(text: str) -> list[str]:
    """Every run of digits in `text` with its separators, for evidence and for the weak grader."""
    return _NUMBER.findall(plain_symbols(text))


def plain_symbols(text: str) -> str:
    """Full-width digits and the typographic minus signs as ASCII. No further folding: NFKC would read 4² as 42."""
    return text.translate(_PLAIN)


_PLAIN = {0xFF10 + digit: str(digit) for digit in range(10)} | {
    ord("−"): "-",
    ord("－"): "-",
    ord("–"): "-",
    ord("＝"): "=",
    ord("，"): ",",
    ord("．"): ".",
    ord("\u202f"): "\\,",
    ord("’"): "'",
}


def _after_last_link(line: str) -> str:
    """What follows the last "=", "is", "equals" of the line's last sentence; the whole sentence where there is none."""
    line = re.sub(r"[.]\s*$", "", line.strip())
    sentence = re.split(r"(?<=[a-zA-Z\d])[.!]\s+", line)[-1]
    links = list(_LINK.finditer(sentence))
    if links and _DENIAL.search(sentence[: links[-1].end()]):
        return ""
    return sentence[links[-1].end() :] if links else sentence


def _ratio(sign: str, above: Fraction | int, below: int) -> Fraction | None:
    if below == 0:
        return None
    value = Fraction(above) / below
    return -value if sign == "-" else value


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()
