"""A store in a PostgreSQL database: its catalog is a schema, its lock an advisory lock on a session of its own."""

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from tensorkeep.catalog.access import create_catalog, replace_catalog
from tensorkeep.catalog.postgres_access import database_lock, find_in_database, may_write
from tensorkeep.catalog.postgres_url import PostgresUrl
from tensorkeep.catalog.protocol import Catalog, CatalogImage
from tensorkeep.errors import AlreadyExists
from tensorkeep.runtime import Runtime
from tensorkeep.store.place import LockCheck, StoreNote


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """A `Place` at a ``postgresql://`` URL."""

    url: PostgresUrl

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return self.url.shown

    @property
    def catalog_url(self) -> str:
        """The URL with all that it was given."""
        return self.url.given

    @property
    def made_by_opening(self) -> bool:
        """False: nothing beside the schema tells a lost catalog from a store that never was."""
        return False

    @property
    def first_device(self) -> Path | None:
        """None: a database has no folder, and clients are on many hosts."""
        return None

    def lock(self, *, shared: bool) -> AbstractContextManager[LockCheck]:
        """Hold the store's lock, which ends with its session."""
        return database_lock(self.url, shared=shared)

    def has_catalog(self, runtime: Runtime) -> bool:
        """Return whether the schema holds a catalog."""
        return find_in_database(self.url, runtime)

    def may_write(self, runtime: Runtime) -> bool:
        """Return whether the role may change it and the server takes changes."""
        return may_write(self.url, runtime)

    def create(self, store: str, policy: str, runtime: Runtime) -> None:
        """Make a catalog in a schema that has none."""
        with suppress(AlreadyExists):  # made by another process meanwhile: it is the store's
            create_catalog(self.catalog_url, store=store, policy=policy, runtime=runtime).close()

    def prepare_rebuild(self) -> None:
        """Nothing: the lock needs only the database."""

    def install(self, image: CatalogImage, runtime: Runtime) -> str | None:
        """Replace the schema in one transaction; the old one keeps its tables under another name."""
        return replace_catalog(self.catalog_url, image, runtime=runtime)

    def find_note(self) -> StoreNote | None:
        """None: users name devices."""
        return None

    def write_note(self, catalog: Catalog) -> None:
        """Nothing: a note beside the catalog would be lost with it."""
