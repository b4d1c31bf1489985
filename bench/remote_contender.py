"""One contender of the remote tables, in a process of its own: does what its standard input says, answers with what it cost.

    python bench/remote_contender.py tensorkeep|runai|s3torch|boto3|obstore|ceiling

Each line in is a JSON object: ``{"do": "load", …}`` or ``{"do": "push", …}``; each line out is ``{"seconds", "cpu_seconds",
"bytes"}``. CPU seconds are those of this process with all its threads and children; the server's are not among them. It runs
in the environment of what it measures, so it imports nothing of this repository but tensorkeep, where that is what it measures.
"""

import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np

PAGE_BYTES = 4096
RANGE_BYTES = 8 << 20
OBSTORE_THREADS = 8


def touch(arrays: Any) -> int:
    """Return the bytes of arrays, after a sum over one byte of each of their pages: then every byte can be used."""
    total = 0
    for array in arrays:
        flat = array.reshape(-1).view(np.uint8)
        flat[::PAGE_BYTES].sum(dtype=np.int64)
        total += flat.nbytes
    return total


def tensors_of(data: Any) -> list[Any]:
    """Return the tensors of a safetensors file in memory, as views of their bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + length]))
    header.pop("__metadata__", None)
    flat = np.frombuffer(data, np.uint8)[8 + length :]
    return [flat[slice(*each["data_offsets"])] for each in header.values()]


class Tensorkeep:
    """Ours: a store whose only device is in the bucket."""

    def load(self, job: dict[str, Any]) -> int:
        """Load all tensors, every block verified."""
        import tensorkeep  # noqa: PLC0415 - each contender has its own environment

        with tensorkeep.open(job["store"]) as store:
            return touch(store.model(job["model"]).load(verify=job["verify"]).values())

    def push(self, job: dict[str, Any]) -> int:
        """Push a folder into a store that is there and empty."""
        import tensorkeep  # noqa: PLC0415

        with tensorkeep.open(job["store"]) as store:
            return int(store.push(job["source"], job["model"]).total_bytes)


class Runai:
    """runai-model-streamer with its defaults."""

    def load(self, job: dict[str, Any]) -> int:
        """Stream all tensors; what is yielded is ours to keep."""
        from runai_model_streamer import SafetensorsStreamer  # type: ignore[import-not-found]  # noqa: PLC0415
        from torch import uint8  # noqa: PLC0415

        with SafetensorsStreamer() as streamer:
            streamer.stream_files([f"s3://{job['bucket']}/{key}" for key in job["keys"]])
            tensors = dict(streamer.get_tensors())
            return touch(tensor.view(-1).view(uint8).numpy() for tensor in tensors.values())


class S3Torch:
    """s3torchconnector with its defaults but for the style of addresses that the server needs."""

    def load(self, job: dict[str, Any]) -> int:
        """Read all files whole, one after the other, as its checkpoints are read."""
        from s3torchconnector import S3Checkpoint, S3ClientConfig  # type: ignore[import-not-found]  # noqa: PLC0415

        checkpoint = S3Checkpoint(
            region=job["region"], endpoint=job["endpoint"], s3client_config=S3ClientConfig(force_path_style=True)
        )
        kept = []
        for key in job["keys"]:
            with checkpoint.reader(f"s3://{job['bucket']}/{key}") as reader:
                kept.append(tensors_of(reader.read()))
        return touch(tensor for tensors in kept for tensor in tensors)


class Boto3:
    """boto3's transfer manager with its defaults: ten threads, 8 MiB chunks."""

    def load(self, job: dict[str, Any]) -> int:
        """Download all files into memory."""
        import io  # noqa: PLC0415

        client = _boto3_client(job)
        kept = []
        for key in job["keys"]:
            data = io.BytesIO()
            client.download_fileobj(job["bucket"], key, data)
            kept.append(tensors_of(data.getbuffer()))
        return touch(tensor for tensors in kept for tensor in tensors)

    def push(self, job: dict[str, Any]) -> int:
        """Upload all files."""
        client = _boto3_client(job)
        for path, key in zip(job["paths"], job["keys"], strict=True):
            client.upload_file(path, job["bucket"], key)
        return sum(os.path.getsize(path) for path in job["paths"])


class Obstore:
    """What obstore gives: ranges of all files, thrown away; 8 threads, 8 MiB each."""

    def load(self, job: dict[str, Any]) -> int:
        """Get all ranges."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        import obstore  # noqa: PLC0415
        from obstore.store import S3Store  # noqa: PLC0415

        client = S3Store(
            job["bucket"],
            endpoint=job["endpoint"],
            region=job["region"],
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

        def get(task: tuple[str, int, int]) -> int:
            key, start, end = task
            return len(obstore.get_range(client, key, start=start, end=end))

        with ThreadPoolExecutor(OBSTORE_THREADS) as pool:
            return sum(pool.map(get, _ranges(job["keys"], job["sizes"])))


def _ranges(names: list[str], sizes: list[int]) -> list[tuple[str, int, int]]:
    """Return the ranges of 8 MiB that files are: name, start, end."""
    return [
        (name, start, min(start + RANGE_BYTES, size))
        for name, size in zip(names, sizes, strict=True)
        for start in range(0, size, RANGE_BYTES)
    ]


class Ceiling:
    """What the server gives: ranges of all files over plain sockets, thrown away."""

    def load(self, job: dict[str, Any]) -> int:
        """Receive all files by four connections."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        with ThreadPoolExecutor(4) as pool:
            return sum(pool.map(_drain, _ranges(job["urls"], job["sizes"])))


def _drain(task: tuple[str, int, int]) -> int:
    import socket  # noqa: PLC0415
    from urllib.parse import urlsplit  # noqa: PLC0415

    url, start, end = task
    where = urlsplit(url)
    ask = f"GET {where.path}?{where.query} HTTP/1.1\r\nHost: {where.netloc}\r\nRange: bytes={start}-{end - 1}\r\n"
    count = 0
    with socket.create_connection((str(where.hostname), where.port or 80)) as connection:
        connection.sendall(ask.encode() + b"Connection: close\r\n\r\n")
        scratch = memoryview(bytearray(1 << 20))
        while got := connection.recv_into(scratch):
            count += got
    return count


def _boto3_client(job: dict[str, Any]) -> Any:
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    return boto3.client(
        "s3",
        endpoint_url=job["endpoint"],
        region_name=job["region"],
        config=Config(s3={"addressing_style": "path"}),
    )


CONTENDERS: dict[str, type] = {
    "tensorkeep": Tensorkeep,
    "runai": Runai,
    "s3torch": S3Torch,
    "boto3": Boto3,
    "obstore": Obstore,
    "ceiling": Ceiling,
}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, its threads and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Answer jobs until the input ends."""
    contender = CONTENDERS[sys.argv[1]]()
    for line in sys.stdin:
        job = json.loads(line)
        wall, cpu = time.perf_counter(), cpu_seconds()
        count = getattr(contender, job["do"])(job)
        answer = {"seconds": time.perf_counter() - wall, "cpu_seconds": cpu_seconds() - cpu, "bytes": count}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
