"""How fast structure is: planning, opening and one tensor of models with very many tensors or parts; and how right plans are.

What a user waits for is measured in processes of their own, imports included where the figure is of a command.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.figures import Figure
from bench.giant import commit_giant
from bench.rounds import files_under, size_of
from bench.work import WORK, get_model, new_store, remove

MODEL = "bench/model"
TENSOR = "model.layers.31.mlp.experts.77.up_proj.weight"
MODELS = ("minilm", "tiny", "small", "moe", "finetune", "frozen", "steps")
LOAD_SECONDS = 2.0
"""What a load from the throttled devices takes at least: long beside what is not reading, short beside a coffee."""
MOST_RATE = 120_000_000
"""Of one of three devices: together they must not give more than a machine of two cores reads into new memory."""

_OPEN = """
import sys, time, tensorkeep
store = tensorkeep.open(sys.argv[1])
store.models()  # the catalog is open
start = time.perf_counter()
store.model(sys.argv[2])
print(time.perf_counter() - start)
"""

_LOAD_ONE = """
import sys, tensorkeep
assert tensorkeep.open(sys.argv[1]).model(sys.argv[2])[sys.argv[3]].load().size
"""

_LOAD_ALL = """
import sys, time, tensorkeep
model = tensorkeep.open(sys.argv[1]).model(sys.argv[2])
start = time.perf_counter()
model.load()
print(time.perf_counter() - start)
"""

_LOAD_CPU = """
import sys, time, tensorkeep, xxhash
from pathlib import Path
model = tensorkeep.open(sys.argv[1]).model(sys.argv[2])
model.load(framework=sys.argv[3])  # imports
start = time.process_time()
loaded = model.load(framework=sys.argv[3])
load = time.process_time() - start
buffer = memoryview(bytearray(1 << 20))
start = time.process_time()
for part in Path(sys.argv[1]).glob("devices/*/parts/**/*"):
    if part.is_file():
        with part.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                for at in range(0, size, 256 << 10):
                    xxhash.xxh3_64_intdigest(buffer[at:at + (256 << 10)])
print(load - (time.process_time() - start))
"""
"""CPU seconds of a verified load, less those of reading the same parts and hashing their blocks: what is planning and bookkeeping."""


def structure_figures(rounds: int) -> list[Figure]:
    """Return the figures of structure, each beside its bar."""
    return [*_moe(rounds), _giant(rounds), *_predictions()]


def _moe(rounds: int) -> list[Figure]:
    source = get_model("moe")
    with new_store("accept-moe", devices=3) as store:
        store.push(source, MODEL)
    folder = WORK / "accept-moe"
    new_store("accept-empty", devices=3).close()
    command = [str(Path(sys.executable).with_name("tensorkeep")), "plan", str(source)]
    figures = [
        Figure(
            "moe, 60,000 tensors: tensorkeep plan",
            _wall([*command, "--store", str(WORK / "accept-empty")], rounds),
            5.0,
            "s",
        ),
        Figure("moe: open its structure", _printed(_OPEN, rounds, folder, MODEL), 1.0, "s"),
        Figure(
            "moe: one tensor, in a fresh process", _wall(_python(_LOAD_ONE, folder, MODEL, TENSOR), rounds), 1.5, "s"
        ),
        Figure("moe: push again, unchanged but for its times", _push_again(source, folder), 10.0, "s"),
        Figure("moe: load all", _printed(_LOAD_ALL, rounds, folder, MODEL), 5.0, "s"),
        Figure("moe: CPU of planning a load and keeping its books", _load_cpu(rounds, folder, "numpy"), 1.0, "s"),
        Figure("moe: the same, torch", _load_cpu(rounds, folder, "torch"), 1.5, "s"),
    ]
    remove("accept-moe")
    remove("accept-empty")
    return figures


def _load_cpu(rounds: int, folder: Path, framework: str) -> float:
    return _printed(_LOAD_CPU, rounds, folder, MODEL, framework)


def _push_again(source: Path, folder: Path) -> float:
    """Return the seconds of a push that reads every header and every byte, and finds all of it there."""
    with tensorkeep.open(folder) as store:
        start = time.perf_counter()
        report = store.push(source, MODEL, rehash=True).report
        seconds = time.perf_counter() - start
    assert report is not None
    assert (report.new_parts, report.created) == (0, False)
    return seconds


def _giant(rounds: int) -> Figure:
    folder = WORK / "giant"  # takes minutes to make, so it is kept
    if not (folder / "done").exists():
        with new_store("giant") as store:
            commit_giant(store, MODEL)
        (folder / "done").touch()
    return Figure("10 TiB, 100,000 tensors, 10⁶ parts: open", _printed(_OPEN, rounds, folder, MODEL), 1.0, "s")


def _predictions() -> list[Figure]:
    """Return, for every model on three throttled devices, how far the plan's load time is from the actual one, as a share.

    What each device gets must be what the plan said, to the byte.
    """
    figures = []
    for name in MODELS:
        source = get_model(name)
        rate = min(int(size_of(source) / (3 * LOAD_SECONDS)), MOST_RATE)
        with new_store("accept-plan", devices=3, rate_limit=rate) as store:
            plan = store.plan(source)
            store.push(source, MODEL)
            written = {d.name: _part_bytes(WORK / "accept-plan" / "devices" / d.name) for d in plan.devices}
            planned = {device.name: device.bytes for device in plan.devices}
            assert planned == written, f"{name}: planned {planned}, written {written}"
            model = store.model(MODEL)
            model.load()
            assert model.report is not None
            error = abs(plan.load_seconds - model.report.seconds) / model.report.seconds
            figures.append(
                Figure(f"{name}, 3 throttled devices: |planned - actual| / actual load time", error, 0.3, "")
            )
    remove("accept-plan")
    return figures


def _part_bytes(device: Path) -> int:
    return sum(path.stat().st_size for path in files_under(device / "parts"))


def _python(code: str, *words: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, words)]


def _wall(command: list[str], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _printed(code: str, rounds: int, *words: object) -> float:
    """Return the median of the seconds that a program prints."""
    runs = [
        subprocess.run(_python(code, *words), check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        for _ in range(rounds)
    ]
    return statistics.median(float(run.stdout) for run in runs)
