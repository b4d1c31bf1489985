"""The folder that benches work in, ``.bench/``: models made once, stores made anew."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when a bench is run as a file

import tensorkeep
from bench.make_models import find_minilm, make_model

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench"
RESULTS = ROOT / "bench" / "results"


def get_model(name: str) -> Path:
    """Return the folder of a model, made (or, for ``minilm``, fetched) where it is not there yet."""
    if name == "minilm":
        return find_minilm(WORK / "models")
    folder = WORK / "models" / name
    return folder if folder.exists() else make_model(name, folder)


def remove(name: str) -> Path:
    """Return a path in the work folder where nothing is."""
    path = WORK / name
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def new_store(name: str, *, devices: int = 1, rate_limit: int | None = None) -> tensorkeep.Store:
    """Return a new store in the work folder, its devices in folders of its own."""
    folder = remove(name)
    store = tensorkeep.init(folder)
    for number in range(devices):
        path = folder / "devices" / f"d{number}"
        store.devices.add(f"d{number}", f"file://{path}", bandwidth=rate_limit or 10**9, rate_limit=rate_limit)
    return store
