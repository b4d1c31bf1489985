"""Retention: which versions of a model stay, as users say it and as the catalog and the journal store it.

The text is ``last=N``, ``days=D`` and ``protect=PATTERN,…``, apart by spaces, in this order, each at most once, one of the first two at
least: ``last=3 days=30 protect=v*``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tensorkeep.errors import InvalidInput

EVERY_TAG = ("*",)

MOST_VERSIONS = 1_000_000
MOST_PATTERNS = 100
MOST_DAYS = 36_500
"""A hundred years. More would reach back before any date that can be written."""

_TEXT = re.compile(r"(?:last=([1-9][0-9]{0,6}))? ?(?:days=([1-9][0-9]{0,4}))?(?: protect=(\S+))?\Z")
_PATTERN = re.compile(r"[A-Za-z0-9._/*?\[\]!-]{1,200}\Z")


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays of a model: heads of branches always, and what any of these says.

    Attributes:
        last: so many versions of each branch, counted from its head.
        days: what was committed in so many days.
        protect: shell patterns of the tags whose versions stay; other tags go with their versions.
    """

    last: int | None
    days: int | None
    protect: tuple[str, ...] = EVERY_TAG

    def protects(self, tag: str) -> bool:
        """Return whether the version that a tag points at stays because of it."""
        return any(fnmatchcase(tag, pattern) for pattern in self.protect)

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in (("last", self.last), ("days", self.days)) if value is not None]
        if self.protect != EVERY_TAG:
            words.append(f"protect={','.join(self.protect)}")
        return " ".join(words)


def make_retention(last: int | None, days: int | None, protect: Iterable[str] = EVERY_TAG) -> Retention:
    """Return a retention of these limits.

    Raises:
        InvalidInput: there is none, one makes no sense, or ``protect`` is no list of patterns of tags.
    """
    if last is None and days is None:
        raise InvalidInput("give last or days: how many versions of each branch stay, or for how long")
    for name, value, most in (("last", last, MOST_VERSIONS), ("days", days, MOST_DAYS)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
            raise InvalidInput(f"{name}={value!r} makes no sense: use a whole number from 1 to {most}")
    if isinstance(protect, str):
        raise InvalidInput(f"protect={protect!r} is one text: give a list of patterns, as in [{protect!r}]")
    protect = tuple(protect)
    if len(protect) > MOST_PATTERNS:
        raise InvalidInput(f"protect has {len(protect)} patterns: use at most {MOST_PATTERNS}")
    if not protect:
        raise InvalidInput("protect has no pattern: leave it out if every tag protects, or name one that no tag has")
    for pattern in protect:
        if not isinstance(pattern, str) or not _PATTERN.match(pattern):
            raise InvalidInput(
                f"{pattern!r} is no pattern of tags: use letters, digits, '.', '_', '-', '/', '*', '?' and '[…]'"
            )
    return Retention(last, days, protect)


def parse_retention(text: str) -> Retention:
    """Return the retention that a text says.

    Raises:
        InvalidInput: it is none.
    """
    found = _TEXT.match(text)
    if found is None:
        raise InvalidInput(f"{text!r} is no retention: use 'last=N', 'days=D' or both, then 'protect=PATTERN,…'")
    last, days, protect = found.groups()
    retention = make_retention(
        int(last) if last else None, int(days) if days else None, tuple(protect.split(",")) if protect else EVERY_TAG
    )
    if str(retention) != text:
        raise InvalidInput(f"{text!r} is no retention: it would be {str(retention)!r}")
    return retention
