"""What every part of the catalog's contract is handed: a catalog of the kind under test, and a scene around it."""

from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from tensorkeep.catalog.protocol import Catalog
from tensorkeep.records.ulid import make_ulid
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.catalog_scene import Scene, seeded_runtime

STORE = make_ulid(ManualClock().now(), bytes(10))


class CatalogFixtures(ABC):
    """Subclassed once for each kind of catalog."""

    @abstractmethod
    def make_catalog(
        self, folder: Path, runtime: Runtime, *, policy: str | None = "replicas=1", snapshot_every: int = 1000
    ) -> Catalog:
        """Return a new catalog of `STORE` in an empty folder; without a policy, one that waits for `load_image`."""

    def other_handle(self, catalog: Catalog, folder: Path, runtime: Runtime) -> Catalog:  # noqa: ARG002 - for subclasses
        """Return another handle of the same catalog, where its kind has such."""
        return catalog

    @pytest.fixture
    def runtime(self) -> Runtime:
        """Return a seeded runtime whose clock moves only when told."""
        return seeded_runtime()

    @pytest.fixture
    def scene(self, tmp_path: Path, runtime: Runtime) -> Scene:
        """Return a scene around a new catalog without devices."""
        return Scene(self.make_catalog(tmp_path, runtime), runtime)
