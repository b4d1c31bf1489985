"""The in-memory reference keeps the catalog's contract."""

from pathlib import Path

from tensorkeep.catalog.memory import MemoryCatalog
from tensorkeep.catalog.protocol import Catalog
from tensorkeep.runtime import Runtime
from tensorkeep.testing.catalog_contract import CatalogContract
from tensorkeep.testing.catalog_fixtures import STORE


class TestMemoryCatalog(CatalogContract):
    def make_catalog(
        self, folder: Path, runtime: Runtime, *, policy: str | None = "replicas=1", snapshot_every: int = 1000
    ) -> Catalog:
        return MemoryCatalog(store=STORE, policy=policy, runtime=runtime, snapshot_every=snapshot_every)
