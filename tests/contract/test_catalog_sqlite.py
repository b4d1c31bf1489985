"""The catalog on SQLite keeps the contract, with two handles on one file."""

from pathlib import Path

from tensorkeep.catalog.access import create_catalog, create_empty_catalog, open_catalog
from tensorkeep.catalog.protocol import Catalog
from tensorkeep.runtime import Runtime
from tensorkeep.testing.catalog_contract import CatalogContract
from tensorkeep.testing.catalog_fixtures import STORE


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/catalog.sqlite"


class TestSqliteCatalog(CatalogContract):
    def make_catalog(
        self, folder: Path, runtime: Runtime, *, policy: str | None = "replicas=1", snapshot_every: int = 1000
    ) -> Catalog:
        if policy is None:
            return create_empty_catalog(url_of(folder), store=STORE, runtime=runtime, snapshot_every=snapshot_every)
        return create_catalog(
            url_of(folder), store=STORE, policy=policy, runtime=runtime, snapshot_every=snapshot_every
        )

    def other_handle(self, catalog: Catalog, folder: Path, runtime: Runtime) -> Catalog:
        return open_catalog(url_of(folder), runtime=runtime)
