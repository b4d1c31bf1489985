"""The public line: what `tensorkeep.__all__` says, written out, so that a name is never added or lost by accident."""

import os
import subprocess
import sys
from pathlib import Path

import tensorkeep


def test_the_public_names_are_these() -> None:
    assert tensorkeep.__all__ == [
        "AlreadyExists",
        "Capacity",
        "Conflict",
        "ConformanceReport",
        "DeviceCollection",
        "Diff",
        "Format",
        "GcReport",
        "Integrity",
        "Internal",
        "InvalidInput",
        "JoinReport",
        "LoadPlan",
        "LoadReport",
        "Model",
        "NotEnoughCopies",
        "NotFound",
        "PermissionDenied",
        "PrefetchReport",
        "PushForecast",
        "RebuildReport",
        "Shard",
        "SplitReport",
        "StatusReport",
        "Store",
        "TensorHandle",
        "TensorkeepError",
        "Unavailable",
        "VerifyReport",
        "Version",
        "__version__",
        "init",
        "join_file",
        "open",
        "rebuild_catalog",
        "split_file",
    ]


def test_every_public_name_is_there_and_documented() -> None:
    for name in tensorkeep.__all__:
        value = getattr(tensorkeep, name)
        assert name.startswith("__") or value.__doc__, name


def test_importing_tensorkeep_imports_no_framework_and_nothing_slow() -> None:
    program = "import sys, tensorkeep; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"torch", "jax", "sqlalchemy", "alembic", "numpy", "rich", "typer"} & set(result.stdout.split())


def test_a_store_on_disks_loads_no_client_of_another_place(tmp_path: Path) -> None:
    program = (
        "import sys, numpy, tensorkeep\n"
        "with tensorkeep.init(sys.argv[1]) as store:\n"
        "    store.push({'w': numpy.ones(3)}, 'm')\n"
        "    store.model('m').load()\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "store")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    assert not {"obstore", "psycopg", "psycopg_pool", "boto3", "httpx"} & set(result.stdout.split())
