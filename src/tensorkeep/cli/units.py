"""Sizes, rates, times and shapes as people write and read them.

People read decimal units (1 kB = 1000 bytes, as disks and networks are sold). They may write decimal ones (``2TB``) or
binary ones (``16MiB``). Everything behind this module is whole bytes, bytes per second, and seconds.
"""

import math
import re
from collections.abc import Iterable
from fractions import Fraction

from tensorkeep.errors import InvalidInput

SIZE_LIMIT_BYTES = 2**63 - 1
"""The largest size: what a signed 64-bit column holds."""

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "pi": 2**50, "ei": 2**60}
_SIZE = re.compile(
    r"(?P<number>\d{1,30}(\.\d{1,30})?) ?(?P<prefix>[kmgtpe]?i?)(?P<byte>b?)\Z", re.ASCII | re.IGNORECASE
)
_WHOLE_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME_UNITS_S = {"ms": Fraction(1, 1000)} | {unit: Fraction(seconds) for unit, seconds in _WHOLE_UNITS_S.items()}
_TIME = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(ms|min|[smhdw])? ?", re.ASCII)
_DURATION_LIMIT_S = 10**10
_DIMENSION = re.compile(r"(\*|\d{1,18})\Z", re.ASCII)
_LARGE = {
    "kB": "thousand",
    "MB": "million",
    "GB": "billion",
    "TB": "trillion",
    "PB": "quadrillion",
    "EB": "quintillion",
}


def parse_size(text: str, *, what: str = "size") -> int:
    """Return the bytes that a text like ``2TB``, ``1.5 GB``, ``16MiB`` or ``4096`` means; ``what`` names it in errors.

    Raises:
        InvalidInput: no such size, not a whole number of bytes, or over 2^63 - 1.
    """
    match = _SIZE.match(text.strip())
    unit = (match["prefix"] + match["byte"]) if match else ""
    if not match or (match["prefix"] and not match["byte"]) or match["prefix"].lower() == "i":
        raise InvalidInput(f"{text!r} is no {what}: write bytes with a unit, like 500MB, 2TB or 16MiB", text=text)
    if len(unit) == 2 and unit[0].isupper() and unit[1] == "b":
        raise InvalidInput(
            f"{text!r} is no {what}: {unit} means bits; write {unit[0]}B for bytes", text=text
        )  # 3Gb/s taken for 3GB/s would be wrong by a factor of eight
    prefix = match["prefix"].lower()
    size = Fraction(match["number"]) * Fraction((_DECIMAL | _BINARY)[prefix])
    if size.denominator != 1:
        raise InvalidInput(f"{text!r} is no {what}: it is not a whole number of bytes", text=text)
    if size > SIZE_LIMIT_BYTES:
        raise InvalidInput(f"{text!r} is no {what}: it is over 2^63 - 1 bytes", text=text)
    return int(size)


def parse_rate(text: str, *, what: str = "rate") -> int:
    """Return the bytes per second that a text like ``200MB/s`` means; the ``/s`` may be left out.

    Raises:
        InvalidInput: no such rate, or zero.
    """
    rate = parse_size(text.strip().removesuffix("/s"), what=what)
    if rate == 0:
        raise InvalidInput(f"{text!r} is no {what}: it must be over zero", text=text)
    return rate


def parse_duration(text: str, *, what: str = "time") -> float:
    """Return the seconds that a text like ``24h``, ``30m``, ``1h30m``, ``500ms`` or ``90`` means.

    Raises:
        InvalidInput: no such time, or over 10^10 seconds.
    """
    stripped = text.strip()
    total, position = Fraction(0), 0
    while match := _TIME.match(stripped, position):
        alone = match.start() == 0 and match.end() == len(stripped)
        if match[2] is None and not alone:
            break  # "1h30" does not say of what
        total += Fraction(match[1]) * _TIME_UNITS_S[match[2] or "s"]
        position = match.end()
    if not stripped or position != len(stripped):
        raise InvalidInput(f"{text!r} is no {what}: write a number with a unit, like 24h, 30m, 1h30m or 10s", text=text)
    if total > _DURATION_LIMIT_S:
        raise InvalidInput(f"{text!r} is no {what}: it is over 300 years", text=text)
    return float(total)


def parse_shape(text: str) -> tuple[int | None, ...]:
    """Return the shape that a text like ``4096x128`` or ``4096x*`` means: None for ``*``, which is any size; ``scalar`` is ``()``.

    Raises:
        InvalidInput: no such shape.
    """
    stripped = text.strip().lower()
    if stripped == "scalar":
        return ()
    sizes = stripped.split("x")
    if not all(_DIMENSION.match(size) for size in sizes):
        raise InvalidInput(
            f"{text!r} is no shape: write sizes with an x between them and * for any size, like '4096x*', or scalar",
            text=text,
        )
    return tuple(None if size == "*" else int(size) for size in sizes)


def exact_size(size_bytes: int) -> str:
    """Return the size in the largest unit that divides it: ``16MiB``, ``2TB``, ``7B``; `parse_size` gives it back."""
    units = [(factor, prefix) for table in (_DECIMAL, _BINARY) for prefix, factor in table.items()]
    factor, prefix = max((f, p) for f, p in units if size_bytes % f == 0 and (f <= size_bytes or f == 1))
    return f"{size_bytes // factor}{_spelling(prefix)}"


def exact_duration(seconds: int) -> str:
    """Return whole seconds in the largest unit that divides them: ``1d``, ``90m``, ``7s``."""
    units = [(_WHOLE_UNITS_S[unit], unit) for unit in ("s", "m", "h", "d")]
    factor, unit = max((f, u) for f, u in units if seconds % f == 0 and (f <= seconds or f == 1))
    return f"{seconds // factor}{unit}"


def human_size(size_bytes: float) -> str:
    """Return a size with three digits and a decimal unit: ``999 B``, ``1.50 GB``; within half a percent."""
    if size_bytes < 999.5:
        return f"{size_bytes:.0f} B"
    for prefix in ("k", "m", "g", "t", "p", "e"):
        value = size_bytes / _DECIMAL[prefix]
        if value < 999.5 or prefix == "e":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {_spelling(prefix)}"


def human_rate(bytes_per_s: float) -> str:
    """Return a rate like ``1.50 GB/s``."""
    return f"{human_size(bytes_per_s)}/s"


def human_duration(seconds: float) -> str:
    """Return a time like ``2.1 ms``, ``350 ms``, ``12.3 s``, ``2 min 05 s``, ``1 h 02 min`` or ``3 d 04 h``; ``never`` is infinite."""
    if not math.isfinite(seconds):
        return "never"
    if seconds < 0.9995:
        value = seconds * 1000
        return f"{value:.1f} ms" if value < 9.95 else f"{value:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = math.floor(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def human_number(number: int) -> str:
    """Return a large number in short and in full: ``1.10 B (1,100,048,384)``; below 1000 once: ``384``."""
    if number < 1000:
        return str(number)
    short, _, unit = human_size(number).partition(" ")
    return f"{short} {_LARGE[unit]} ({number:,})"


def human_count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: ``1 file``, ``12,345 parts``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shape_text(shape: Iterable[int] | None) -> str:
    """Return a shape like ``[32, 64]``; ``[]`` is a scalar's."""
    return "" if shape is None else "[" + ", ".join(str(size) for size in shape) + "]"


def _spelling(prefix: str) -> str:
    if len(prefix) == 2:
        return f"{prefix[0].upper()}iB"
    return f"{prefix if prefix == 'k' else prefix.upper()}B"
