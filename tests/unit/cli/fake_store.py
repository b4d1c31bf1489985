"""A store of canned reports for the command line's tests: it notes every call and can be told to fail."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

from tensorkeep.cli.session import Doors
from tensorkeep.devices.bench import ReaderRate
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.conformance_report import ConformanceReport, ProbeResult
from tensorkeep.records.device import DeviceFacts
from tensorkeep.store.join_file import JoinReport
from tensorkeep.store.known_names import KnownNames
from tensorkeep.store.pull import PullReport
from tensorkeep.store.reports import (
    DeviceBench,
    DeviceForecast,
    DeviceScrub,
    DeviceStatus,
    Diff,
    DrainReport,
    FileChange,
    FileForecast,
    FileInfo,
    FileNote,
    FilePart,
    GcReport,
    LayerBalance,
    LogEntry,
    ModelPolicy,
    ModelSummary,
    ObjectLeft,
    PolicyReport,
    PolicyTable,
    PrefetchReport,
    Problem,
    Progress,
    PushForecast,
    PushReport,
    RebalanceReport,
    RebuildReport,
    RepairReport,
    RetentionReport,
    ScrubReport,
    ShortVersion,
    StatusReport,
    TensorChange,
    TensorInfo,
    TensorStats,
    UsageReport,
    UsageRow,
    VerifyReport,
    Version,
)
from tensorkeep.store.saving import SaveReport
from tensorkeep.store.split_file import SplitReport
from tensorkeep.transfer.report import Damage, DeviceLoad, DevicePlan, LoadPlan, LoadReport, PlannedTensor

NEW_ID = "4f1c2ab" + "0" * 33
OLD_ID = "99e0d1c" + "1" * 33
MODEL = "acme/llama"

FACTS = DeviceFacts(
    id="01J0000000000000000000000A",
    name="nvme0",
    url="file:///mnt/nvme0",
    zone="rack1",
    durability="durable",
    capacity=2_000_000_000_000,
    bandwidth=3_000_000_000,
    conformance=Conformance(
        checked_at="2026-01-02T03:04:05.678901Z",
        form="short",
        verdict="accepted",
        conditional_create="exact",
        file_system="ext4",
        read_p50_us=90,
        read_p99_us=200,
        write_p50_us=1900,
        write_p99_us=12_000,
    ),
)
CHECK = ConformanceReport(
    name="nvme0",
    url="file:///mnt/nvme0",
    durability="durable",
    free_bytes=10**12,
    probes=(
        ProbeResult("fsync", "passed", "files and folders can be synced", {"file_seconds": 0.002}, 0.01),
        ProbeResult("clock", "not_applicable", "not asked of folders", {}, 0.0),
    ),
    conformance=FACTS.conformance or Conformance(checked_at="", form="full", verdict="accepted"),
    seconds=1.5,
)
REFUSED = ConformanceReport(
    name=None,
    url="s3://weights?endpoint=http://127.0.0.1:9000",
    durability="durable",
    free_bytes=None,
    probes=(ProbeResult("http_ranges", "failed", "it ignores ranges", {}, 0.01, "invalid_input"),),
    conformance=Conformance(
        checked_at="2026-01-02T03:04:05.678901Z",
        form="full",
        verdict="refused",
        refusal="http_ranges: it ignores ranges",
    ),
    seconds=0.5,
)
BENCH = DeviceBench(
    name="nvme0",
    url="file:///mnt/nvme0",
    size_bytes=268_435_456,
    write_rate=900_000_000,
    read_latency_seconds=0.000_085,
    read_rates=(ReaderRate(1, 1_500_000_000), ReaderRate(2, 2_500_000_000), ReaderRate(4, 2_600_000_000)),
    best_readers=2,
    best_rate=2_500_000_000,
    bandwidth=2_500_000_000,
    rate_limit=None,
    given=False,
    saved=True,
)
DEVICE = DeviceStatus(
    facts=FACTS, problem=None, objects=12, bytes=1_500_000_000, bad_objects=0, free_bytes=10**12, journal_behind=0
)
DOWN_DEVICE = DeviceStatus(
    facts=DeviceFacts(
        id="01J0000000000000000000000B",
        name="hdd0",
        url="file:///mnt/hdd0",
        zone="hdd0",
        durability="soft",
        untrusted=True,
    ),
    problem="its folder is empty",
    objects=3,
    bytes=1000,
    bad_objects=2,
    free_bytes=None,
    journal_behind=4,
)
PUSH_REPORT = PushReport(
    created=True,
    files=3,
    bytes=2_000_000_000,
    parts=125,
    new_parts=5,
    new_bytes=80_000_000,
    written_bytes=160_000_000,
    device_bytes={"nvme0": 80_000_000, "nvme1": 80_000_000},
    method="tensor",
    part_size=16 * 2**20,
    why="safetensors files of 3 tensors",
    seconds=2.0,
    warnings=("device nvme1 is nearly full",),
    notes=(FileNote("old.bin", "it is compressed"),),
)
FORECAST = PushForecast(
    model=MODEL,
    method="layer",
    part_size=16 * 2**20,
    why="layers are scattered over the files",
    bytes=2_000_000_000,
    parts=125,
    new_parts=5,
    new_packs=2,
    new_bytes=80_000_000,
    exact=False,
    files=(
        FileForecast("model.safetensors", 1_999_999_000, "safetensors", 2, "", kept=True),
        FileForecast("old.bin", 1000, "opaque", 0, "it is compressed", kept=False),
    ),
    devices=(
        DeviceForecast("nvme0", 3, 48_000_000, 1_000_000_000, 1.25),
        DeviceForecast("nvme1", 2, 32_000_000, 900_000_000, 1.0),
    ),
    layers=LayerBalance(32, "layers.3", 0.05, 0.93),
    warnings=("up to 1 part would not find room",),
)
VERSION = Version(
    id=NEW_ID,
    model=MODEL,
    parent=OLD_ID,
    message="second weights",
    author="ada",
    created_at="2026-01-02T03:04:05.678901Z",
    total_bytes=2_000_000_000,
    policy="replicas=2",
    branches=("main",),
    tags=("v2",),
)
OLD_VERSION = Version(
    id=OLD_ID,
    model=MODEL,
    parent=None,
    message="first weights",
    author="ada",
    created_at="2026-01-01T03:04:05.678901Z",
    total_bytes=1_900_000_000,
    policy="replicas=2",
    tags=("v1",),
)
LOAD_REPORT = LoadReport(
    bytes_needed=2_000_000_000,
    bytes_read=2_000_500_000,
    seconds=1.25,
    devices=(
        DeviceLoad(id=FACTS.id, name="nvme0", bytes=1_000_000_000, seconds=1.25, predicted_seconds=1.0),
        DeviceLoad(id="B", name="nvme1", bytes=1_000_500_000, seconds=0.5, predicted_seconds=0.6),
    ),
    damaged=(),
    retried=0,
    verify="blocks",
)
LOAD_PLAN = LoadPlan(
    tensors=(
        PlannedTensor("h.0.w", "BF16", (32, 64), (16, 0), (16, 64), 2048),
        PlannedTensor("b", "F32", (), (), (), 4),
    ),
    bytes_needed=1_000_000_000,
    bytes_read=1_016_000_000,
    devices=(
        DevicePlan(id=FACTS.id, name="nvme0", bytes=516_000_000, predicted_seconds=0.25),
        DevicePlan(id="B", name="nvme1", bytes=500_000_000, predicted_seconds=0.75),
    ),
    verify="blocks",
)
DAMAGE = Damage(
    location=7, part=3, device="B", device_name="nvme1", reason="block 2 does not fit its check", kind="corrupt"
)
FILES = [
    FileInfo(path="model.safetensors", size_bytes=2_000_000_000, format="safetensors", sha256="ab" * 32, tensors=3)
]
TENSORS = [
    TensorInfo(name="b", dtype="F32", shape=(), size_bytes=4, file="model.safetensors", start=80, digest="cd" * 32),
    TensorInfo(
        name="h.0.w",
        dtype="BF16",
        shape=(32, 64),
        size_bytes=4096,
        file="model.safetensors",
        start=84,
        digest="ef" * 32,
    ),
    TensorInfo(
        name="tied.w",
        dtype="BF16",
        shape=(32, 64),
        size_bytes=4096,
        file="model.safetensors",
        start=84,
        digest="ef" * 32,
    ),
]
METADATA: dict[str, dict[str, Any]] = {
    "model.gguf": {
        "general.name": "tiny\x1b[31m\nllama",
        "tokenizer.ggml.tokens": [f"token {index}" for index in range(151_936)],
        "tokenizer.chat_template": "x" * 4321,
        "llama.block_count": 36,
        "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
        "tokenizer.ggml.add_bos_token": True,
        "nested": [[1, 2], []],
    }
}
DIFF = Diff(
    old=OLD_ID,
    new=NEW_ID,
    files=(FileChange(kind="changed", path="model.safetensors", size_bytes=10, old_size_bytes=9),),
    tensors=(
        TensorChange(
            kind="renamed",
            name="w",
            dtype="F32",
            shape=(2,),
            old_dtype="F32",
            old_shape=(2,),
            size_bytes=8,
            old_name="v",
        ),
        TensorChange(
            kind="changed",
            name="x",
            dtype="F32",
            shape=(2, 2),
            old_dtype="BF16",
            old_shape=(2, 2),
            size_bytes=16,
            stats=TensorStats("elements", 4, 1, 0.25, 0.25, 1, "BF16 and F32 compared as float64"),
        ),
    ),
)


FILE_PARTS = (
    FilePart(1, "/mnt/a/model.bin.part-1-of-2", 0, 1_000_000, "ab" * 32, "cd" * 32),
    FilePart(2, "/mnt/b/model.bin.part-2-of-2", 1_000_000, 1_000_001, "ef" * 32, "01" * 32),
)
SPLIT_REPORT = SplitReport(
    path="/data/model.bin",
    index="/data/model.bin.parts.json",
    copies=("/mnt/a/model.bin.parts.json", "/mnt/b/model.bin.parts.json"),
    size_bytes=2_000_001,
    blake3="23" * 32,
    sha256="45" * 32,
    parts=FILE_PARTS,
    seconds=0.5,
)
JOIN_REPORT = JoinReport(
    path="/data/again.bin",
    index="/data/model.bin.parts.json",
    size_bytes=2_000_001,
    blake3="23" * 32,
    sha256="45" * 32,
    parts=FILE_PARTS,
    seconds=0.25,
    warnings=("part 2 is damaged: /mnt/b/model.bin.part-2-of-2; /mnt/c/model.bin.part-2-of-2 was read instead",),
)
KNOWN_NAMES = KnownNames(
    branches={"acme/llama": ["main", "prod"], "default/tiny": ["main"]},
    tags={"acme/llama": ["v1", "v2"], "default/tiny": []},
    devices=["hdd0", "nvme0"],
)


LEFT = ObjectLeft("part", "ab" * 32, 7_000_000, 0, 2, "no good copy is left", (f"{MODEL}@v1",), ("model.safetensors",))
SHORT = ObjectLeft("part", "cd" * 32, 7_000_000, 1, 2, "no device can be written")
SCRUB_REPORT = ScrubReport("deep", (DeviceScrub("nvme0", 12, 3_000_000, 0, 1, True, 0.5, ()),), 0.5)
REPAIR_REPORT = RepairReport(False, 5, 3_000_000, 5, 3_000_000, {"nvme1": 3_000_000}, (), (), 0.5)
POLICY_TABLE = PolicyTable(
    "replicas=1",
    (ModelPolicy(MODEL, "ec=4+2", {"ec=4+2": 2, "replicas=2": 1}), ModelPolicy("default/b", None, {"replicas=1": 1})),
)
POLICY_REPORT = PolicyReport(MODEL, "replicas=2", "ec=4+2", False, 3, 9, 900, 1350, 20, 1800, 1, (), 0.5)
REBALANCE_REPORT = RebalanceReport(False, 3, 25, 1, 5, (), {"nvme0": 100, "hdd0": 0}, {"nvme0": 75, "hdd0": 25}, 0.5)
DRAIN_REPORT = DrainReport("nvme0", 5, 3_000_000, {"nvme1": 3_000_000}, 5, 5, 3_000_000, 0, 0, True, (), 0.5)


@dataclass
class FakeStore:
    """Answers each promise with the report that ``answers`` holds, or raises it where it is an exception."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.answers = {
            "devices.add": FACTS,
            "devices.bench": BENCH,
            "devices.check": CHECK,
            "devices.list": [DEVICE, DOWN_DEVICE],
            "devices.lost": FACTS,
            "devices.drain": DRAIN_REPORT,
            "devices.undrain": FACTS,
            "devices.remove": FACTS,
            "plan": FORECAST,
            "push": Version(**{**_fields(VERSION), "report": PUSH_REPORT}),
            "pull": PullReport(
                destination="llama", files=3, bytes=2_000_000_000, written_files=2, unchanged_files=1, load=LOAD_REPORT
            ),
            "load": LOAD_REPORT,
            "plan_load": LOAD_PLAN,
            "prefetch": PrefetchReport(1_500_000_000, 500_000_000, 7_000_000, LOAD_REPORT),
            "save": SaveReport("out.safetensors", 2_000_000_100, 2, {"lm_head": "wte"}, LOAD_REPORT),
            "metadata": METADATA,
            "models": [
                ModelSummary(
                    MODEL, "01J0000000000000000000000M", "replicas=2", 2, ("main",), ("v1", "v2"), NEW_ID, 5, None
                )
            ],
            "log": [LogEntry(NEW_ID, VERSION), LogEntry(OLD_ID, None)],
            f"log {MODEL}@{OLD_ID}": [LogEntry(OLD_ID, OLD_VERSION), LogEntry("77" * 20, None)],
            "diff": DIFF,
            "tag": VERSION,
            "branch": OLD_VERSION,
            "delete_tag": None,
            "delete_branch": None,
            "rm": OLD_VERSION,
            "rm_model": 2,
            "verify": VerifyReport(objects=20, bytes=3_000_000, seconds=0.5, problems=()),
            "scrub": SCRUB_REPORT,
            "repair": REPAIR_REPORT,
            "rebalance": REBALANCE_REPORT,
            "policies": POLICY_TABLE,
            "set_policy": POLICY_REPORT,
            "retention": RetentionReport(MODEL, "last=3", "last=3", True, 2, (OLD_VERSION,)),
            "retain": RetentionReport(MODEL, None, "last=3 days=30", False, 2, (OLD_VERSION,)),
            "gc": GcReport(False, 4, 400, 3, 300, 1, 100, 2, (), 0, 1),
            "du": UsageReport(
                (UsageRow(MODEL, OLD_ID, 10, 9, 1), UsageRow(MODEL, NEW_ID, 20, 18, 5)),
                30,
                36,
                {"nvme0": 18, "nvme1": 18},
            ),
            "status": StatusReport(
                store="01J0000000000000000000000S",
                location="/home/ada/.tensorkeep",
                policy="replicas=2",
                epoch=1,
                journal_seq=17,
                models=1,
                versions=2,
                devices=(DEVICE, DOWN_DEVICE),
                short=(ShortVersion(MODEL, NEW_ID, 3),),
                warnings=("device hdd0 does not answer",),
            ),
            "split_file": SPLIT_REPORT,
            "join_file": JOIN_REPORT,
            **self.answers,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    @property
    def devices(self) -> Any:
        return SimpleNamespace(
            add=self._door("devices.add"),
            bench=self._door("devices.bench"),
            check=self._door("devices.check"),
            list=self._door("devices.list"),
            lost=self._door("devices.lost"),
            drain=self._door("devices.drain"),
            undrain=self._door("devices.undrain"),
            remove=self._door("devices.remove"),
        )

    def model(self, spec: str) -> Any:
        version = OLD_VERSION if OLD_ID in spec else VERSION
        load = self._door("load")
        model = SimpleNamespace(name=MODEL, version=version, files=FILES, tensors={t.name: t for t in TENSORS})
        model.unknown_shards = []
        model.metadata = self._door("metadata")

        def load_and_report(**options: Any) -> dict[str, int]:
            model.report = load(spec, **options)
            return {"w": 1, "b": 2}

        model.load = load_and_report
        model.save = self._door("save")
        model.plan_load = self._door("plan_load")
        model.prefetch = self._door("prefetch")
        return model

    def __getattr__(self, name: str) -> Any:
        if name not in self.answers:
            raise AttributeError(name)
        return self._door(name)

    def _door(self, name: str) -> Any:
        def answer(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if progress := kwargs.get("progress"):
                progress(Progress("reading", 1, 2))
                progress(Progress("reading", 2, 2))
            result = self.answers.get(f"{name} {args[0]}" if args else name, self.answers[name])
            if isinstance(result, BaseException):
                raise result
            return result

        return answer


@dataclass
class FakeDoors(Doors):
    """Doors that give the fake store and note where it was asked for."""

    store: FakeStore = field(default_factory=FakeStore)
    locations: list[str | None] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    names: KnownNames | TensorkeepError = KNOWN_NAMES

    def known_names(self, location: str | None) -> KnownNames:
        self.locations.append(location)
        if isinstance(self.names, TensorkeepError):
            raise self.names
        return self.names

    def open(self, location: str | None) -> Any:
        self.locations.append(location)
        return self.store

    def init(self, location: str | None, *, replicas: int | None, ec: str | None) -> Any:
        self.locations.append(location)
        self.options = {"replicas": replicas, "ec": ec}
        return self.store

    def split_file(self, path: str, **options: Any) -> Any:
        return self.store.split_file(path, **options)

    def join_file(self, index: str, path: str | None, **options: Any) -> Any:
        return self.store.join_file(index, path, **options)

    def rebuild_catalog(self, location: str | None, *, sources: list[str], force: bool) -> RebuildReport:
        self.locations.append(location)
        self.options = {"sources": sources, "force": force}
        return RebuildReport(
            store="01J0000000000000000000000S",
            epoch=2,
            models=1,
            versions=2,
            refs=3,
            objects=20,
            locations=40,
            devices=("nvme0",),
            unreachable=("hdd0",),
            missing=("a manifest of version 99e0d1c",),
            replaced="catalog.sqlite.old",
            seconds=0.1,
        )


def problem_report() -> VerifyReport:
    """Return a verification that found a lost part."""
    problem = Problem(kind="corrupt", object="parts/ab/x", detail="digest differs", device="nvme0", lost=True)
    return VerifyReport(objects=20, bytes=3_000_000, seconds=0.5, problems=(problem,))


def _fields(version: Version) -> dict[str, Any]:
    return {name: getattr(version, name) for name in Version.__dataclass_fields__}
