"""Fuzzes one target by coverage: ``python -m tests.fuzz.run_atheris TARGET CORPUS ARTIFACTS RUNS``.

atheris (libFuzzer) counts the branches of tensorkeep that an input takes, and keeps those inputs that take new ones. Only
tensorkeep is counted. A crash is printed with its input in hex, and ends the process with a code over 0.
"""

import os
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["tensorkeep"], enable_loader_override=False):
    from tests.fuzz.planted import PLANTED
    from tests.fuzz.targets import TARGETS

from tests.fuzz.limits import MEMORY_BYTES, limit_memory
from tests.fuzz.run_seeded import LIMIT_S, peak_bytes
from tests.fuzz.running import Crash, Tally, run_one

OVERHEAD_BYTES = 256 << 20
"""What libFuzzer may take for itself: its corpus and its counters."""

_LONGEST_BYTES = 8192


def main(name: str, corpus: str, artifacts: str, runs: int) -> None:
    """Run one target; never returns, since libFuzzer ends the process."""
    target = {**TARGETS, **PLANTED}[name]
    limit_mb = (peak_bytes() + MEMORY_BYTES + OVERHEAD_BYTES) >> 20
    options = (
        f"-runs={runs}",
        "-seed=1",
        f"-max_len={_LONGEST_BYTES}",
        f"-timeout={LIMIT_S:.0f}",
        f"-rss_limit_mb={limit_mb}",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], corpus, *options], _caller(target))
    limit_memory(MEMORY_BYTES + OVERHEAD_BYTES)
    atheris.Fuzz()


def _caller(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    tally = Tally()

    def call(data: bytes) -> None:
        try:
            run_one(target, data, tally)
        except Crash as crash:
            os.write(2, f"{crash}\n".encode())
            raise

    return call


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
