"""What `verify` calls damaged is so on the device, not on the way from it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import tensorkeep
from tensorkeep.devices.local import LocalDevice


def test_a_bit_that_flipped_on_the_way_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_into = LocalDevice.read_into
    flipped: list[str] = []

    def flip_once(self: LocalDevice, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        read_into(self, name, offset, buffers)
        if name.startswith("parts/") and not flipped:
            flipped.append(name)
            buffers[0][0] ^= 1

    with tensorkeep.open(tmp_path / "store") as store:
        store.devices.add("disk", str(tmp_path / "disk"), bandwidth=10**9)
        store.push({"w": np.arange(1000)}, "acme/llama")
        monkeypatch.setattr(LocalDevice, "read_into", flip_once)
        assert store.verify().problems == ()
        assert len(flipped) == 1
