"""Runs as a process of its own: finds the datasets of one HDF5 file, whose bytes it asks its parent for.

The HDF5 library is C and reads addresses and counts out of the file; a hostile file can crash it or make it allocate. So it
runs here, under limits, without a way to the disk, and only answers come back. This module is run as a script by
`tensorkeep.formats.hdf5_child` and imports nothing of the package.

One JSON line goes in: ``{"sys_path": […], "size_bytes": n}``. Lines come out: ``["read", offset, length]``, answered by
exactly those bytes; ``["tensor", name, dtype, shape, start, length]``, the dtype as numpy's (or ``bfloat16``);
at the end ``["done", note]`` or ``["opaque", why]``.
"""

import io
import json
import math
import os
import posixpath
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

Say = Callable[..., None]
Fetch = Callable[[int, int], bytes]

PAGE_BYTES = 4096
CACHED_PAGES = 2048
READ_LIMIT_BYTES = 65_536
"""Most bytes of one request: an answer fits into a pipe, so that neither side waits for the other."""

MEMORY_LIMIT_BYTES = 512 << 20
"""What may be allocated besides what the libraries have taken when the file is opened."""

CPU_LIMIT_S = 120
WALL_LIMIT_S = 600

MAX_LINKS = 1_000_000
MAX_NAME_CHARACTERS = 4096
MAX_RANK = 64
MAX_SOFT_LINKS = 16
"""Soft links that one name may lead through, as in HDF5 itself."""

_FIXED_CHUNK_ADDRESSES = (1, 14, 4)
"""Before this version of HDF5 the address of a chunk counted from the end of the user block (HDF5 issue 3003)."""


class Unfit(Exception):
    """The file is opaque, for the reason that this holds."""


class RemoteFile(io.RawIOBase):
    """The file, as the HDF5 library sees it: small reads come from pages that are kept, large ones go to the parent."""

    def __init__(self, fetch: Fetch, size_bytes: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size_bytes
        self._position = 0
        self._pages: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move and return the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the file goes and return how many bytes that is."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        done = 0
        while done < wanted:
            data = self._some(self._position, wanted - done)
            view[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
        return done

    def _some(self, offset: int, length: int) -> bytes:
        """Return at least one byte and at most ``length`` from ``offset`` on."""
        if length >= PAGE_BYTES * 4:
            return self._fetch(offset, min(length, READ_LIMIT_BYTES))
        page, skip = divmod(offset, PAGE_BYTES)
        data = self._pages.pop(page, None)
        if data is None:
            start = page * PAGE_BYTES
            data = self._fetch(start, min(PAGE_BYTES, self._size - start))
            if len(self._pages) >= CACHED_PAGES:
                del self._pages[next(iter(self._pages))]
        self._pages[page] = data
        return data[skip : skip + length]


class Found(NamedTuple):
    """A dataset that is a tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


def inspect(handle: RemoteFile, say: Say) -> None:
    """Say what the file holds; the last message is ``done`` or ``opaque``."""
    import h5py  # noqa: PLC0415 - found only once the parent has said where

    try:
        with h5py.File(handle, "r") as file:
            note = _Walk(h5py, file, say).run()
        say("done", note)
    except Unfit as unfit:
        say("opaque", str(unfit))
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        say("opaque", f"HDF5 could not read it: {_one_line(error)}")


class _Walk:
    """Goes through the groups of a file by their hard links, each group once, then names what soft links lead to."""

    def __init__(self, h5py: Any, file: Any, say: Say) -> None:
        self._h5py = h5py
        self._root = file.id
        self._say = say
        self._links = 0
        self._groups: dict[int, str] = {}
        self._group_paths: set[str] = set()
        self._datasets: dict[int, Found | None] = {}
        self._named: dict[str, Found | None] = {}
        self._other_names: dict[str, str] = {}
        self._soft: dict[str, str] = {}
        self._left_out: list[str] = []
        self._left_out_count = 0
        userblock = self._root.get_create_plist().get_userblock()
        self._chunk_base = userblock if h5py.version.hdf5_version_tuple < _FIXED_CHUNK_ADDRESSES else 0

    def run(self) -> str:
        """Say every tensor and return the note of what was left out."""
        root = self._h5py.h5o.open(self._root, b"/")
        self._groups[self._h5py.h5o.get_info(root).addr] = ""
        self._group_paths.add("")
        waiting = [("", root)]
        while waiting:
            path, group = waiting.pop()
            waiting.extend(self._enter(path, group))
        for path, target in self._soft.items():
            self._follow(path, target)
        if not self._left_out_count:
            return ""
        more = self._left_out_count - len(self._left_out)
        return f"left out: {', '.join(self._left_out)}" + (f" and {more} more" if more else "")

    def _enter(self, path: str, group: Any) -> Iterator[tuple[str, Any]]:
        """Say the datasets of a group and yield the groups in it that were not seen before."""
        h5l = self._h5py.h5l
        names: list[bytes] = []
        group.links.iterate(lambda name: names.append(bytes(name)))
        for name in names:
            full = self._path(path, name)
            info = group.links.get_info(name)
            if info.type == h5l.TYPE_SOFT:
                self._soft[full] = group.links.get_val(name).decode("utf-8", "replace")
            elif info.type != h5l.TYPE_HARD:
                self._leave_out(full, "a link to another file")
            elif info.u in self._groups:
                self._other_names[full] = self._groups[info.u]
                self._leave_out(full, f"another name of the group {'/' + self._groups[info.u]!r}")
            else:
                yield from self._open(full, info.u, group, name)

    def _path(self, group: str, name: bytes) -> str:
        self._links += 1
        if self._links > MAX_LINKS:
            raise Unfit(f"it has more than {MAX_LINKS} links")
        try:
            full = f"{group}/{name.decode()}" if group else name.decode()
        except UnicodeDecodeError:
            raise Unfit(f"the name {name!r} is not UTF-8") from None
        if len(full) > MAX_NAME_CHARACTERS:
            raise Unfit(f"a name has more than {MAX_NAME_CHARACTERS} characters: {full[:60]!r}…")
        return full

    def _open(self, full: str, address: int, group: Any, name: bytes) -> Iterator[tuple[str, Any]]:
        if address not in self._datasets:
            opened = self._h5py.h5o.open(group, name)
            if isinstance(opened, self._h5py.h5g.GroupID):
                self._groups[address] = full
                self._group_paths.add(full)
                yield full, opened
                return
            if not isinstance(opened, self._h5py.h5d.DatasetID):
                return  # a type that was given a name
            self._datasets[address] = self._read(full, opened)
        self._name(full, self._datasets[address])

    def _name(self, full: str, found: Found | None) -> None:
        self._named[full] = found
        if found is not None:
            self._say("tensor", full, *found)

    def _leave_out(self, name: str, why: str) -> None:
        self._left_out_count += 1
        if len(self._left_out) < 3:
            shown = name if len(name) <= 100 else name[:99] + "…"
            self._left_out.append(f"{shown!r} ({why})")

    # ------------------------------------------------------------------ soft links

    def _follow(self, full: str, target: str) -> None:
        resolved = self._resolve(full, target)
        if resolved in self._named:
            self._name(full, self._named[resolved])
        elif resolved in self._group_paths:
            self._leave_out(full, f"another name of the group {'/' + resolved!r}")
        else:
            self._leave_out(full, "a link that leads nowhere")

    def _resolve(self, full: str, target: str) -> str:
        """Return the path by hard links alone that a soft link leads to, whether or not something is there."""
        waiting = _steps(full, target)
        reached = ""
        hops = 1
        while waiting:
            reached = posixpath.join(reached, waiting.pop(0))
            if reached in self._soft:
                hops += 1
                if hops > MAX_SOFT_LINKS:
                    return reached
                waiting = _steps(reached, self._soft[reached]) + waiting
                reached = ""
            else:
                reached = self._other_names.get(reached, reached)
        return reached

    # -------------------------------------------------------------------- datasets

    def _read(self, name: str, dataset: Any) -> Found | None:
        """Return a dataset as a tensor, or None where it is no array of numbers."""
        space = dataset.get_space()
        if space.get_simple_extent_type() == self._h5py.h5s.NULL:
            self._leave_out(name, "it has no value")
            return None
        dtype, inner = self._type_of(name, dataset)
        if dtype is None:
            return None
        shape = (*map(int, space.get_simple_extent_dims()), *inner)
        if len(shape) > MAX_RANK:
            raise Unfit(f"the dataset {name!r} has {len(shape)} dimensions")
        if math.prod(shape) == 0:
            return Found(dtype, shape, 0, 0)
        length = math.prod(shape) * dataset.get_type().get_size() // math.prod(inner)
        return Found(dtype, shape, self._start_of(name, dataset, length), length)

    def _type_of(self, name: str, dataset: Any) -> tuple[str | None, tuple[int, ...]]:
        """Return numpy's name of a dataset's type and the shape of one element; None where it holds no numbers."""
        h5t = self._h5py.h5t
        kind = dataset.get_type()
        inner: tuple[int, ...] = ()
        while kind.get_class() == h5t.ARRAY:
            inner += tuple(map(int, kind.get_array_dims()))
            kind = kind.get_super()
        if kind.get_class() == h5t.OPAQUE and kind.get_size() == 2 and _attribute(self._h5py, dataset) == "bfloat16":
            return "bfloat16", inner  # as Keras writes it
        words = {
            h5t.STRING: "strings",
            h5t.OPAQUE: "bytes of no known type",
            h5t.REFERENCE: "references",
            h5t.VLEN: "lists of any length",
            h5t.TIME: "times",
        }
        if (word := words.get(kind.get_class())) is not None:
            self._leave_out(name, word)
            return None, ()
        dtype = self._exact_dtype(name, kind)
        if dtype is None:
            self._leave_out(name, "records of several fields")
            return None, ()
        return dtype, inner

    def _exact_dtype(self, name: str, kind: Any) -> str | None:
        """Return the numpy type whose bytes are those of the HDF5 type; None for records."""
        h5t = self._h5py.h5t
        if kind.get_class() == h5t.ENUM and kind.dtype.kind != "b":
            kind = kind.get_super()
        dtype = kind.dtype
        if kind.get_class() == h5t.COMPOUND and dtype.kind != "c":
            return None
        part = kind
        if kind.get_class() == getattr(h5t, "COMPLEX", None):
            part = kind.get_super()
        same = h5t.py_create(part.dtype, logical=True).equal(part)
        if not same or dtype.kind not in "biufc" or dtype.itemsize != kind.get_size():
            raise Unfit(f"numpy has no type for the numbers of the dataset {name!r}")
        return str(dtype.str)

    def _start_of(self, name: str, dataset: Any, length: int) -> int:
        """Return where the bytes of a dataset start in the file, if they lie there in one run as they are."""
        h5d = self._h5py.h5d
        plist = dataset.get_create_plist()
        layout = plist.get_layout()
        if plist.get_nfilters():
            raise Unfit(f"the dataset {name!r} is compressed ({self._filters(plist)})")
        if layout == h5d.COMPACT:
            raise Unfit(f"the dataset {name!r} is compact: it lies inside a header")
        if layout == h5d.CONTIGUOUS:
            if plist.get_external_count():
                raise Unfit(f"the dataset {name!r} lies in another file")
            stored, start = dataset.get_storage_size(), dataset.get_offset()
            # In a file with a user block an address that is not there looks like one (1023 for a block of 1024).
            allocated = dataset.get_space_status() == h5d.SPACE_STATUS_ALLOCATED
        elif layout == h5d.CHUNKED:
            if tuple(plist.get_chunk()) != tuple(dataset.shape):
                raise Unfit(f"the dataset {name!r} is stored in chunks")
            chunk = dataset.get_chunk_info_by_coord((0,) * dataset.rank)
            stored, start, allocated = chunk.size, chunk.byte_offset, chunk.byte_offset is not None
            start = start + self._chunk_base if allocated else None
        else:
            raise Unfit(f"the dataset {name!r} is put together from others (virtual)")
        if not allocated or start is None:
            raise Unfit(f"the dataset {name!r} was never written: the file has no bytes of it")
        if stored != length:
            raise Unfit(f"the dataset {name!r} has {stored} bytes; its shape and type need {length}")
        return int(start)

    def _filters(self, plist: Any) -> str:
        names = [plist.get_filter(index)[3].decode("ascii", "replace") for index in range(plist.get_nfilters())]
        return repr(", ".join(names))[1:-1][:100]


def _attribute(h5py: Any, dataset: Any) -> Any:
    return h5py.Dataset(dataset).attrs.get("dtype")


def _steps(link: str, target: str) -> list[str]:
    whole = target if target.startswith("/") else posixpath.join(posixpath.dirname(link), target)
    return [step for step in whole.split("/") if step not in ("", ".")]


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # the text of a KeyError has quotes
    words = " ".join(str(text).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:300]


# ------------------------------------------------------------------------------ the process


def say(*message: object) -> None:
    """Send a message to the parent."""
    _write(json.dumps(message).encode() + b"\n")


def fetch(offset: int, length: int) -> bytes:
    """Return bytes of the file from the parent."""
    say("read", offset, length)
    data = bytearray()
    while len(data) < length:
        more = os.read(0, length - len(data))
        if not more:
            os._exit(1)  # the parent is gone
        data += more
    return bytes(data)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def read_line() -> bytes:
    """Return the parent's next line; empty where there is none."""
    line = bytearray()
    while not line.endswith(b"\n"):
        more = os.read(0, 1)
        if not more:
            return b""
        line += more
    return bytes(line)


def prepare(sys_path: Sequence[str]) -> None:
    """Load the libraries from where the parent has them, then give up what the file might be able to misuse."""
    sys.path[:] = sys_path
    import h5py  # noqa: F401, PLC0415 - loaded before the limits

    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, used + MEMORY_LIMIT_BYTES),
        (resource.RLIMIT_CPU, CPU_LIMIT_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),  # the three that are open: no file, no socket, so no link to another file
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        now = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (now, now))
    signal.alarm(WALL_LIMIT_S)


def main() -> None:
    """Answer for one file, then end without the library's own clearing up, which a broken file may crash."""
    question = json.loads(read_line())
    try:
        prepare(question["sys_path"])
    except ImportError as error:
        say("opaque", f"h5py can't be imported: {_one_line(error)}")
    else:
        inspect(RemoteFile(fetch, question["size_bytes"]), say)
    os._exit(0)


if __name__ == "__main__":
    main()
