"""Asks a child process which datasets an HDF5 file has: starts the probe, gives it the bytes it asks for, checks its answer.

Nothing that the child says is believed: messages are typed and bounded, offsets are compared with the file, the structure is
checked like a stranger's. A child that crashes, hangs or talks nonsense is an error that says so; the caller lives on.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

from tensorkeep.errors import Format
from tensorkeep.formats import hdf5_probe
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.hdf5_probe import MAX_LINKS, READ_LIMIT_BYTES
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tensorkeep.records.dtype import npy_name

COMMAND = (sys.executable or "python3", "-I", "-S", os.path.abspath(hdf5_probe.__file__))
"""Isolated from the user's environment and without site: where packages lie is said in the question."""

ANSWER_TIMEOUT_S = 30.0
"""How long the child may stay silent."""

LINE_LIMIT_BYTES = 64 << 10
ANSWER_LIMIT_BYTES = 256 << 20
REQUEST_LIMIT = 4_000_000

_CHUNK_BYTES = 64 << 10


class _Read(msgspec.Struct, tag="read", array_like=True, forbid_unknown_fields=True):
    offset: int
    length: int


class _Tensor(msgspec.Struct, tag="tensor", array_like=True, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


class _Done(msgspec.Struct, tag="done", array_like=True, forbid_unknown_fields=True):
    note: str


class _Opaque(msgspec.Struct, tag="opaque", array_like=True, forbid_unknown_fields=True):
    why: str


_MESSAGE = msgspec.json.Decoder(_Read | _Tensor | _Done | _Opaque)


class Probe:
    """A running probe. Close it, or use it as a context: then it is dead."""

    def __init__(self, command: Sequence[str] = COMMAND, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._heard = bytearray()
        self._heard_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        with self._process:
            pass

    def send(self, data: bytes) -> None:
        """Write all of this to the process.

        Raises:
            Format: it ended, or does not read.
        """
        rest = memoryview(data)
        while rest:
            if not select.select([], [self._in], [], self._timeout_s)[1]:
                raise self._silent()
            try:
                rest = rest[os.write(self._in, rest) :]
            except BrokenPipeError:
                raise self._dead() from None
            except BlockingIOError:
                continue

    def receive(self) -> bytes:
        """Return the next line of the process.

        Raises:
            Format: it ended, stays silent, or says too much.
        """
        searched = 0
        while (end := self._heard.find(b"\n", searched)) < 0:
            searched = len(self._heard)
            if searched > LINE_LIMIT_BYTES or self._heard_bytes > ANSWER_LIMIT_BYTES:
                raise _nonsense("it says too much")
            if not select.select([self._out], [], [], self._timeout_s)[0]:
                raise self._silent()
            more = os.read(self._out, _CHUNK_BYTES)
            if not more:
                raise self._dead()
            self._heard += more
            self._heard_bytes += len(more)
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        return line

    def _silent(self) -> Format:
        return Format(f"HDF5 could not read it: no answer in {self._timeout_s:g} seconds")

    def _dead(self) -> Format:
        try:
            code = self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            return self._silent()
        how = f"with {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return Format(f"HDF5 could not read it: its process ended {how}")


def ask_probe(probe: Probe, format_name: str, source: ByteSource) -> FileStructure:
    """Return the structure that a new probe finds in a source.

    Raises:
        Format: the file can't be read as tensors; the message is a note for an opaque file.
        InvalidInput: the source ended early (it shrank).
    """
    question = {"sys_path": [place for place in sys.path if place], "size_bytes": source.size_bytes}
    probe.send(json.dumps(question).encode() + b"\n")
    tensors: list[TensorLayout] = []
    requests = 0
    while True:
        message = _decode(probe.receive())
        if isinstance(message, _Read):
            requests += 1
            probe.send(_read(source, message, requests))
        elif isinstance(message, _Tensor):
            tensors.append(_layout(message))
            if len(tensors) > MAX_LINKS:
                raise _nonsense("too many tensors")
        elif isinstance(message, _Opaque):
            raise Format(_printable(message.why))
        else:
            tensors.sort(key=lambda tensor: (tensor.start, tensor.length, tensor.name))
            structure = FileStructure(format_name, tuple(tensors), _printable(message.note))
            check_structure(structure, source.size_bytes)
            return structure


def _decode(line: bytes) -> _Read | _Tensor | _Done | _Opaque:
    try:
        message: _Read | _Tensor | _Done | _Opaque = _MESSAGE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _nonsense(str(error)) from error
    return message


def _read(source: ByteSource, request: _Read, requests: int) -> bytes:
    inside = request.offset >= 0 and request.offset + request.length <= source.size_bytes
    if not inside or not 0 < request.length <= READ_LIMIT_BYTES or requests > REQUEST_LIMIT:
        raise _nonsense("it reads outside the file, or too much")
    return source.read(request.offset, request.length)


def _layout(found: _Tensor) -> TensorLayout:
    dtype = "BF16" if found.dtype == "bfloat16" else npy_name(found.dtype)
    if dtype is None:
        raise _nonsense("a dtype that numpy has not")
    start = found.start if found.length else 0
    return TensorLayout(found.name, dtype, found.shape, None, start, found.length)


def _printable(text: str) -> str:
    if len(text) > 2000 or not text.isprintable():
        raise _nonsense("a note that can't be shown")
    return text


def _nonsense(what: str) -> Format:
    return Format(f"HDF5 could not read it: its process gave no proper answer ({what[:100]})")
