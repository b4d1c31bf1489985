"""What real loads taught of the rates of devices: it refines what the next plan and the next load of this user predict.

A small JSON file in the user's cache folder, one for each store, replaced as a whole: losing it, or a sample of it where two
processes write at once, costs only the quality of a prediction. It is not in the catalog: a load only reads, the store may be
read-only, and the rate of a device across a network is a fact of this machine too.

Only remote devices are learned. A local file may come from the page cache or from the disk, a read does not tell which, and the
next one is as likely to be the other.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from tensorkeep.devices.forwarding import innermost
from tensorkeep.devices.protocol import ReadableDevice, ThrottlingDevice
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.layout import MIB
from tensorkeep.store.context import StoreContext
from tensorkeep.transfer.report import DeviceLoad, LoadReport

LEAST_BYTES, LEAST_SECONDS = 64 * MIB, 0.1
"""Less of a transfer is the time to open connections, not a rate."""

WEIGHT = 0.3
"""Of the newest transfer in the average: about the last six count."""

_FILE = "rates.json"


class LearnedRate(msgspec.Struct, frozen=True, array_like=True):
    """The rate of a device in bytes/s, and the bandwidth that the catalog had then: where it has another, that is news."""

    bandwidth: int | None
    rate: Annotated[float, msgspec.Meta(gt=0)]


def find_rates(folder: Path | None, devices: Iterable[DeviceFacts]) -> dict[str, float]:
    """Return the learned bytes per second of devices, by id, where they are known and the catalog has nothing newer.

    Args:
        folder: the store's cache folder, None where it has none.
        devices: rows of the catalog.
    """
    learned = _read(folder) if folder else {}
    return {
        facts.id: learned[facts.id].rate
        for facts in devices
        if facts.id in learned and learned[facts.id].bandwidth == facts.bandwidth
    }


def learn_rates(context: StoreContext, report: LoadReport, devices: Mapping[str, ReadableDevice]) -> None:
    """Take note of what a load's devices gave, where that says something of them; never raises because of it.

    Left out are short transfers, local devices, devices whose rate is limited by the user, and whole loads in which a read went
    to another copy: the seconds of a device that was asked again at the end hold those in which it was not asked.
    """
    if context.cache_folder is None or report.retried or report.hedged:
        return
    samples = {each.id: each for each in report.devices if _is_telling(each, devices.get(each.id))}
    if not samples:
        return
    with contextlib.suppress(TensorkeepError):  # the load itself is done
        rows = context.catalog.list_devices()
        _learn(context.cache_folder, [(facts, samples[facts.id]) for facts in rows if facts.id in samples])


def _is_telling(load: DeviceLoad, device: ReadableDevice | None) -> bool:
    long = load.bytes >= LEAST_BYTES and load.seconds >= LEAST_SECONDS
    return long and device is not None and isinstance(innermost(device), ThrottlingDevice)


def _learn(folder: Path, loads: Iterable[tuple[DeviceFacts, DeviceLoad]]) -> None:
    learned = _read(folder)
    for facts, load in loads:
        if facts.rate_limit is not None:
            continue
        rate, before = load.rate_bytes_per_s, learned.get(facts.id)
        if before is not None and before.bandwidth == facts.bandwidth:
            rate = before.rate + WEIGHT * (rate - before.rate)
        learned[facts.id] = LearnedRate(facts.bandwidth, rate)
    _write(folder, learned)


def _read(folder: Path) -> dict[str, LearnedRate]:
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=dict[str, LearnedRate])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _write(folder: Path, learned: Mapping[str, LearnedRate]) -> None:
    # Not fsynced: a torn file does not decode. A name of its own for each thread of each process.
    path = folder / _FILE
    temporary = path.with_name(f"{_FILE}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(learned))
        temporary.replace(path)
