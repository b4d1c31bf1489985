"""The check of a device: does a place do what layout v1 needs of it, and what else can it do?

Nothing is believed because of a name: the place is asked, below a folder of its own, and judged (`judging`). ``short`` is
asked of every place before it becomes a device, ``full`` by ``tensorkeep device check``. What is asked of each kind of place
stands in `PROBES`, in that order: a store whose clock is wrong refuses all the rest, and a store that ignores ranges is told
so before it fails to read.
"""

from collections.abc import Callable
from typing import Any

from tensorkeep.devices.conformance import folder, objects
from tensorkeep.devices.conformance.probe import Finding, Probe, Site, SiteKind, ask_all
from tensorkeep.devices.conformance.sites import open_site
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.conformance import CheckForm, Conformance
from tensorkeep.records.conformance_report import ConformanceReport, ProbeResult
from tensorkeep.records.device import Durability
from tensorkeep.records.json_text import format_time
from tensorkeep.runtime import Runtime

__all__ = ["PROBES", "check_place"]

_FOLDER: frozenset[SiteKind] = frozenset({"folder"})
_OF_THIS_MACHINE: frozenset[SiteKind] = frozenset({"folder", "memory"})

_OBJECT_STORE: frozenset[SiteKind] = frozenset({"object_store"})


def _of_object_stores(name: str) -> Callable[[Site], Finding]:
    """Return a probe of the module `object_store`, which is loaded when it is first asked."""

    def ask(site: Site) -> Finding:
        from tensorkeep.devices.conformance import object_store  # noqa: PLC0415 - brings email and http

        found: Finding = getattr(object_store, name)(site)
        return found

    return ask


PROBES = (
    Probe("clock", _of_object_stores("clock"), _OBJECT_STORE),
    Probe("http_ranges", _of_object_stores("http_ranges"), _OBJECT_STORE),
    Probe("file_system", folder.file_system, _FOLDER),
    Probe("one_file_system", folder.one_file_system, _FOLDER),
    Probe("fsync", folder.fsync, _FOLDER),
    Probe("exclusive_create", folder.exclusive_create, _FOLDER),
    Probe("put_get", objects.put_get),
    Probe("ranges", objects.ranges, heavy=True),
    Probe("torn_upload", _of_object_stores("torn_upload"), _OBJECT_STORE),
    Probe("second_connection", objects.second_connection),
    Probe("delete", objects.delete),
    Probe("names", objects.names),
    Probe("overwrite", objects.overwrite, short=False),
    Probe("create_race", objects.create_race, _OF_THIS_MACHINE),
    Probe("conditional_create", _of_object_stores("conditional_create"), _OBJECT_STORE),
    Probe("compare_and_swap", _of_object_stores("compare_and_swap"), _OBJECT_STORE),
    Probe("checksums", _of_object_stores("checksums"), _OBJECT_STORE),
    Probe("pagination", objects.pagination, short=False, heavy=True),
    Probe("latency", objects.latency, heavy=True),
    Probe("rates", objects.rates, heavy=True),
    Probe("free_space", objects.free_space),
    Probe("inodes", folder.inodes, _FOLDER),
)


def check_place(
    url: str,
    *,
    runtime: Runtime,
    form: CheckForm,
    name: str | None = None,
    rate_limit_bytes_per_s: int | None = None,
    rates: bool = True,
) -> ConformanceReport:
    """Return what a place can do, and whether it may be a device. Leaves it as it was.

    Args:
        url: its canonical URL.
        runtime: clock, randomness, workers, environment.
        form: ``short``, about a second, ends at the first reason to refuse; ``full`` asks everything.
        name: of the device that it is.
        rate_limit_bytes_per_s: the device's.
        rates: False leaves out measuring them.

    Raises:
        InvalidInput: nothing can be asked there: there is a file, not a folder.
        Unavailable, PermissionDenied, Capacity: nothing can be asked: it does not answer, or can't be written to.
    """
    clock = runtime.clock
    checked_at, start_s = format_time(clock.now()), clock.monotonic_s()
    probes = [probe for probe in PROBES if rates or probe.name != "rates"]
    answers: list[tuple[ProbeResult, dict[str, Any]]] = []
    durability: Durability = "soft"
    try:
        with open_site(url, runtime=runtime, form=form, rate_limit_bytes_per_s=rate_limit_bytes_per_s) as site:
            durability = site.device.durability
            answers += ask_all(site, probes)
    except TensorkeepError as error:
        if not answers:
            raise
        # What was found stands first: a store that is refused may not let itself be tidied either.
        answers.append((ProbeResult("removal", "failed", error.message, {}, 0.0, error.code), {}))
    results = tuple(result for result, _ in answers)
    kept = {field: value for _, fields in answers for field, value in fields.items()}
    failed = next((result for result in results if result.outcome == "failed"), None)
    free = [result.facts["free_bytes"] for result in results if "free_bytes" in result.facts]
    return ConformanceReport(
        name=name,
        url=url,
        durability=durability,
        free_bytes=free[0] if free else None,
        probes=results,
        conformance=Conformance(
            checked_at=checked_at,
            form=form,
            verdict="refused" if failed else "accepted",
            refusal=f"{failed.name}: {failed.detail}" if failed else None,
            **kept,
        ),
        seconds=clock.monotonic_s() - start_s,
    )
