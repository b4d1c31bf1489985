"""A file of a million tensors: pushed, loaded and pulled in bounded memory; row 34 of the fault matrix."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorkeep

TENSORS = 1_000_000
MOST_BYTES = 2 << 30
"""Of memory, for any verb: about 2 kB for each tensor."""

# Each verb in a process of its own. VmHWM, not ru_maxrss: the latter is inherited from the process that started this one.
_VERB = """
import sys
import numpy as np
import tensorkeep

folder, verb, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with tensorkeep.open(folder + "/store") as store:
    if verb == "push":
        store.push(folder + "/model.safetensors", "wide", replicas=2)
    elif verb == "load one":
        name = f"t{count // 3:07d}"
        assert store.model("wide").load(include=name)[name].tolist() == [2 * (count // 3), 2 * (count // 3) + 1]
    elif verb == "load":
        arrays = store.model("wide").load()
        assert len(arrays) == count
        assert all(arrays[f"t{n:07d}"][1] == 2 * n + 1 for n in range(count))
    elif verb == "pull":
        store.pull("wide", folder + "/pulled")
    else:
        assert store.verify().ok
peak, = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) << 10)
"""


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_file_of_a_million_tensors_is_pushed_loaded_and_pulled_in_bounded_memory(tmp_path: Path) -> None:
    header = {f"t{n:07d}": {"dtype": "F32", "shape": [2], "data_offsets": [8 * n, 8 * n + 8]} for n in range(TENSORS)}
    text = json.dumps(header, separators=(",", ":")).encode()
    source = tmp_path / "model.safetensors"
    source.write_bytes(len(text).to_bytes(8, "little") + text + np.arange(2 * TENSORS, dtype=np.float32).tobytes())
    with tensorkeep.init(tmp_path / "store") as store:
        for name in "ab":
            store.devices.add(name, str(tmp_path / name), bandwidth=1 << 30)
    peaks = {}
    for verb in ("push", "load one", "load", "pull", "verify"):
        child = subprocess.run(
            [sys.executable, "-c", _VERB, str(tmp_path), verb, str(TENSORS)], check=True, capture_output=True, text=True
        )
        peaks[verb] = int(child.stdout)
    assert (tmp_path / "pulled" / "model.safetensors").read_bytes() == source.read_bytes()
    assert max(peaks.values()) < MOST_BYTES, peaks
    print({verb: f"{peak >> 20} MiB" for verb, peak in peaks.items()})
