"""Files known by their looks: what a push hashed is not read again while its stamp stays the same.

One JSON file for each store in the user's cache folder, replaced as a whole; losing it costs only time. A time under two
seconds old when the file was hashed is not believed: a later write could leave the same stamp (git's "racy" problem).

Source: https://git-scm.com/docs/racy-git.
"""

import contextlib
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from tensorkeep.store.sources import PushSource, Stamp

_DISTRUST_NS = 2_000_000_000
_MOST_FILES = 200_000


class KnownFile(msgspec.Struct, frozen=True, array_like=True):
    """A file's stamp, and the SHA-256 (hex) of what it held then."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    sha256: str


class StatCache:
    """Which files of this user are known to one store."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "files.json" if folder else None
        self._known = self._read()

    def find_sha256(self, source: PushSource) -> str | None:
        """Return the SHA-256 (hex) of a source that looks as it did when it was hashed, or None."""
        if source.identity is None:
            return None
        real_path, stamp = source.identity
        known = self._known.get(real_path)
        return known.sha256 if known is not None and _stamp(known) == stamp else None

    def remember(self, hashed: Iterable[tuple[PushSource, str]], *, scanned_at: datetime) -> None:
        """Keep what was hashed; stamps that were too young when the files were scanned are left out.

        The moment counts at which the stamps were taken, before the files were read: however long the push took since, a write
        may have followed the hash within the resolution of the stamp's times.
        """
        if self._path is None:
            return
        scanned_ns = int(scanned_at.timestamp() * 1e9)
        known = self._read()
        for source, sha256 in hashed:
            if source.identity is None:
                continue
            real_path, stamp = source.identity
            if max(stamp.modified_ns, stamp.changed_ns) < scanned_ns - _DISTRUST_NS:
                known[real_path] = KnownFile(*stamp, sha256)
            else:
                known.pop(real_path, None)
        if len(known) > _MOST_FILES:
            known = dict(list(known.items())[-_MOST_FILES:])
        self._known = known
        self._write(self._path, known)

    def _read(self) -> dict[str, KnownFile]:
        if self._path is None:
            return {}
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, KnownFile])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}

    @staticmethod
    def _write(path: Path, known: dict[str, KnownFile]) -> None:
        # Not fsynced: a torn cache does not decode, and a lost one costs only time.
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError, UnicodeEncodeError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(known))
            temporary.replace(path)


def _stamp(known: KnownFile) -> Stamp:
    return Stamp(known.device, known.inode, known.size_bytes, known.modified_ns, known.changed_ns)
