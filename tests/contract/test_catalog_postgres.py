"""The catalog on PostgreSQL keeps the contract, with two handles on one database of a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorkeep.catalog.access import create_catalog, create_empty_catalog, open_catalog
from tensorkeep.catalog.protocol import Catalog
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.runtime import Runtime
from tensorkeep.testing.catalog_contract import CatalogContract
from tensorkeep.testing.catalog_fixtures import STORE


class TestPostgresCatalog(CatalogContract):
    @pytest.fixture(autouse=True)
    def fresh(self, store_urls: Iterator[str]) -> Iterator[None]:
        self.store_urls = store_urls
        self.urls: dict[Path, str] = {}
        self.made: list[SqlCatalog] = []
        yield
        for catalog in self.made:
            catalog.close()

    def make_catalog(
        self, folder: Path, runtime: Runtime, *, policy: str | None = "replicas=1", snapshot_every: int = 1000
    ) -> Catalog:
        url = self.urls[folder] = next(self.store_urls)
        if policy is None:
            made = create_empty_catalog(url, store=STORE, runtime=runtime, snapshot_every=snapshot_every)
        else:
            made = create_catalog(url, store=STORE, policy=policy, runtime=runtime, snapshot_every=snapshot_every)
        self.made.append(made)
        return made

    def other_handle(self, catalog: Catalog, folder: Path, runtime: Runtime) -> Catalog:
        self.made.append(open_catalog(self.urls[folder], runtime=runtime))
        return self.made[-1]
