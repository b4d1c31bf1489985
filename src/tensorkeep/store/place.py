"""The place of a store: where its catalog is made, found, locked and replaced. Verbs know only this, not folders.

`FolderPlace` (``folder_place``) keeps a SQLite catalog in a folder, with a note of the devices beside it and room for a first
device. `DatabasePlace` (``database_place``) is a schema in a PostgreSQL database, which has neither.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from tensorkeep.catalog.protocol import Catalog, CatalogImage
from tensorkeep.errors import NotFound
from tensorkeep.runtime import Runtime

NOTE_FORMAT = 1

LockCheck = Callable[[], None]


class StoreNote(msgspec.Struct, frozen=True, kw_only=True):
    """What helps to rebuild a lost catalog: the store's id and where its devices were. A hint, never the truth."""

    format: int = NOTE_FORMAT
    store: str
    devices: tuple[str, ...] = ()


class Place(Protocol):
    """Where a store is. ``shown`` is what messages call it, without secrets."""

    @property
    def shown(self) -> str:
        """The place as text for users, without secrets."""

    @property
    def catalog_url(self) -> str:
        """The catalog's URL; it may hold a password and is never shown."""

    @property
    def made_by_opening(self) -> bool:
        """Whether opening makes a store where none is. Not where that could hide that a catalog was lost."""

    @property
    def first_device(self) -> Path | None:
        """The folder that the first push makes a device where there is none; None: users add their own."""

    def lock(self, *, shared: bool) -> AbstractContextManager[LockCheck]:
        """Hold the store's lock: those that make, rebuild and delete take turns; shared ones hold it together.

        Yields what raises `Unavailable` where the lock was lost meanwhile: asked before each step that needs it.
        """

    def has_catalog(self, runtime: Runtime) -> bool:
        """Return whether a catalog is there, whole or damaged."""

    def may_write(self, runtime: Runtime) -> bool:
        """Return whether the catalog that is there can be changed."""

    def create(self, store: str, policy: str, runtime: Runtime) -> None:
        """Make a catalog where none is; another process may have made one meanwhile, which is then the store's.

        Raises:
            InvalidInput: something else is there.
            NotFound: a store was there whose catalog is gone.
        """

    def prepare_rebuild(self) -> None:
        """Make what must be there before `lock`."""

    def install(self, image: CatalogImage, runtime: Runtime) -> str | None:
        """Put a catalog made from an image in the place of what is there; return what the old one is called now, if any."""

    def find_note(self) -> StoreNote | None:
        """Return what is remembered of the store, or None."""

    def write_note(self, catalog: Catalog) -> None:
        """Remember where the devices are; a failure is no error, because it is a hint."""


def get_first_device(place: Place) -> Path:
    """Return the folder that a first push makes a device.

    Raises:
        NotFound: the store is in no folder, so that its users add devices.
    """
    if place.first_device is None:
        raise NotFound(
            f"the store {place.shown} has no devices: add one with `tensorkeep device add NAME URL`", store=place.shown
        )
    return place.first_device
