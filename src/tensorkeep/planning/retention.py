"""Which versions of a model a retention lets go: a decision over rows, no clock, no I/O."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice

from tensorkeep.records.history import RefFacts, VersionFacts
from tensorkeep.records.json_text import parse_time
from tensorkeep.records.retention import Retention


def choose_expired(
    versions: Sequence[VersionFacts], refs: Iterable[RefFacts], retention: Retention, *, now: datetime
) -> list[VersionFacts]:
    """Return the versions that go, in the order given.

    Args:
        versions: all of one model, newest commit first.
        refs: its branches and tags.
        retention: what stays; the head of a branch does anyway.
        now: what days are counted back from.
    """
    refs = list(refs)
    kept = _on_lines(versions, [ref.version for ref in refs if ref.kind == "branch"], retention.last or 1)
    kept |= {ref.version for ref in refs if ref.kind == "tag" and retention.protects(ref.name)}
    if retention.days is not None:
        since = now - timedelta(days=retention.days)
        kept |= {version.id for version in versions if parse_time(version.created_at) >= since}
    return [version for version in versions if version.id not in kept]


def _on_lines(versions: Sequence[VersionFacts], heads: Sequence[str], last: int) -> set[str]:
    """Return the last so many versions of each branch.

    Nobody knows what came before a version that was removed. Where a line ends at one, older versions that are on no line fill it up:
    rather too many are kept than one that is wanted.
    """
    parents = {version.id: version.parent for version in versions}
    kept: set[str] = set()
    broken: list[tuple[str, int]] = []  # the last version before a gap, and how many are missing
    for head in heads:
        line = _line_of(head, parents, last)
        kept.update(line)
        if line and len(line) < last and parents[line[-1]] is not None:
            broken.append((line[-1], last - len(line)))
    order = [version.id for version in versions]
    filling = {
        each
        for before, missing in broken
        for each in islice((v for v in order[order.index(before) + 1 :] if v not in kept), missing)
    }
    return kept | filling


def _line_of(head: str, parents: Mapping[str, str | None], last: int) -> list[str]:
    line: list[str] = []
    current: str | None = head
    while current is not None and current in parents and len(line) < last:
        line.append(current)
        current = parents[current]
    return line
