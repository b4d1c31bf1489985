"""Probes for many HDF5 files: one process answers for them in turn, since to start one takes 0.2 s; and one that is no process.

A process that a file kills, or that it makes compute without end, is replaced, as the reader would go on to the next file.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tensorkeep.errors import Format
from tensorkeep.formats import hdf5_probe
from tensorkeep.formats.hdf5_child import Probe

# The limit of memory of the fuzz is lifted while libraries are loaded: `prepare` sets one of its own.
_SERVE_MANY = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
sys.path.insert(0, {os.path.dirname(hdf5_probe.__file__)!r})
import hdf5_probe, json, signal
question = json.loads(hdf5_probe.read_line())
hdf5_probe.prepare(question["sys_path"])
while True:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.3)
    hdf5_probe.inspect(hdf5_probe.RemoteFile(hdf5_probe.fetch, question["size_bytes"]), hdf5_probe.say)
    question = json.loads(hdf5_probe.read_line())
"""

_running: list[Probe] = []


@contextmanager
def lend_probe() -> Iterator[Probe]:
    """Give the process that is running, a new one where there is none; it ends with a file that it could not answer for."""
    if not _running:
        _running.append(Probe((sys.executable, "-c", _SERVE_MANY)))
    try:
        yield _running[0]
    except Format as error:
        if "its process" in error.message or "no answer" in error.message:
            close_probe()
        raise
    except BaseException:
        close_probe()
        raise


def close_probe() -> None:
    """End the process, if one is running."""
    while _running:
        _running.pop().close()


class ReplayedProbe(Probe):
    """A probe that says given lines, whatever it is sent, then ends."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = iter(lines)

    def send(self, data: bytes) -> None:
        """Take it."""

    def receive(self) -> bytes:
        """Return the next line."""
        try:
            return next(self._lines)
        except StopIteration:
            raise Format("HDF5 could not read it: its process ended with code 1") from None
