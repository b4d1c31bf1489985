"""Probes of what every device promises, asked through the devices' own calls and over two connections."""

from tensorkeep.devices.bandwidth import measure_rates
from tensorkeep.devices.conformance.judging import (
    CreateRound,
    create_flag,
    judge_bytes,
    judge_listing,
    judge_overwrites,
    quantile_us,
)
from tensorkeep.devices.conformance.probe import Finding, Refused, Site, refuse
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import AlreadyExists, Integrity, NotFound
from tensorkeep.records.layout import BLOCK_BYTES, KIB, MIB
from tensorkeep.records.naming import (
    ChecksName,
    FragmentName,
    JournalName,
    ManifestName,
    ObjectName,
    PartName,
    VersionName,
    physical_name,
)

RACERS = 16
ROUNDS = 8
SHORT_ROUNDS = 1
PAGED_OBJECTS = 1200
OVERWRITES = 40
READERS = 4

_SMALL_BYTES = 4 * KIB


def put_get(site: Site) -> Finding:
    """Objects of all sizes come back as they were written."""
    sizes = (0, 1, BLOCK_BYTES, 4 * MIB + 1) if site.full else (0, 1, BLOCK_BYTES)
    for size in sizes:
        data = site.runtime.randomness.random_bytes(size)
        name = site.part_name()
        site.device.put(name, [data[: size // 2], data[size // 2 :]])
        site.device.flush()
        refuse(judge_bytes("an object", data, site.device.read(name)), Integrity)
        if (told := site.device.size_of(name)) != size:
            raise Refused(f"says that an object of {size:,} bytes has {told:,}", Integrity)
    return Finding(f"objects of {', '.join(f'{size:,}' for size in sizes)} bytes come back as they were written")


def ranges(site: Site) -> Finding:
    """Ranges are what was asked for; one that reaches past the end is an error, never short data."""
    data = site.runtime.randomness.random_bytes(BLOCK_BYTES + 7)
    name = _put(site, data)
    for start, size in ((0, 100), (BLOCK_BYTES // 2, 4096), (len(data) - 100, 100)):
        buffer = bytearray(size)
        site.device.read_into(name, start, [memoryview(buffer)])
        refuse(judge_bytes(f"bytes {start}-{start + size - 1}", data[start : start + size], bytes(buffer)), Integrity)
    for start in (len(data) - 10, len(data), len(data) + 10):
        if not _is_short(site.device, name, start):
            raise Refused(f"gives 100 bytes from {start} of an object of {len(data):,} bytes", Integrity)
    return Finding("ranges at start, middle and end are right, past the end an error")


def second_connection(site: Site) -> Finding:
    """What one connection wrote, another reads and lists at once."""
    for number, (writer, reader) in enumerate(((site.device, site.other), (site.other, site.device))):
        data = b"%d" % number * _SMALL_BYTES
        name = site.part_name()
        writer.put(name, [data])
        writer.flush()
        try:
            refuse(judge_bytes("to a second connection an object", data, reader.read(name)), Integrity)
        except NotFound:
            raise Refused("does not give a second connection an object that was just written") from None
        listed = [info.name for info in reader.iter_objects("parts/")]
        refuse(judge_listing([name], [each for each in listed if each == name]))
    return Finding("a second connection reads and lists what was just written")


def overwrite(site: Site) -> Finding:
    """The identity, the one object that is replaced, is the old one or the new one to whoever reads it meanwhile."""
    values = [b"%04d" % number * 4096 for number in range(OVERWRITES)]
    site.device.replace_identity(values[0])

    def write() -> None:
        for value in values:
            site.device.replace_identity(value)

    with site.runtime.workers.open_pool(READERS + 1, "check") as pool:
        writing = pool.submit(write)

        def read() -> list[bytes | None]:
            seen = [site.other.read_identity()]
            while not writing.done():
                seen.append(site.other.read_identity())
            return seen

        seen = [found for future in [pool.submit(read) for _ in range(READERS)] for found in future.result()]
        writing.result()
    refuse(judge_overwrites(values, seen), Integrity)
    refuse(judge_overwrites(values[-1:], [site.other.read_identity()]), Integrity)
    return Finding(f"{len(values)} overwrites under {len(seen):,} reads: old or new each time", {"reads": len(seen)})


def delete(site: Site) -> Finding:
    """What was deleted is gone, for a second connection too; deleting it again is no error."""
    name = _put(site, b"x" * _SMALL_BYTES)
    for _ in range(2):
        site.device.delete(name)
        site.device.flush()
    try:
        site.other.read(name)
    except NotFound:
        pass
    else:
        raise Refused("still gives back an object that was deleted")
    listed = [info.name for info in site.other.iter_objects("parts/")]
    refuse(f"still lists {name}, which was deleted" if name in listed else None)
    return Finding("a deleted object is neither read nor listed; deleting it again is no error")


def names(site: Site) -> Finding:
    """Every form of name that the layout has can be written, read and listed."""
    digest, ulid = site.digest(), site.ulid()
    forms: tuple[ObjectName, ...] = (
        PartName(digest, ulid),
        PartName(digest, ulid, "planes-zstd"),
        FragmentName(digest, ulid, 4, 2, 5),
        ManifestName(digest, ulid),
        ChecksName(digest, ulid),
        VersionName(site.ulid(), digest[:20], ulid),
        JournalName(1, 999_999_999_999, digest, ulid),
    )
    written = {physical_name(form): physical_name(form).encode() for form in forms}
    for name, data in written.items():
        site.device.put(name, [data])
    site.device.flush()
    for name, data in written.items():
        refuse(judge_bytes(f"{name},", data, site.other.read(name)), Integrity)
    listed = [info.name for info in site.other.iter_objects("") if info.name in written]
    refuse(judge_listing(written, listed))
    return Finding(f"all {len(written)} forms of names are kept")


def create_race(site: Site) -> Finding:
    """A device of this machine never replaces an object: of many writers of one name one wins."""
    rounds = [_race(site) for _ in range(ROUNDS if site.full else SHORT_ROUNDS)]
    flag = create_flag(None, rounds)
    if flag != "exact":
        counts = ", ".join(str(each.winners) for each in rounds)
        raise Refused(f"lets several writers of one name win ({counts} of {RACERS})")
    return Finding(
        f"of {RACERS} writers of one name one wins, {len(rounds)} times of {len(rounds)}",
        {"winners": [each.winners for each in rounds]},
        {"conditional_create": flag},
    )


def pagination(site: Site) -> Finding:
    """A listing of more objects than a page holds is whole."""
    made = [physical_name(ChecksName(number.to_bytes(32), site.ulid())) for number in range(PAGED_OBJECTS)]

    def put_share(share: int) -> None:
        for name in made[share::RACERS]:
            site.device.put(name, [b"x"])

    seconds = site.timed(lambda: site.at_once(RACERS, put_share))
    site.device.flush()
    wanted = set(made)
    found: list[str] = []
    listing_s = site.timed(
        lambda: found.extend(info.name for info in site.other.iter_objects("checks/") if info.name in wanted)
    )
    refuse(judge_listing(wanted, found))
    return Finding(
        f"{len(made):,} objects are listed, each once",
        {"objects": len(made), "write_seconds": round(seconds, 3), "list_seconds": round(listing_s, 3)},
    )


def latency(site: Site) -> Finding:
    """How long small reads and small durable writes take."""
    writes, reads = (100, 200) if site.full else (8, 24)
    data = site.runtime.randomness.random_bytes(_SMALL_BYTES)
    made = [site.part_name() for _ in range(writes)]
    buffer = memoryview(bytearray(_SMALL_BYTES))

    def write(name: str) -> None:
        site.device.put(name, [data])
        site.device.flush()

    written = [site.timed(lambda name=name: write(name)) for name in made]  # type: ignore[misc]
    read = [site.timed(lambda: site.device.read_into(made[0], 0, [buffer])) for _ in range(reads)]
    kept = {
        "read_p50_us": quantile_us(read, 0.5),
        "read_p99_us": quantile_us(read, 0.99),
        "write_p50_us": quantile_us(written, 0.5),
        "write_p99_us": quantile_us(written, 0.99),
    }
    return Finding(
        f"4 KiB: read {_ms(kept['read_p50_us'])} (p99 {_ms(kept['read_p99_us'])}), "
        f"durable write {_ms(kept['write_p50_us'])} (p99 {_ms(kept['write_p99_us'])})",
        {"reads": reads, "writes": writes, **kept},
        kept,
    )


def rates(site: Site) -> Finding:
    """How fast one reader reads and one writer writes."""
    found = measure_rates(site.device, runtime=site.runtime)
    if found is None:
        return Finding("no rate can be measured: there is no room, or no time passes")
    kept = {"read_rate": found.read, "write_rate": found.write}
    return Finding(
        f"one reader {found.read / 1e6:,.0f} MB/s, one writer {found.write / 1e6:,.0f} MB/s", dict(kept), kept
    )


def free_space(site: Site) -> Finding:
    """What can still be written."""
    free = site.device.free_bytes()
    if free is None:
        return Finding("nobody knows how much can be written")
    return Finding(f"{free / 1e9:,.1f} GB can be written", {"free_bytes": free})


def _put(site: Site, data: bytes) -> str:
    name = site.part_name()
    site.device.put(name, [data])
    site.device.flush()
    return name


def _is_short(device: Device, name: str, start: int) -> bool:
    try:
        device.read_into(name, start, [memoryview(bytearray(100))])
    except Integrity:
        return True
    return False


def _race(site: Site) -> CreateRound:
    name = site.part_name()

    def create(number: int) -> bool:
        try:
            (site.device, site.other)[number % 2].put(name, [b"%04d" % number * 1024])
        except AlreadyExists:
            return False
        return True

    won = site.at_once(RACERS, create)
    kept = site.device.read(name)
    return CreateRound(sum(won), any(won[number] and kept == b"%04d" % number * 1024 for number in range(RACERS)))


def _ms(micro: int) -> str:
    return f"{micro / 1000:.2f} ms"
