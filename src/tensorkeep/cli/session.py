"""What a command runs with: the doors to the store, the global options, and where output goes.

The doors are passed in, so that the commands are tested without a store.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tensorkeep.cli.documents import json_line, json_text, to_plain
from tensorkeep.cli.tables import Block, print_blocks, printable
from tensorkeep.errors import InvalidInput

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tensorkeep.store.join_file import JoinReport
    from tensorkeep.store.known_names import KnownNames
    from tensorkeep.store.reports import Progress, ProgressCallback, RebuildReport
    from tensorkeep.store.split_file import SplitReport
    from tensorkeep.store.store import Store


class Doors:
    """The functions of `tensorkeep` that give a store, make one, or need none; imported when first used."""

    def open(self, location: str | None) -> "Store":
        """Return the store at a location, or the default one."""
        import tensorkeep

        return tensorkeep.open(location)

    def init(self, location: str | None, *, replicas: int | None, ec: str | None) -> "Store":
        """Return a new store."""
        import tensorkeep

        return tensorkeep.init(location, replicas=replicas, ec=ec)

    def rebuild_catalog(self, location: str | None, *, sources: list[str], force: bool) -> "RebuildReport":
        """Return the report of a catalog made anew from the devices."""
        import tensorkeep

        return tensorkeep.rebuild_catalog(location, sources=sources, force=force)

    def known_names(self, location: str | None) -> "KnownNames":
        """Return the names in a store that exists; none is made."""
        from tensorkeep.store.known_names import find_known_names
        from tensorkeep.store.places import find_location

        return find_known_names(find_location(location, os.environ))

    def split_file(
        self, path: str, *, parts: int, to: list[str] | None, force: bool, progress: "ProgressCallback | None"
    ) -> "SplitReport":
        """Return the report of a file split into parts."""
        import tensorkeep

        return tensorkeep.split_file(path, parts=parts, to=to, force=force, progress=progress)

    def join_file(
        self,
        index: str,
        path: str | None,
        *,
        sources: list[str] | None,
        force: bool,
        progress: "ProgressCallback | None",
    ) -> "JoinReport":
        """Return the report of a file made from its parts."""
        import tensorkeep

        return tensorkeep.join_file(index, path, sources=sources, force=force, progress=progress)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the command line."""

    doors: Doors
    location: str | None = None
    as_json: bool = False
    debug: bool = False

    def with_options(self, *, location: str | None, as_json: bool, debug: bool) -> "Session":
        """Return the session with options that stood after the command; those before it hold where none did."""
        return replace(
            self,
            location=self.location if location is None else location,
            as_json=self.as_json or as_json,
            debug=self.debug or debug,
        )

    @contextmanager
    def store(self) -> Iterator["Store"]:
        """Open the store that the options or the environment name, and close it."""
        with self.doors.open(self.location) as store:
            yield store

    def show(self, document: Any, blocks: Callable[[], Iterable[Block]]) -> None:
        """Print a result on standard output: the document as JSON, or the blocks for people."""
        if self.as_json:
            sys.stdout.write(json_text(to_plain(document)) + "\n")
        else:
            print_blocks(blocks(), sys.stdout)

    def warn(self, message: str, **facts: Any) -> None:
        """Print a warning on standard error."""
        if self.as_json:
            text = json_line({"warning": {"message": message, "facts": to_plain(facts)}})
        else:
            text = f"warning: {printable(message, lines=True)}"
        sys.stderr.write(text + "\n")

    def progress(self) -> "AbstractContextManager[Callable[[Progress], None] | None]":
        """Return a context that gives a callback drawing progress bars, or None where nobody watches."""
        from tensorkeep.cli.progress import progress_bars

        return progress_bars(sys.stderr)

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Return whether the user agrees: by ``--yes``, or by an answer on the terminal.

        Raises:
            InvalidInput: there is no terminal to ask on.
        """
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise InvalidInput(f"{question} There is no terminal to ask on: add --yes to say so")
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
