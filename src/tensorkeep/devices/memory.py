"""Objects in this process's memory (``memory://name``): for trials and tests. Soft: they end with the process."""

import threading
from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views, count_bytes
from tensorkeep.devices.object_names import check_object_name, folders_to_list
from tensorkeep.devices.protocol import ObjectInfo
from tensorkeep.errors import AlreadyExists, Integrity, InvalidInput, NotFound, Unavailable
from tensorkeep.records.device import Durability


class _Space:
    """What one name holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.identity: bytes | None = None
        self.forgotten = False


_spaces: dict[str, _Space] = {}
_spaces_lock = threading.Lock()


def forget_memory(name: str) -> None:
    """Drop all objects of ``memory://name``. Devices that are open on it become `Unavailable`; opened again it is empty."""
    with _spaces_lock:
        space = _spaces.pop(name, None)
    if space is not None:
        with space.lock:
            space.forgotten = True
            space.objects.clear()


class MemoryDevice:
    """The objects under a name: devices of one name in one process share them. Thread safe.

    Args:
        name: what stands after ``memory://``.
    """

    def __init__(self, name: str) -> None:
        self._url = f"memory://{name}"
        with _spaces_lock:
            self._space = _spaces.setdefault(name, _Space())

    @property
    def url(self) -> str:
        """``memory://name``."""
        return self._url

    @property
    def durability(self) -> Durability:
        """Always ``soft``."""
        return "soft"

    def prepare(self) -> None:
        """Do nothing: no folder is needed."""
        self._present()

    def read_identity(self) -> bytes | None:
        """Return the identity, or None."""
        return self._present().identity

    def replace_identity(self, data: bytes) -> None:
        """Set the identity."""
        self._present().identity = bytes(data)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Keep a copy of the bytes under a new name."""
        check_object_name(name)
        content = b"".join(byte_views(data))
        space = self._present()
        with space.lock:
            if name in space.objects:
                raise AlreadyExists(
                    f"{name} is already on {self._url}: physical names are never used twice",
                    device=self._url,
                    object=name,
                )
            space.objects[name] = content

    def flush(self) -> None:
        """Return: a put is as durable as it gets here."""
        self._present()

    def adopt_names(self) -> None:
        """Return: a put is as durable as it gets here."""
        self._present()

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Copy bytes of an object into the buffers."""
        content = self.read(name)
        if offset < 0:
            raise InvalidInput(f"reading {name} from the negative offset {offset}", object=name, offset=offset)
        views = byte_views(buffers)
        end = offset + count_bytes(views)
        if end > len(content):
            raise Integrity(
                f"{name} on {self._url} is shorter than expected: {len(content)} bytes where {end} are needed",
                device=self._url,
                object=name,
                size_bytes=len(content),
                needed_bytes=end,
            )
        source = memoryview(content)
        for view in views:
            view[:] = source[offset : offset + view.nbytes]
            offset += view.nbytes

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        check_object_name(name)
        content = self._present().objects.get(name)
        if content is None:
            raise NotFound(f"{name} is not on {self._url}", device=self._url, object=name)
        return content

    def size_of(self, name: str) -> int:
        """Return the size of an object in bytes."""
        return len(self.read(name))

    def iter_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects that are there now under a folder prefix; ``""`` is every folder of the layout but ``tmp``."""
        starts = tuple(f"{folder}/" for folder in folders_to_list(prefix))
        space = self._present()
        with space.lock:
            found = [ObjectInfo(name, len(data)) for name, data in space.objects.items() if name.startswith(starts)]
        return iter(found)

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        check_object_name(name)
        space = self._present()
        with space.lock:
            space.objects.pop(name, None)

    def sweep_unfinished(self, older_than_s: float) -> int:  # noqa: ARG002 - the protocol's name
        """Return 0: a put leaves nothing unfinished."""
        self._present()
        return 0

    def free_bytes(self) -> int | None:
        """Return None: nobody knows."""
        self._present()
        return None

    def _present(self) -> _Space:
        if self._space.forgotten:
            raise Unavailable(f"{self._url} was forgotten: open it again", device=self._url, reason="forgotten")
        return self._space
