"""How much memory a process that is fuzzed may take."""

import resource
from pathlib import Path

MEMORY_BYTES = 256 << 20
"""What an input may make a process take, over what it takes anyway."""


def limit_memory(more_bytes: int) -> None:
    """Let this process take so many bytes more of address space than it has now, and no more: then it gets `MemoryError`."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, hard))
