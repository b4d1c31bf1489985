"""OpenStack Swift with its S3 middleware: another S3 than Ceph's, with other bugs. From PyPI, in an environment of its own.

One proxy, one account, container and object server (each one process: a parent that is killed leaves its children), one
replica, users in the proxy's configuration. Its object server needs
a file system with user xattrs. Its create-if-absent is not atomic, and it answers If-Match with 501.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from tests.engines.servers import HOST, Engine, S3Account, Server, accepts, free_ports, run

_ENVIRONMENT = Path(__file__).resolve().parents[2] / ".bench" / "swift"
"""Made once for a clone; git ignores it."""

_PACKAGE = "swift==2.38.3"
_RINGS = ("account", "container", "object")

_SWIFT = """\
[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = default
default = yes
"""

_SERVER = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
devices = {folder}/disks
mount_check = false
fallocate_reserve = 0
swift_dir = {folder}
user = {user}
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_PIPELINE = {
    "catch_errors": "catch_errors",
    "gatekeeper": "gatekeeper",
    "cache": "memcache\nmemcache_servers = {host}:{cache}",
    "listing_formats": "listing_formats",
    "bulk": "bulk",
    "s3api": "s3api\ns3_acl = false\nlocation = us-east-1",
    "tempauth": "tempauth\nuser_test_tester = testing .admin",
    "slo": "slo",
    "dlo": "dlo",
    "symlink": "symlink",  # must stand before versions
    "versioned_writes": "versioned_writes\nallow_object_versioning = true",
}

_PROXY = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = {pipeline} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 60
client_timeout = 60
{filters}
"""


class Swift(Engine):
    """A running Swift; ``s3`` says how it is reached."""

    NAME = "swift"

    @classmethod
    def is_installed(cls) -> bool:
        return True  # it is installed when it is first wanted

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its name."""
        return self.s3.make_bucket(name)

    def _start_all(self) -> None:
        programs = _install()
        *ports, proxy, cache = free_ports(len(_RINGS) + 2)  # nothing listens where the cache would
        facts = {"host": HOST, "folder": self.folder, "user": _user_name()}
        (self.folder / "disks" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text(_SWIFT)
        for name, port in zip(_RINGS, ports, strict=True):
            self._make_ring(programs, name, port)
            (self.folder / f"{name}.conf").write_text(_SERVER.format(name=name, port=port, **facts))
        filters = "\n".join(
            f"[filter:{name}]\nuse = egg:swift#{text.format(host=HOST, cache=cache)}"
            for name, text in _PIPELINE.items()
        )
        (self.folder / "proxy.conf").write_text(
            _PROXY.format(port=proxy, pipeline=" ".join(_PIPELINE), filters=filters, **facts)
        )
        self.servers: dict[str, Server] = {}
        for name in (*_RINGS, "proxy"):
            argv = [str(programs / f"swift-{name}-server"), str(self.folder / f"{name}.conf")]
            self.servers[name] = Server(name, argv, life=self.life)
            self.servers[name].start()
        for name, port in zip(self.servers, (*ports, proxy), strict=True):
            self.servers[name].wait_until(lambda port=port: accepts(port), limit_s=60)  # type: ignore[misc]
        self.s3 = S3Account(f"http://{HOST}:{proxy}", "test:tester", "testing")

    def _make_ring(self, programs: Path, name: str, port: int) -> None:
        builder, ring = programs / "swift-ring-builder", self.folder / f"{name}.builder"
        for words in (("create", "4", "1", "1"), ("add", f"r1z1-{HOST}:{port}/d1", "1"), ("rebalance",)):
            run(builder, ring, *words)


def _install() -> Path:
    """Return the folder of Swift's programs, installed where they are not there yet."""
    _ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
    with _ENVIRONMENT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = _ENVIRONMENT / f"installed-{_PACKAGE}"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", _ENVIRONMENT], check=True)
            pip = [str(_ENVIRONMENT / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            # Swift still imports pkg_resources, which newer setuptools have no more.
            subprocess.run([*pip, _PACKAGE, "setuptools<81"], check=True, stdin=subprocess.DEVNULL)
            done.touch()
    return _ENVIRONMENT / "bin"


def _user_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
