"""Simulations of many seeds, added up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tensorkeep.testing.simulation import Report, simulate

_ENOUGH = 3
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What many simulations did together; ``failed`` explains those that failed."""

    seeds: int = 0
    failed: tuple[str, ...] = ()
    acknowledged: int = 0
    commits: int = 0
    switches: int = 0
    simulated_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Summary") -> "Summary":
        """Return both together."""
        return Summary(
            seeds=self.seeds + other.seeds,
            failed=self.failed + other.failed,
            acknowledged=self.acknowledged + other.acknowledged,
            commits=self.commits + other.commits,
            switches=self.switches + other.switches,
            simulated_s=self.simulated_s + other.simulated_s,
            outcomes=self.outcomes + other.outcomes,
        )

    def tell(self, seconds: float) -> str:
        """Return it as text; ``seconds`` is how long it took."""
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        return (
            f"{self.seeds} seeds in {seconds:.0f} s: {self.simulated_s / HOUR_S:.0f} simulated hours, {self.switches} switches, "
            f"{self.commits} commits, {self.acknowledged} versions acknowledged; {outcomes}"
        )


def run_seeds(seeds: Iterable[int]) -> Summary:
    """Simulate seeds, until some have failed."""
    total = Summary()
    for seed in seeds:
        total = total.add(_summarize(simulate(seed)))
        if len(total.failed) >= _ENOUGH:
            break
    return total


def _summarize(report: Report) -> Summary:
    return Summary(
        seeds=1,
        failed=(report.explain(),) if report.problems else (),
        acknowledged=report.acknowledged,
        commits=report.commits,
        switches=report.switches,
        simulated_s=report.simulated_s,
        outcomes=report.outcomes,
    )
