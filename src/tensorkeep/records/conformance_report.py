"""A whole check of a device: each probe's result, and what is kept of them."""

from dataclasses import dataclass
from typing import Any, Literal

from tensorkeep.errors import ERROR_TABLE, InvalidInput, TensorkeepError
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import Durability

Outcome = Literal["passed", "failed", "not_applicable"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found. ``code`` is that of the error (`tensorkeep.errors`) with which it failed, else None."""

    name: str
    outcome: Outcome
    detail: str
    facts: dict[str, Any]
    seconds: float
    code: str | None = None


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """A whole check: the probes in the order in which they ran, and what is kept.

    ``name`` is the device's in the store, None for a place that is none yet; ``durability`` its class by what is mounted
    there; ``free_bytes`` what can still be written, None where nobody knows.
    """

    name: str | None
    url: str
    durability: Durability
    free_bytes: int | None
    probes: tuple[ProbeResult, ...]
    conformance: Conformance
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it may be a device."""
        return self.conformance.verdict == "accepted"

    @property
    def refusal(self) -> TensorkeepError | None:
        """The error that says why it may not, of the first probe that failed; None where it may."""
        failed = next((probe for probe in self.probes if probe.outcome == "failed"), None)
        if failed is None:
            return None
        row = ERROR_TABLE.get(failed.code or "")
        error = row.error if row is not None else InvalidInput
        return error(
            f"{self.url} can't be a device: {failed.detail}",
            device=self.name or self.url,
            probe=failed.name,
            reason="device_check",
        )
