r"""The final answer of a word problem: the one number behind `####`, read alike in references and in answers.

GSM8K's own rule takes what `#### (\-?[0-9\.\,]+)` matches, commas dropped, as text (arXiv:2110.14168). Where that reads a
plain number this module reads the same one, with needless zeros dropped. It also reads numbers in their usual dress
(`**5**`, `€5`, `+5`, a Unicode minus, `1 000`) and those written as one expression (`1/2`, `3½`, `10^3`, `2e3`) by
their value. What starts with a number but is another thing, such as a time, a range or a sum (`3:30`, `5-10`,
`3*4`), does not count as a number, not even as the one it starts with. docs/evaluation.md has the rule in full.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MARK = "####"
MOST_DIGITS = 40  # of a number in an expression; GSM8K's longest answer has 9
LARGEST_POWER = 30  # ten to it is larger than any answer

_MINUS = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"  # hyphens, en dash, minus signs
_DASH = re.escape(_MINUS)  # of a character class
_SPACES = "\u00a0\u2009\u202f'\u2019_"  # between groups of three digits, beside a comma or a space
_CURRENCY = "$¢-¥฿\u20a0-\u20cf\ufe69＄￠￡￥￦"  # of a character class
_CODE = r"(?:[A-Z]{1,3}(?=\$)|(?:USD|EUR|GBP|JPY|INR|CNY|RMB|CAD|AUD|CHF|Rs\.?)(?![A-Za-z]))"
# What may stand between #### and the number: white space, markup, opening brackets and quotation marks.
_DRESS = r"(?:[\s=:]|\\boxed|\\text(?:bf)?|<\/?[a-zA-Z]{1,8}>|[*_`\"'\u00ab\u201c\u2018({\[\\])"
_OPENING = re.compile(rf"{_DRESS}*")
_SIGN = re.compile(
    rf"(?P<before>[+\uff0b{_DASH}]?)\s*(?:{_CODE}?\s*[{_CURRENCY}]+|{_CODE})?\s*"
    rf"(?P<after>[+\uff0b{_DASH}]?)\s*[*_]*"
)
_GROUPED = rf"\d{{1,3}}(?:[{_SPACES} ]\d{{3}})+(?!\d)"
_NUMBER = re.compile(
    rf"(?P<whole>{_GROUPED}|\d[\d,]*)?(?P<fraction>(?<=\d)\.\d+|(?<!\d)\.\d+)?", re.ASCII
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_BLANK = r"[^\S\r\n]*"  # what follows in another line is not a part of the number
_FRACTION = re.compile(
    rf"{_BLANK}[/\u2044\u2215\u00f7]{_BLANK}(?P<bottom>\d+)(?![.,]?\d)", re.ASCII
)
_MIXED = re.compile(
    rf"(?:[ \t]{_BLANK}(?:and[ \t]+)?|-)(?P<top>\d+){_BLANK}[/\u2044]{_BLANK}(?P<bottom>\d+)",
    re.ASCII,
)
_ARGUMENT = r"\s*(?:\{{\s*(?P<{0}>\d+)\s*\}}|(?P<{0}_digit>\d))"  # of a LaTeX command
_LATEX = re.compile(
    r"[^\S\r\n]*\\?[dt]?frac" + _ARGUMENT.format("top") + _ARGUMENT.format("bottom"), re.ASCII
)
_EXPONENT = (
    rf"(?:\^|\*\*(?=[\d({_DASH}])){_BLANK}[{{(]?{_BLANK}(?P<exponent>[+{_DASH}]?\d+){_BLANK}[}})]?"
)
_RAISED = r"(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
_POWER = re.compile(rf"{_BLANK}{_EXPONENT}|{_RAISED}", re.ASCII)
_TIMES = r"(?:[*x\u00d7\u00b7\u22c5]|\\times|\\cdot)"
_SCIENTIFIC = re.compile(
    rf"[eE](?P<short>[+{_DASH}]?\d+)|{_BLANK}{_TIMES}{_BLANK}10{_BLANK}(?:{_EXPONENT}|{_RAISED})",
    re.ASCII,
)
# Characters that are read as others, or not at all: full-width forms of ASCII's, and invisible ones.
_READ_AS: dict[int, int | None] = {0xFF01 + place: 0x21 + place for place in range(94)}
_READ_AS |= dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF))
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\\[,!;:]|\{,\})(?=\d{3})", re.ASCII)
# Behind a number each of these says that the number is a part of something else.
_UNIT = rf"[{_CURRENCY}%°]?"
_JOINS = (
    rf"(?:[:;/\u2044\u2215\u2236\u00f7+*x\u00d7\u00b7\u22c5\u00b1~{_DASH}\u2014\u2026]"
    r"|\\times|\\cdot|\\div|\.\.+|(?<=\s)\*\*|&|(?i:x|to|or|and|times|plus|minus|over|mod|vs\.?)(?=\s))"
)
_CLOSING = r"[)\]}]*"
_DIGIT = r"[\d\u00bc-\u00be\u2150-\u215e]"  # with those such as ½
_LARGER = (
    r"h|hrs?|hours?|mins?|minutes?|ft|feet|foot|lbs?|pounds?|dollars?|years?|months?|weeks?|days?"
)
_SMALLER = r"m|mins?|minutes?|s|secs?|seconds?|in|inch(?:es)?|oz|ounces?|cents?|months?|weeks?|days?|hours?"
_GOES_ON = re.compile(
    rf"{_UNIT}{_CLOSING}{_BLANK}{_JOINS}{_BLANK}[+{_DASH}]?[(\[{{]?[{_CURRENCY}]*\.?{_DIGIT}"  # 3:30, 5 or 6
    rf"|{_CLOSING}{_BLANK}\^|{_CLOSING}[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]|{_BLANK}[√π]"
    rf"|{_BLANK}(?i:{_LARGER})\.?,?{_BLANK}(?:and)?{_BLANK}\d[\d.,]*{_BLANK}(?i:{_SMALLER})\b"  # 3 hours 5 minutes
    rf"|°{_BLANK}\d|(?<=0)[xX][0-9a-fA-F]|(?<=0)[bB][01]"
    rf"|[.,_]\d|[eE][+{_DASH}]?\d|[hH'\u2019\u2032\u2033\"]\d",  # 1.2.3, 3h30, 5'11
    re.ASCII,
)


def final_answer(text: str) -> str | None:
    """The number behind the first `####` that a readable number follows; None without one.

    Arguments:
        text: a whole answer, or a reference solution.

    Returns the number in one form for one value: digits with a decimal point and without needless zeros (`-1234.5`),
    or a reduced fraction (`1/3`) where decimals do not end.
    """
    text = _LATEX_COMMA.sub(",", text.translate(_READ_AS))
    place = text.find(MARK)
    while place >= 0:
        start = _OPENING.match(text, place + len(MARK)).end()  # type: ignore[union-attr]
        found, is_number = _read(text, start)
        if is_number:
            return found
        place = text.find(MARK, place + 1)
    return None


def _read(text: str, start: int) -> tuple[str | None, bool]:
    """The number at `start`, in its one form, and whether anything like a number is there at all."""
    sign = _SIGN.match(text, start)
    assert sign is not None
    start = sign.end()
    unsigned, end = _unsigned(text, start)
    if end == start:
        return None, False
    if unsigned is None or _GOES_ON.match(text, end):
        return None, True
    minus = any(mark and mark in _MINUS for mark in (sign["before"], sign["after"]))
    return ("-" if minus and unsigned != "0" else "") + unsigned, True


def _unsigned(text: str, start: int) -> tuple[str | None, int]:
    """A number without its sign in its one form (None: not to be compared), and where it ends: `start` if none is there."""
    latex = _LATEX.match(text, start)
    if latex:
        return _canonical(_latex_value(latex)), latex.end()
    vulgar = _vulgar(text, start)
    if vulgar is not None:
        return _canonical(vulgar), start + 1
    match = _NUMBER.match(text, start)
    assert match is not None
    if not match[0]:
        return None, start
    end = match.end()
    plain = _plain(match["whole"] or "", match["fraction"] or "")
    if len(plain) > MOST_DIGITS:
        return plain, end
    value, composite_end = _composite(text, end, Fraction(plain), whole=match["fraction"] is None)
    if composite_end > end:
        return _canonical(value), composite_end
    return plain, end


def _plain(whole: str, fraction: str) -> str:
    """Digits, grouped or not, and a fraction with its point, in the one form."""
    digits = re.sub(r"\D", "", whole).lstrip("0") or "0"
    places = fraction.rstrip("0").rstrip(".")
    return digits + places


def _composite(text: str, end: int, value: Fraction, whole: bool) -> tuple[Fraction | None, int]:
    """What a number that ends at `end` goes on to as one expression, and where that ends: `end` if it does not go on.

    value: of the number. whole: whether it has no decimal point, so that a fraction may follow, as in `3 1/2`.
    """
    if whole:
        part, part_end = _part(text, end)
        if part_end > end:
            return (None if part is None else value + part), part_end
    power = _POWER.match(text, end)
    if power:
        exponent = power["exponent"] or power["raised"].translate(_SUPERSCRIPTS)
        return _raised(value, _integer(exponent)), power.end()
    scientific = _SCIENTIFIC.match(text, end)
    if scientific:
        exponent = scientific["short"] or scientific["exponent"]
        exponent = exponent or scientific["raised"].translate(_SUPERSCRIPTS)
        scale = _raised(Fraction(10), _integer(exponent))
        return (None if scale is None else value * scale), scientific.end()
    fraction = _FRACTION.match(text, end)
    if fraction:
        bottom = _short(fraction["bottom"])
        return (value / bottom if bottom else None), fraction.end()
    return value, end


def _part(text: str, end: int) -> tuple[Fraction | None, int]:
    r"""The part that follows a whole number that ends at `end` (`1/2`, `\frac12`, `½`), and where the part ends.

    The second number is `end` itself where no part follows.
    """
    mixed = _MIXED.match(text, end)
    if mixed:
        return _divided(mixed["top"], mixed["bottom"]), mixed.end()
    latex = _LATEX.match(text, end)
    if latex:
        return _latex_value(latex), latex.end()
    for place in (end, end + 1):
        beside = place == end or text[end : end + 1].isspace()
        vulgar = _vulgar(text, place) if beside else None
        if vulgar is not None:
            return vulgar, place + 1
    return None, end


def _vulgar(text: str, place: int) -> Fraction | None:
    """The value of a character such as ½; None for any other."""
    if place >= len(text) or unicodedata.category(text[place]) != "No":
        return None
    decomposed = unicodedata.normalize("NFKC", text[place])
    top, slash, bottom = decomposed.partition("\u2044")
    return _divided(top, bottom) if slash and top and bottom else None


def _latex_value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of _LATEX."""
    top = match["top"] or match["top_digit"]
    bottom = match["bottom"] or match["bottom_digit"]
    return _divided(top, bottom)


def _divided(top: str, bottom: str) -> Fraction | None:
    below = _short(bottom)
    above = _short(top)
    return Fraction(above, below) if below and above is not None else None


def _short(digits: str) -> int | None:
    return int(digits) if len(digits) <= MOST_DIGITS else None


def _integer(text: str) -> int | None:
    """A whole number with any of the signs."""
    digits = text.lstrip("+" + _MINUS)
    value = _short(digits)
    if value is None:
        return None
    return -value if text[0] in _MINUS else value


def _raised(value: Fraction, exponent: int | None) -> Fraction | None:
    if exponent is None or abs(exponent) > LARGEST_POWER or (value == 0 and exponent < 0):
        return None
    return Fraction(value**exponent)


def _canonical(value: Fraction | None) -> str | None:
    """A value >= 0 as decimals where they end, else as a fraction; None where it has too many digits."""
    if value is None:
        return None
    places = next(
        (count for count in range(MOST_DIGITS) if (value * 10**count).denominator == 1), None
    )
    if places is None:
        text = f"{value.numerator}/{value.denominator}"
    else:
        digits = str(int(value * 10**places)).rjust(places + 1, "0")
        text = f"{digits[: len(digits) - places]}.{digits[len(digits) - places :]}"
        text = text.rstrip(".") if places == 0 else text
    return text if len(text) <= 2 * MOST_DIGITS else None
