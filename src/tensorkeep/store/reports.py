"""What the verbs return: plain values that the command line prints and programs read. Sizes in bytes, times in seconds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tensorkeep.devices.bench import ReaderRate
from tensorkeep.records.device import DeviceFacts, is_gone
from tensorkeep.transfer.report import LoadReport

ChangeKind = Literal["added", "removed", "changed", "renamed"]
ComparedUnit = Literal["elements", "blocks", "bytes"]


class Progress(NamedTuple):
    """A step of a verb and how far it is."""

    step: str
    done_bytes: int
    total_bytes: int


ProgressCallback = Callable[[Progress], None]


class FileNote(NamedTuple):
    """What a user should know of a file: why it is opaque, or what in it is no tensor."""

    path: str
    note: str


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did.

    ``parts`` and ``bytes`` are the version's; ``new_parts`` and ``new_bytes`` those that were not stored before, each counted
    once; ``written_bytes`` all copies on all devices; ``device_bytes`` the same by device name. Bytes that were written are those of
    manifest, checks and version record too. ``notes`` are of files that were read, not of those known to be unchanged.
    """

    created: bool
    files: int
    bytes: int
    parts: int
    new_parts: int
    new_bytes: int
    written_bytes: int
    device_bytes: dict[str, int]
    method: str
    part_size: int
    why: str
    seconds: float
    warnings: tuple[str, ...] = ()
    notes: tuple[FileNote, ...] = ()

    @property
    def rate_bytes_per_s(self) -> float:
        """Bytes of the version by seconds."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class FileForecast:
    """A file that a push would store; ``kept`` where it is known to be what the parent has."""

    path: str
    size_bytes: int
    format: str
    tensors: int
    note: str
    kept: bool


@dataclass(frozen=True, slots=True)
class DeviceForecast:
    """What a push would write to a device as parts, and what a load of the whole version would then read from it."""

    name: str
    parts: int
    bytes: int
    load_bytes: int
    load_seconds: float


@dataclass(frozen=True, slots=True)
class LayerBalance:
    """How evenly the layers of a version lie on the devices.

    ``slowest`` is the layer whose load takes longest, ``slowest_seconds`` how long. ``balance`` is 1 where all devices finish each
    layer together, 1 / D where each layer is on one of D equal devices.
    """

    layers: int
    slowest: str
    slowest_seconds: float
    balance: float


@dataclass(frozen=True, slots=True)
class PushForecast:
    """What a push would do.

    ``parts`` and ``bytes`` are the version's; ``new_parts`` and ``new_bytes`` those that would be written, each counted once,
    ``new_packs`` those of them that gather small items. Where ``exact`` is False, parts that are equal to each other or stored
    already count as new: only who reads them knows. The ``devices`` tell of all copies, of parts alone; ``warnings`` say why a push would fail, or
    leave copies out.
    """

    model: str | None
    method: str
    part_size: int
    why: str
    bytes: int
    parts: int
    new_parts: int
    new_packs: int
    new_bytes: int
    exact: bool
    files: tuple[FileForecast, ...]
    devices: tuple[DeviceForecast, ...]
    layers: LayerBalance | None
    warnings: tuple[str, ...] = ()

    @property
    def load_seconds(self) -> float:
        """How long a load of the whole version would take: as long as the slowest device."""
        return max((device.load_seconds for device in self.devices), default=0.0)


@dataclass(frozen=True, slots=True)
class Version:
    """A version as users see it; ``report`` is there right after a push."""

    id: str
    model: str
    parent: str | None
    message: str
    author: str
    created_at: str
    total_bytes: int
    policy: str
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    report: PushReport | None = field(default=None, compare=False)

    @property
    def short_id(self) -> str:
        """The first 12 digits of the id."""
        return self.id[:12]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One step of a model's history; ``version`` is None where it was removed."""

    id: str
    version: Version | None

    @property
    def removed(self) -> bool:
        """Whether the version was removed."""
        return self.version is None


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model in a listing; ``bytes`` and ``head`` are of its default branch (None where that is missing)."""

    name: str
    id: str
    policy: str | None
    versions: int
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    head: str | None
    bytes: int | None
    updated_at: str | None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a version."""

    path: str
    size_bytes: int
    format: str
    sha256: str
    tensors: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a version: ``shape`` in elements, ``dtype`` in safetensors spelling, ``digest`` BLAKE3-256 in hex.

    Its bytes are ``[start, start + size_bytes)`` of ``file``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    file: str
    start: int
    digest: str

    @property
    def parameters(self) -> int:
        """The number of elements, also where they are stored in quantised blocks."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class DtypeSummary:
    """The tensors of one dtype."""

    dtype: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """The tensors of one layer, like ``model.layers.0``; None for all that are in no layer."""

    layer: str | None
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ParameterSummary:
    """How many parameters tensors have, in all, by dtype and by layer.

    Tied tensors (``tied`` many: the same bytes of a file as one before) are counted as tensors; their parameters and bytes are
    those of the first of them, in all three counts.
    """

    tensors: int
    tied: int
    parameters: int
    bytes: int
    dtypes: tuple[DtypeSummary, ...]
    layers: tuple[LayerSummary, ...]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that differs between two versions; ``old_path`` where it was renamed."""

    kind: ChangeKind
    path: str
    size_bytes: int | None
    old_size_bytes: int | None
    old_path: str | None = None


@dataclass(frozen=True, slots=True)
class TensorStats:
    """How far the values of a changed tensor moved, element by element.

    ``compared`` and ``changed`` count elements, or what ``unit`` says: quantised blocks, or bytes of packed dtypes, whose numbers
    are not looked into. Elements of one dtype are changed where their bits are, of two dtypes where their values are.
    ``max_change`` is the largest absolute difference, ``l2_change`` the L2 norm of all; exact for integers, of moduli for
    complex numbers, None where there are no numbers. ``not_finite`` changed elements were or became NaN or infinite; both
    leave them out. ``note`` says how it was compared where that is not plain, or why not at all (``compared`` is 0).
    """

    unit: ComparedUnit
    compared: int
    changed: int
    max_change: int | float | None
    l2_change: float | None
    not_finite: int = 0
    note: str = ""

    @property
    def changed_fraction(self) -> float | None:
        """Changed by compared; None where nothing was compared."""
        return self.changed / self.compared if self.compared else None


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that differs between two versions; ``old_name`` where it was renamed.

    ``stats`` is there for changed tensors where a diff was asked for them.
    """

    kind: ChangeKind
    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    old_dtype: str | None
    old_shape: tuple[int, ...] | None
    size_bytes: int
    old_name: str | None = None
    stats: TensorStats | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between two versions."""

    old: str
    new: str
    files: tuple[FileChange, ...]
    tensors: tuple[TensorChange, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.files and not self.tensors


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that verification found.

    ``kind``: ``corrupt`` and ``missing`` (an object on a device), ``unreachable`` (a device), ``short`` (too few copies),
    ``identity``, ``journal``, ``catalog``. ``object`` is the physical name or what else is wrong; ``lost`` says that no
    good copy was found.
    """

    kind: str
    object: str
    detail: str
    device: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification read and found."""

    objects: int
    bytes: int
    seconds: float
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class GcReport:
    """What gc did or, in a dry run, would do. ``waiting`` rows are condemned but younger than the grace, or unreachable.

    ``swept_orphans`` are objects that no row told of; they are not among the ``deleted``. ``expired`` versions were removed since the
    retention of their model lets them go; what a dry run would free of them is not among the rest.
    """

    dry_run: bool
    condemned: int
    condemned_bytes: int
    deleted: int
    deleted_bytes: int
    waiting: int
    waiting_bytes: int
    swept_unfinished: int
    unreachable: tuple[str, ...] = ()
    swept_orphans: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class PrefetchReport:
    """What a prefetch did.

    In bytes of parts: ``cached`` are in the cache now, ``local`` ones lie on file systems of this machine and need none, ``left_out``
    found no room, or were waited for in vain. ``load`` says what was read of which device, and what was damaged.
    """

    cached_bytes: int
    local_bytes: int
    left_out_bytes: int
    load: LoadReport


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Space of one version: ``logical`` its files, ``part`` its parts (each once), ``exclusive`` those nothing else uses."""

    model: str
    version: str
    logical_bytes: int
    part_bytes: int
    exclusive_bytes: int

    @property
    def shared_bytes(self) -> int:
        """Parts that another version, of any model, uses too."""
        return self.part_bytes - self.exclusive_bytes


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Space of versions and devices; ``stored_bytes`` are all copies on all devices, condemned ones apart."""

    rows: tuple[UsageRow, ...]
    logical_bytes: int
    stored_bytes: int
    device_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class ObjectLeft:
    """An object with fewer copies than it owes; ``have`` 0 or less: it is lost as long as no device with a copy comes back.

    ``have`` counts how many devices must be lost to lose it. ``versions`` (``model@id``) and ``files`` need it, told of what is lost.
    """

    kind: str
    digest: str
    size_bytes: int
    have: int
    owed: int
    reason: str
    versions: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def lost(self) -> bool:
        """Whether no copy can be counted any more."""
        return self.have < 1


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did: of ``short`` objects ``repaired`` have all their copies again, ``left`` are those that have not.

    ``written_bytes`` are all new copies and fragments, ``device_bytes`` the same by device name.
    """

    dry_run: bool
    short: int
    short_bytes: int
    repaired: int
    written_bytes: int
    device_bytes: dict[str, int]
    left: tuple[ObjectLeft, ...]
    unreachable: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything has the copies it owes."""
        return not self.left

    @property
    def lost(self) -> tuple[ObjectLeft, ...]:
        """Objects without any copy that counts."""
        return tuple(each for each in self.left if each.lost)


@dataclass(frozen=True, slots=True)
class DeviceScrub:
    """What a scrub found on a device.

    ``objects`` were looked at in this pass, also before it was cut off; ``bytes`` were read now. ``orphans`` are objects that no
    row tells of, met for the first time: gc deletes them after its grace. ``complete`` says that the pass has ended; else the
    next scrub goes on where it was cut off.
    """

    device: str
    objects: int
    bytes: int
    bad: int
    orphans: int
    complete: bool
    seconds: float
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What a scrub found, device by device; ``depth`` is ``light`` or ``deep``."""

    depth: str
    devices: tuple[DeviceScrub, ...]
    seconds: float

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is missing, damaged or could not be looked at."""
        return tuple(problem for device in self.devices for problem in device.problems)

    @property
    def bytes(self) -> int:
        """Bytes read."""
        return sum(device.bytes for device in self.devices)

    @property
    def ok(self) -> bool:
        """Whether all devices were looked through, and nothing was found."""
        return not self.problems and all(device.complete for device in self.devices)


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What a drain did: copies made elsewhere, and what of the device's objects was given up, deleted, or is still needed.

    ``left`` are objects of the store that lack copies; ``waiting`` objects were given up and wait for the grace, or, where the device
    is not ``reachable``, for it; ``held`` ones are still needed there, or unused and gc's.
    """

    device: str
    repaired: int
    written_bytes: int
    device_bytes: dict[str, int]
    given_up: int
    deleted: int
    deleted_bytes: int
    waiting: int
    held: int
    reachable: bool
    left: tuple[ObjectLeft, ...]
    seconds: float

    @property
    def empty(self) -> bool:
        """Whether the device holds nothing any more."""
        return not self.held and not self.waiting


@dataclass(frozen=True, slots=True)
class RebalanceReport:
    """What a rebalance did, or with ``dry_run`` would do.

    ``moved`` copies went to another device, ``trimmed`` ones were more than their objects owe. ``before`` and ``after`` are bytes
    of parts by device name; what was given up is deleted by gc after its grace and not counted in ``after``.
    """

    dry_run: bool
    moved: int
    moved_bytes: int
    trimmed: int
    trimmed_bytes: int
    failed: tuple[str, ...]
    before: dict[str, int]
    after: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What a change of policy did, or with ``dry_run`` would do; ``model`` None: the store's, for models without one of their own.

    ``old`` is None where the model had none. ``versions`` owe something else now. ``converted`` parts (``converted_bytes`` of them) were
    written in the new form, copies of other forms were ``given_up``: gc deletes them after its grace. ``shared`` parts stay as they
    are, since versions of other models ask for more.
    """

    model: str | None
    old: str | None
    new: str
    dry_run: bool
    versions: int
    converted: int
    converted_bytes: int
    written_bytes: int
    given_up: int
    given_up_bytes: int
    shared: int
    failed: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every part has the form that it should."""
        return not self.failed


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """The retention of a model before (``old``) and from now on (``new``), as texts; None: every version stays.

    Of its ``versions`` those that are ``expired`` go with the next gc.
    """

    model: str
    old: str | None
    new: str | None
    dry_run: bool
    versions: int
    expired: "tuple[Version, ...]"


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """The policy of later pushes of a model (``own`` None: the store's), and how many versions owe which policy."""

    model: str
    own: str | None
    owed: dict[str, int]


@dataclass(frozen=True, slots=True)
class PolicyTable:
    """The store's policy, and those of models and their versions, by name."""

    store: str
    models: tuple[ModelPolicy, ...]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device, and what the catalog says it holds. ``problem`` says why it can't be used now, None where it can."""

    facts: DeviceFacts
    problem: str | None
    objects: int
    bytes: int
    bad_objects: int
    free_bytes: int | None
    journal_behind: int

    @property
    def reachable(self) -> bool:
        """Whether it answers and is what the catalog says."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class DeviceBench:
    """What `DeviceCollection.bench` measured.

    ``size_bytes`` were written, ``write_rate`` is bytes per second until they were durable. ``read_rates`` are bytes per second by
    number of readers at once, in rising order; ``best_rate`` and ``best_readers`` the best of them: the fewest readers that are as
    fast, but for noise, as any. ``read_latency_seconds`` is the median time of a read of 4 KiB. ``bandwidth`` is the catalog's from
    now on: ``saved`` says that it is what was measured, ``given`` that it is a user's and stayed for that.
    """

    name: str
    url: str
    size_bytes: int
    write_rate: int
    read_latency_seconds: float
    read_rates: tuple[ReaderRate, ...]
    best_readers: int
    best_rate: int
    bandwidth: int | None
    rate_limit: int | None
    given: bool
    saved: bool


@dataclass(frozen=True, slots=True)
class ShortVersion:
    """A version some of whose objects have fewer copies than they owe."""

    model: str
    version: str
    objects: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The store at a glance."""

    store: str
    location: str
    policy: str
    epoch: int
    journal_seq: int
    models: int
    versions: int
    devices: tuple[DeviceStatus, ...]
    short: tuple[ShortVersion, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every device that is not given up answers, and every version has the copies it owes."""
        active = [device for device in self.devices if not is_gone(device.facts)]
        return not self.short and not self.warnings and all(device.reachable for device in active)


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuilt catalog holds. ``missing`` names journal entries, manifests or parts that no device had."""

    store: str
    epoch: int
    models: int
    versions: int
    refs: int
    objects: int
    locations: int
    devices: tuple[str, ...]
    unreachable: tuple[str, ...]
    missing: tuple[str, ...]
    replaced: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part file of a split file: bytes ``[start, start + size_bytes)`` of the whole; ``number`` counts from 1, digests are hex."""

    number: int
    path: str
    start: int
    size_bytes: int
    blake3: str
    sha256: str
