"""What is kept of a check of a device: whether it may be one, and flags of what may differ between good devices.

A store that calls itself S3-compatible is not believed: ranges, truncated uploads and lost listings decide whether bytes can
be trusted to it, so every device is asked (``docs/device-check.md``).
"""

from typing import Literal

import msgspec

CheckForm = Literal["short", "full"]
Verdict = Literal["accepted", "refused"]
ConditionalCreate = Literal["exact", "racy", "ignored", "unsupported"]
CompareAndSwap = Literal["exact", "racy", "broken", "ignored", "unsupported"]


class Conformance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a check with the device, in the catalog and the journal; None where nothing was found out.

    Attributes:
        checked_at: when, UTC.
        form: ``short`` (when a device is added) or ``full``.
        verdict: whether it may be a device.
        refusal: why not.
        conditional_create: a write that must not replace, by many writers at once: one wins (``exact``), several do
            (``racy``), it always replaces (``ignored``), or the store does not have it (``unsupported``).
        compare_and_swap: a write only over a known state: likewise; ``broken`` where it refuses the right state too.
        refused_checksums: the kinds of content hashes that are checked: a write with a wrong one is refused.
        clock_offset_s: the store's clock minus this machine's, in seconds.
        file_system: the type that is mounted there, for folders.
        read_p50_us, read_p99_us: microseconds of a small read.
        write_p50_us, write_p99_us: microseconds of a small durable write.
        read_rate, write_rate: bytes per second of one reader and one writer.
        best_rate, best_readers: bytes per second of the best number of readers, and that number, where a bench has found them.
    """

    checked_at: str
    form: CheckForm
    verdict: Verdict
    refusal: str | None = None
    conditional_create: ConditionalCreate | None = None
    compare_and_swap: CompareAndSwap | None = None
    refused_checksums: tuple[str, ...] | None = None
    clock_offset_s: int | None = None
    file_system: str | None = None
    read_p50_us: int | None = None
    read_p99_us: int | None = None
    write_p50_us: int | None = None
    write_p99_us: int | None = None
    read_rate: int | None = None
    write_rate: int | None = None
    best_rate: int | None = None
    best_readers: int | None = None
