"""Fuzzes one target in a process of its own, whose memory is limited: ``python -m tests.fuzz.run_seeded TARGET FOLDER RUNS SEED``.

The files of the folder are the examples that are changed. The address space may grow by `MEMORY_BYTES` over what the process
has once it has read every example; an input that makes it take more is a crash, as is one over which it computes for ten seconds.
The last line is JSON: what became of the inputs, and by how much the process grew.
"""

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from tests.fuzz.hdf5_server import close_probe
from tests.fuzz.limits import MEMORY_BYTES, limit_memory
from tests.fuzz.mutator import Mutator
from tests.fuzz.planted import PLANTED
from tests.fuzz.running import fuzz
from tests.fuzz.targets import TARGETS

LIMIT_S = 10.0


def main(name: str, folder: str, runs: int, seed: int) -> None:
    """Run one target, and print what became of it."""
    target = {**TARGETS, **PLANTED}[name]
    examples = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    warm_up = fuzz(target, examples)
    before = peak_bytes()
    limit_memory(MEMORY_BYTES)
    try:
        tally = fuzz(target, _inputs(examples, runs - warm_up.inputs, seed), limit_s=LIMIT_S)
    finally:
        close_probe()
    grown = peak_bytes() - before
    inputs, believed = tally.inputs + warm_up.inputs, tally.believed + warm_up.believed
    print(json.dumps({"inputs": inputs, "believed": believed, "kinds": len(tally.refused), "grown_bytes": grown}))


def _inputs(examples: list[bytes], runs: int, seed: int) -> Iterator[bytes]:
    return islice(Mutator(examples, random.Random(seed)), runs)


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    return getrusage(RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
