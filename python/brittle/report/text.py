"""Numbers as a reader wants them. A number that is missing is a dash, never a zero."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from brittle._radius import radius

DASH = "—"
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def missing(value: float | None) -> bool:
    """Whether there is no number to show: none, or one that is not finite."""
    return value is None or not math.isfinite(value)


def percent(share: float | None) -> str:
    """A share as per cent with one decimal; 100 % and 0 % only if it is exactly that.

    Example:
        >>> percent(0.984), percent(0.99999), percent(1.0), percent(0.0001), percent(None)
        ('98.4 %', '>99.9 %', '100 %', '<0.1 %', '—')
    """
    if share is None or missing(share):
        return DASH
    if 0.9995 <= share < 1:
        return ">99.9 %"
    if 0 < abs(share) < 0.0005:
        return "<0.1 %" if share > 0 else ">\N{MINUS SIGN}0.1 %"
    return "100 %" if share == 1 else _signed(f"{share:.1%}".replace("%", " %"))


def interval(ends: Sequence[float | None] | None) -> str:
    """Both ends of an interval of shares.

    Example:
        >>> interval([0.961, 0.99]), interval(None)
        ('96.1 % to 99.0 %', '—')
    """
    if ends is None or any(map(missing, ends)):
        return DASH
    return " to ".join(map(percent, ends))


def number(value: float | None) -> str:
    """A measure with three decimals, or with three digits where those would show nothing.

    Example:
        >>> number(0.0514), number(0.00002), number(123456.0), number(0.0), number(float("nan"))
        ('0.051', '2e-05', '123,456', '0', '—')
    """
    if value is None or missing(value):
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 0.0005:
        return _signed(f"{value:.3g}")
    return _signed(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}")


def count(value: float | None) -> str:
    """A whole number.

    Example:
        >>> count(50000)
        '50,000'
    """
    return DASH if value is None or missing(value) else f"{value:,.0f}"


def epsilon(value: float | None) -> str:
    """A radius; where pixels count in 255ths, as that fraction.

    Example:
        >>> epsilon(8 / 255), epsilon(0.25), epsilon(0.0123456), epsilon(None)
        ('8/255', '0.25', '0.0123', '—')
    """
    return DASH if value is None or missing(value) else radius(value)


def norm_name(norm: str) -> str:
    """A norm as it is written in running text."""
    return NORM_NAMES.get(norm, norm)


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") else text


def shortened(text: str, length: int = 22) -> str:
    """A name that fits into a figure; what is left out is in the middle, as names often differ at their ends.

    Example:
        >>> shortened("pneumothorax, left-sided, of unknown cause")
        'pneumothorax,…wn cause'
    """
    text = " ".join(clean(text).split())
    if len(text) <= length:
        return text
    tail = 2 * (length - 1) // 5
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def clean(text: str) -> str:
    """The text without what a page cannot hold (controls, lone surrogates) or what turns its order round.

    Example:
        >>> clean("scan\\x00 \\u202egnp.exe")
        'scan� �gnp.exe'
    """
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)
