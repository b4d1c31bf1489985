"""The tables of `bench.remote`, as the other sections give theirs: loads from and pushes to an S3-compatible store on loopback.

Its contenders are processes of their own too; each must have moved at least the bytes of all tensors.
"""

from bench.remote import CEILINGS, NAMES, Rounds, bench_load, bench_push, remote_scene
from bench.results import Kind, Options, Row, Table

FILES = 2
YARDSTICK = "boto3"
KINDS: dict[str, Kind] = {"tensorkeep": "ours", **dict.fromkeys(CEILINGS, "ceiling")}


def remote_tables(options: Options) -> list[Table]:
    """Return the tables ``remote/load`` and ``remote/push``, of the model's first two files."""
    with remote_scene(options.model, FILES) as scene:
        size = scene.size_bytes
        loads, pushes = bench_load(scene, options.rounds), bench_push(scene, options.rounds)
    return [
        _table("remote/load", "Load from Ceph RGW on loopback", loads, size),
        _table("remote/push", "Push to Ceph RGW on loopback", pushes, size),
    ]


def _table(key: str, title: str, found: Rounds, size_bytes: int) -> Table:
    rows = [
        Row(
            NAMES[kind],
            KINDS.get(kind, "other"),
            {
                "seconds": [each.seconds for each in rounds],
                "cpu_seconds": [each.cpu_seconds for each in rounds],
            },
        )
        for kind, rounds in found.items()
    ]
    return Table(key, title, "scripts/bench.sh run remote", rows, NAMES[YARDSTICK], size_bytes)
