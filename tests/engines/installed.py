"""Which engines a test needs, and which of them this machine has: the marks ``ceph`` and ``postgres``."""

import pytest

from tests.engines.ceph import Ceph
from tests.engines.postgres import Postgres

_ENGINE_OF_FIXTURE = {"ceph": Ceph.NAME, "postgres_server": Postgres.NAME}


def engines_of(item: pytest.Item) -> set[str]:
    """Return the names of the engines that a test asks for by fixture."""
    return {_ENGINE_OF_FIXTURE[name] for name in getattr(item, "fixturenames", ()) if name in _ENGINE_OF_FIXTURE}


def missing_engines() -> list[str]:
    """Return the names of the engines that are not installed."""
    return [engine.NAME for engine in (Ceph, Postgres) if not engine.is_installed()]
