"""The backends that the suite runs on: which engines each needs, and how stores and devices are made of them."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.catalog_homes import CatalogHome, PostgresHome
from tests.e2e.shelves import PrefixShelf, Shelf
from tests.e2e.workshop import SQLITE_LOCAL, Backend, folder_shelf
from tests.engines.fixtures import PostgresAccount
from tests.engines.servers import S3Account

BACKENDS: dict[str, tuple[str, ...]] = {
    "sqlite-local": (),
    "postgres-local": ("postgres",),
    "postgres-s3": ("postgres", "ceph"),
    "mixed": ("ceph",),
}
"""Names, and the marks of the engines that they need. ``mixed`` is SQLite with two local devices to one in S3."""

USUAL_BACKEND = "sqlite-local"
"""The one of every run of all tests."""

_CREDENTIALS_NAME = "TENSORKEEP_TESTS"
CREDENTIALS = (f"{_CREDENTIALS_NAME}_ACCESS_KEY_ID", f"{_CREDENTIALS_NAME}_SECRET_ACCESS_KEY")
"""The variables that hold the key of S3 devices."""


def open_backend(name: str, request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> Backend:
    """Return a backend with its engines running and their credentials in the environment."""
    home, shelf = SQLITE_LOCAL.home, SQLITE_LOCAL.shelf
    if "postgres" in BACKENDS[name]:
        home = _postgres_homes(request.getfixturevalue("postgres_server"))
    if "ceph" in BACKENDS[name]:
        account = request.getfixturevalue("ceph")
        for variable, value in account.environment(_CREDENTIALS_NAME).items():
            patch.setenv(variable, value)
        shelf = _prefix_shelves(account, request.getfixturevalue("ceph_bucket"))
        if name == "mixed":
            shelf = _every_third(shelf)
    return Backend(name, home, shelf)


_numbers = itertools.count()
"""Of databases and prefixes of this process."""


def _postgres_homes(server: PostgresAccount) -> Callable[[Path], CatalogHome]:
    def home(_: Path) -> CatalogHome:
        name = f"e2e_{os.getpid()}_{next(_numbers)}"
        return PostgresHome(server.make_database(name), lambda: server.drop_database(name))

    return home


def _prefix_shelves(account: S3Account, bucket: str) -> Callable[[Path, int], Shelf]:
    def shelf(_: Path, number: int) -> Shelf:
        return PrefixShelf(
            account, bucket, f"e2e/{next(_numbers)}/disk{number}", credentials=f"env:{_CREDENTIALS_NAME}"
        )

    return shelf


def _every_third(far: Callable[[Path, int], Shelf]) -> Callable[[Path, int], Shelf]:
    """Return shelves of which the second is far, and every third after it: of two devices one is."""

    def shelf(folder: Path, number: int) -> Shelf:
        return far(folder, number) if number % 3 == 1 else folder_shelf(folder, number)

    return shelf
