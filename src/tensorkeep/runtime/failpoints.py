"""Failpoints: the named steps at which a test can kill the process or raise an error.

Code calls ``runtime.failpoints.hit("push.part_stored")`` right after the step that the name says. In production that is
one no-op call. Every name stands in `FAILPOINTS`; a test kills a process at each of them.
"""

from typing import Protocol

FAILPOINTS: frozenset[str] = frozenset(
    {
        "push.scanned",
        "push.planned",
        "push.session_begun",
        "push.staged",
        "push.part_written",
        "push.part_flushed",
        "push.part_recorded",
        "push.metadata_staged",
        "push.metadata_written",
        "push.before_commit",
        "push.committed",
        "push.done",
        "commit.begun",
        "commit.locked",
        "commit.version_inserted",
        "commit.ref_moved",
        "commit.journaled",
        "journal.written",
        "journal.flushed",
        "journal.recorded",
        "journal.trimmed",
        "gc.condemned",
        "gc.deleted",
        "gc.flushed",
        "gc.dropped",
        "gc.tmp_swept",
        "scrub.page_recorded",
        "repair.begun",
        "repair.planned",
        "repair.written",
        "repair.recorded",
        "repair.done",
        "drain.begun",
        "drain.retired",
        "drain.deleted",
        "drain.done",
        "rebalance.planned",
        "rebalance.copied",
        "rebalance.retired",
        "rebalance.done",
        "policy.set",
        "policy.converted",
        "policy.given_up",
        "policy.done",
        "rebuild.epoch_raised",
        "rebuild.journal_read",
        "rebuild.listed",
        "rebuild.catalog_written",
        "rebuild.catalog_installed",
        "split.reserved",
        "split.part_written",
        "split.part_published",
        "split.parts_durable",
        "split.copy_published",
        "split.index_published",
        "join.reserved",
        "join.part_taken",
        "join.verified",
        "join.published",
    }
)


class Failpoints(Protocol):
    """Told of each named step."""

    def hit(self, name: str) -> None:
        """Do what the test asked for at this step; nothing in production."""


class NoFailpoints:
    """Production: nothing happens."""

    def hit(self, name: str) -> None:
        """Do nothing."""
