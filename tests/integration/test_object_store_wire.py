"""Devices on Ceph behind a cable that flips bits: what was damaged on its way in is refused by the store and sent again."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import tensorkeep
from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_url import parse_object_store_url
from tensorkeep.errors import Unavailable
from tensorkeep.runtime import Runtime
from tensorkeep.testing.device_contract import content, listed, part
from tests.engines.servers import S3Account

MIB = 1 << 20


class Cable:
    """Passes bytes on. ``flips``: in how many of the next large pieces towards the server one bit is turned."""

    def __init__(self, flips: int = 0) -> None:
        self.flips = flips
        self.flipped = 0
        self._lock = threading.Lock()

    def towards_server(self, piece: bytes) -> bytes:
        with self._lock:
            if self.flips == 0 or len(piece) < 16_384:  # heads are smaller
                return piece
            self.flips -= 1
            self.flipped += 1
        return piece[:-1] + bytes([piece[-1] ^ 1])


@contextmanager
def lay(cable: Cable, endpoint: str) -> Iterator[str]:
    """Give the endpoint of a proxy that passes everything through a cable."""
    target = (urlsplit(endpoint).hostname or "", urlsplit(endpoint).port or 80)
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
        try:
            while piece := source.recv(65_536):
                sink.sendall(change(piece))
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def start(task: Callable[..., None], *args: object) -> None:
        threads.append(threading.Thread(target=task, args=args))
        threads[-1].start()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(target)
            sockets.extend((client, server))
            start(pump, client, server, cable.towards_server)
            start(pump, server, client, bytes)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        start(accept)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for each in sockets:
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            for thread in threads:
                thread.join()
            for each in sockets:
                each.close()


def open_device(ceph: S3Account, bucket: str, prefix: str, endpoint: str | None = None) -> ObjectStoreDevice:
    url = ceph.device_url(bucket, prefix).replace(ceph.endpoint, endpoint or ceph.endpoint)
    return ObjectStoreDevice(parse_object_store_url(url), runtime=Runtime(environment=ceph.environment()))


def test_a_bit_flipped_on_the_way_in_is_refused_by_the_store_and_leaves_nothing(
    ceph: S3Account, ceph_bucket: str
) -> None:
    cable = Cable(flips=1)
    with lay(cable, ceph.endpoint) as endpoint:
        device = open_device(ceph, ceph_bucket, "flip", endpoint)
        with pytest.raises(Unavailable, match="damaged on their way") as caught:
            device.put(part(1), [content(MIB)])
        assert cable.flipped == 1
        assert caught.value.facts["passing"] is True
        assert listed(device) == {}
        device.put(part(1), [content(MIB)])
        assert device.read(part(1)) == content(MIB)


def test_a_push_over_a_cable_that_flips_bits_stores_right_bytes(
    ceph: S3Account, ceph_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    arrays = {f"layers.{n}.w": np.random.default_rng(n).standard_normal(MIB, dtype=np.float32) for n in range(4)}
    cable = Cable()
    with lay(cable, ceph.endpoint) as endpoint, tensorkeep.init(tmp_path / "store") as store:
        store.devices.add("s1", ceph.device_url(ceph_bucket, "push").replace(ceph.endpoint, endpoint), bandwidth=MIB)
        cable.flips = 3
        version = store.push(arrays, "acme/m", part_size=4 * MIB)
        assert cable.flipped == 3
        assert version.report is not None
        assert not version.report.warnings
        loaded = store.model("acme/m").load()
        assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())
        assert store.verify().ok


def test_listings_are_read_to_their_last_page(ceph: S3Account, ceph_bucket: str) -> None:
    device = open_device(ceph, ceph_bucket, "pages")
    names = [part(number) for number in range(1203)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: device.put(name, [b"x"]), names))
    assert listed(device) == dict.fromkeys(names, 1)
    assert sum(1 for _ in device.iter_objects("parts/00/")) == sum(name.startswith("parts/00/") for name in names)
