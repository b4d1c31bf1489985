"""What every verb is handed: the store's catalog, its devices, the runtime, and where it is."""

from dataclasses import dataclass
from pathlib import Path

from tensorkeep.catalog.protocol import Catalog
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import Fleet
from tensorkeep.store.node_cache import NodeCache
from tensorkeep.store.place import Place


@dataclass(frozen=True, slots=True)
class StoreContext:
    """One open store.

    ``place`` is where the store is; ``cache_folder`` where caches that may be lost lie (None: no caches), ``node_cache`` the
    parts that this machine keeps for all its processes (None: it keeps none). ``user`` is the default author of versions.
    """

    catalog: Catalog
    fleet: Fleet
    runtime: Runtime
    place: Place
    cache_folder: Path | None
    node_cache: NodeCache | None = None
    read_only: bool = False
    user: str = ""
