"""Mounts that tests make, as root, over folders of their own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def read_only_mount(folder: Path) -> Iterator[None]:
    """Mount a folder read-only over itself for a while, for root too. Needs root."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
