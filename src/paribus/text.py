"""How numbers are worded for people: one form for each kind, everywhere."""

from __future__ import annotations


def percent(value: float | None, digits: int = 1) -> str:
    """0.1234 -> 12.3 %.

    Args:
        value: a share; None: –.
        digits: after the point.
    """
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals, with a real minus sign.

    Args:
        value: to print; None: –.
        digits: after the point.
    """
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def quantity(value: float) -> str:
    """1234567 -> 1.23 M; three digits, below 10,000 every whole one."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 9_999.5):
            return f"{value / size:.3g}\u202f{unit}"
    return f"{value:,.0f}" if abs(value) >= 999.5 or value == int(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f}\u202fs"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{seconds / 60:.1f}\u202fmin"
    return f"{minutes // 60}\u202fh {minutes % 60:02}\u202fmin"


def p_value(value: float) -> str:
    """A p-value, the tiny ones as a bound."""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"


def signed(value: float, digits: int = 4) -> str:
    """+0.0123, with a real minus sign.

    Args:
        value: to print; ±∞ too.
        digits: after the point.
    """
    return (
        f"{value:+.{digits}f}".replace("-", "−")
        if abs(value) != float("inf")
        else ("−∞" if value < 0 else "∞")
    )


def share(value: float) -> str:
    """0.42 -> 42 %; a share that is neither nothing nor all is never rounded to it."""
    if value == 0:
        return "none"
    if value == 1:
        return "all"
    return f"{min(max(round(100 * value), 1), 99)} %"


def count(value: float) -> str:
    """1234567 -> 1.23 M; billions are B, as tokens and parameters are counted."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f}"


def memory_size(value: float) -> str:
    """Bytes of memory: 1610612736 -> 1.5 GiB."""
    gib = value / 2**30
    if gib >= 100:
        return f"{gib:,.0f} GiB"
    if gib >= 1:
        return f"{gib:,.1f} GiB"
    if value >= 2**20:
        return f"{value / 2**20:,.1f} MiB"
    return f"{value / 2**10:,.0f} KiB"


def file_size(value: float) -> str:
    """Bytes on a disk: 1234567890 -> 1.23 GB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f} bytes"


def time_span(seconds: float) -> str:
    """A time to plan with, from seconds to days: 93600 -> 26.0 h."""
    if seconds >= 5 * 86400:
        return f"{seconds / 86400:,.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:,.1f} s"


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
