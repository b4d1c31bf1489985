"""Finding, making and opening stores, wherever they are."""

from pathlib import Path

from tensorkeep.catalog.access import open_catalog
from tensorkeep.catalog.postgres_url import parse_postgres_url
from tensorkeep.errors import AlreadyExists, NotFound
from tensorkeep.records.layout import JOURNAL_SNAPSHOT_EVERY
from tensorkeep.records.redundancy import Policy, Replicas
from tensorkeep.runtime import Runtime
from tensorkeep.store.context import StoreContext
from tensorkeep.store.database_place import DatabasePlace
from tensorkeep.store.fleet import DeviceOpener, Fleet, open_by_facts
from tensorkeep.store.folder_place import FolderPlace
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.node_cache import NodeCache
from tensorkeep.store.place import Place


def find_place(location: Path | str) -> Place:
    """Return the place of a store: a folder, or a ``postgresql://`` URL (text).

    Raises:
        InvalidInput: the URL can't be read.
    """
    return FolderPlace(location) if isinstance(location, Path) else DatabasePlace(parse_postgres_url(location))


def open_store(
    location: Path | str,
    *,
    runtime: Runtime,
    cache_root: Path | None,
    user: str,
    node_cache: NodeCache | None = None,
    policy: Policy | None = None,
    create: bool = True,
    exist_ok: bool = True,
    opener: DeviceOpener = open_by_facts,
    snapshot_every: int = JOURNAL_SNAPSHOT_EVERY,
) -> StoreContext:
    """Return the store at a location; one is made where the folder is missing or empty.

    A database gets one only where ``exist_ok`` is False, which is how `init` asks: there, a lost catalog looks like a store
    that never was.

    ``opener`` and ``snapshot_every`` (entries between two snapshots of the journal) are for tests: other devices than the
    catalog's rows describe, and a history that is trimmed soon.

    Raises:
        AlreadyExists: there is one and ``exist_ok`` is False.
        InvalidInput: something else is there.
        NotFound: the store's catalog is lost (remedy: rebuild-catalog), or there is none and ``create`` is False.
    """
    place = find_place(location)
    if place.has_catalog(runtime):
        if not exist_ok:
            raise AlreadyExists(
                f"{place.shown} is a store already: open it, or choose another place", store=place.shown
            )
    elif create and (place.made_by_opening or not exist_ok):
        _create(place, policy or Replicas(1), runtime)
    else:
        raise NotFound(
            f"{place.shown} holds no store: `tensorkeep --store {place.shown} init` makes one; if there was one, "
            "`tensorkeep rebuild-catalog --from URL...` brings it back from its devices",
            store=place.shown,
        )
    read_only = not place.may_write(runtime)
    catalog = open_catalog(place.catalog_url, runtime=runtime, read_only=read_only, snapshot_every=snapshot_every)
    cache = cache_root / catalog.info().store if cache_root else None
    fleet = Fleet(catalog, runtime=runtime, opener=opener)
    return StoreContext(catalog, fleet, runtime, place, cache, node_cache, read_only=read_only, user=user)


def _create(place: Place, policy: Policy, runtime: Runtime) -> None:
    place.create(new_ulid(runtime), str(policy), runtime)
