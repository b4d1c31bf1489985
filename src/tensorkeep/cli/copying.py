"""What the commands that make copies have in common: the limit of their rate, and the table of what they left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.tables import Block, Table
from tensorkeep.cli.units import parse_rate

if TYPE_CHECKING:
    from tensorkeep.store.reports import ObjectLeft

_SHOWN = 20

RateLimitOption = Annotated[
    str | None,
    typer.Option("--rate-limit", metavar="RATE", help="Never copy faster, e.g. 200MB/s.", show_default=False),
]


def parse_limit(rate_limit: str | None) -> int | None:
    """Return the bytes per second that an option asks for, None where it does not."""
    return None if rate_limit is None else parse_rate(rate_limit, what="rate limit")


def left_blocks(left: "Sequence[ObjectLeft]") -> list[Block]:
    """Return the table of objects that still lack copies, lost ones first, at most some of each; nothing where there are none."""
    ordered = sorted(left, key=lambda each: each.have)
    rows = [
        (
            f"{each.kind} {each.digest[:12]}",
            "LOST" if each.lost else f"{each.have} of {each.owed}",
            ", ".join(each.versions[:3]) + (" …" if len(each.versions) > 3 else ""),
            ", ".join(each.files[:2]) + (" …" if len(each.files) > 2 else ""),
            each.reason,
        )
        for each in ordered[:_SHOWN]
    ]
    if not rows:
        return []
    blocks: list[Block] = [Table(("OBJECT", "COPIES", "NEEDED BY", "FILES", "WHY"), rows)]
    if len(ordered) > _SHOWN:
        blocks.append(f"and {len(ordered) - _SHOWN:,} more; --json lists all")
    return blocks
