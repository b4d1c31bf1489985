"""A probe: one question to a place, asked below a folder of its own. It returns a finding, or raises why it must be refused."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tensorkeep.devices.conformance.judging import Answer
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import InvalidInput, TensorkeepError
from tensorkeep.records.conformance import CheckForm
from tensorkeep.records.conformance_report import ProbeResult
from tensorkeep.records.naming import PartName, physical_name
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime

SiteKind = Literal["folder", "object_store", "memory"]

_STOPS = frozenset({"unavailable", "permission_denied", "capacity"})
"""Codes of errors after which no more is asked: the rest would fail for the same reason, slowly."""


class RawStore(Protocol):
    """Requests to an object store that its device would not make. See `tensorkeep.devices.conformance.raw_http`."""

    def request(
        self,
        method: Literal["GET", "HEAD", "PUT"],
        name: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Return the answer to a signed request for an object of the site."""

    def break_off(self, name: str, body: bytes, promised: int) -> None:
        """Begin to upload an object of ``promised`` bytes, and close the connection after those of ``body``."""

    def put_hashed(self, name: str, body: bytes, digest: str) -> Answer | None:
        """Return the answer to a PUT signed as one of a body of that SHA-256 (hex); None where there is no such thing."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where probes do their work: a device of its own inside the place that is checked.

    ``device`` and ``other`` are two connections to it. ``folder`` is the folder of the site, and ``root`` that of the place,
    where it is of this machine. ``raw`` is there for object stores.
    """

    kind: SiteKind
    url: str
    place_url: str
    device: Device
    other: Device
    runtime: Runtime
    form: CheckForm
    folder: str = ""
    root: str = ""
    raw: RawStore | None = None

    @property
    def full(self) -> bool:
        """Whether everything is asked."""
        return self.form == "full"

    def ulid(self) -> str:
        """Return a fresh ulid."""
        return make_ulid(self.runtime.clock.now(), self.runtime.randomness.random_bytes(RANDOM_BYTES))

    def digest(self) -> bytes:
        """Return a random digest; its first byte is 0, so that a site needs few folders."""
        return b"\0" + self.runtime.randomness.random_bytes(31)

    def part_name(self) -> str:
        """Return the physical name of a new part."""
        return physical_name(PartName(self.digest(), self.ulid()))

    def timed(self, call: Callable[[], object]) -> float:
        """Return the seconds that a call took."""
        start_s = self.runtime.clock.monotonic_s()
        call()
        return self.runtime.clock.monotonic_s() - start_s

    def at_once(self, count: int, task: Callable[[int], Any]) -> list[Any]:
        """Return what ``task(0)`` to ``task(count - 1)`` return, run at the same time."""
        with self.runtime.workers.open_pool(count, "check") as pool:
            return [future.result() for future in [pool.submit(task, number) for number in range(count)]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found: a sentence, its facts, and the fields of `Conformance` that it fills."""

    detail: str
    facts: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. ``kinds`` are those of sites that it is asked of; the short form leaves out what is not ``short``.

    What is ``heavy`` moves much or waits long, and is not asked of a place that is refused already.
    """

    name: str
    ask: Callable[[Site], Finding]
    kinds: frozenset[SiteKind] = frozenset({"folder", "object_store", "memory"})
    short: bool = True
    heavy: bool = False


class Refused(Exception):
    """Raised by a probe: what is wrong with the place, and the class of error that its user shall get."""

    def __init__(self, problem: str, error: type[TensorkeepError] = InvalidInput) -> None:
        super().__init__(problem)
        self.problem = problem
        self.code = error.code


def refuse(problem: str | None, error: type[TensorkeepError] = InvalidInput) -> None:
    """Return if there is no problem.

    Args:
        problem: the end of a sentence that begins with the place.
        error: by what the user does next: `InvalidInput` where the place has other semantics, `Integrity` where bytes differ.

    Raises:
        Refused: there is one.
    """
    if problem is not None:
        raise Refused(problem, error)


def ask_all(site: Site, probes: Iterable[Probe]) -> Iterator[tuple[ProbeResult, dict[str, Any]]]:
    """Yield each probe's result and what is to be kept, in order; a short check ends at the first that failed."""
    refused = False
    for probe in probes:
        if not (site.full or probe.short) or (probe.heavy and refused):
            continue
        if site.kind not in probe.kinds:
            yield ProbeResult(probe.name, "not_applicable", f"not asked of {_PLURALS[site.kind]}", {}, 0.0), {}
            continue
        result, kept = _ask(site, probe)
        yield result, kept
        refused = refused or result.outcome == "failed"
        if refused and (not site.full or result.code in _STOPS):
            return


_PLURALS = {"folder": "folders", "object_store": "object stores", "memory": "memory"}


def _ask(site: Site, probe: Probe) -> tuple[ProbeResult, dict[str, Any]]:
    start_s = site.runtime.clock.monotonic_s()
    finding: Finding | None = None
    detail = code = ""
    try:
        finding = probe.ask(site)
    except Refused as refused:
        detail, code = f"it {refused.problem}", refused.code
    except TensorkeepError as error:
        detail, code = error.message.replace(site.url, site.place_url), error.code
    seconds = site.runtime.clock.monotonic_s() - start_s
    if finding is None:
        return ProbeResult(probe.name, "failed", detail, {}, seconds, code), {}
    return ProbeResult(probe.name, "passed", finding.detail, finding.facts, seconds), finding.kept
