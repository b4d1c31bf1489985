"""Which versions of a model a retention lets go: a decision over rows, no clock, no I/O."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from tensorkeep.records.history import RefFacts, VersionFacts
from tensorkeep.records.json_text import parse_time
from tensorkeep.records.retention import Retention


def choose_expired(
    versions: Sequence[VersionFacts], refs: Iterable[RefFacts], retention: Retention, *, now: datetime
) -> list[VersionFacts]:
    """Return the versions that go, in the order given: none where there is no branch, whose last versions would be kept.

    Args:
        versions: all of one model, newest commit first.
        refs: its branches and tags.
        retention: what stays; the head of a branch does anyway.
        now: what days are counted back from.
    """
    refs = list(refs)
    heads = [ref.version for ref in refs if ref.kind == "branch"]
    if not heads:
        return []
    kept = _on_lines(versions, heads, retention.last or 1)
    kept |= {ref.version for ref in refs if ref.kind == "tag" and retention.protects(ref.name)}
    if retention.days is not None:
        since = now - timedelta(days=retention.days)
        kept |= {version.id for version in versions if parse_time(version.created_at) >= since}
    return [version for version in versions if version.id not in kept]


def _on_lines(versions: Sequence[VersionFacts], heads: Sequence[str], last: int) -> set[str]:
    """Return the last so many versions of each branch.

    Nobody knows what came before a version that was removed. Where one of the last of a branch was, everything older than that stays.
    """
    parents = {version.id: version.parent for version in versions}
    order = [version.id for version in versions]
    kept: set[str] = set()
    for head in heads:
        line = _line_of(head, parents, last)
        kept.update(line)
        if line and len(line) < last and parents[line[-1]] is not None:
            kept.update(order[order.index(line[-1]) :])
    return kept


def _line_of(head: str, parents: Mapping[str, str | None], last: int) -> list[str]:
    line: list[str] = []
    current: str | None = head
    while current is not None and current in parents and len(line) < last:
        line.append(current)
        current = parents[current]
    return line
