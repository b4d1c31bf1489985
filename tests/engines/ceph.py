"""Ceph with its S3 gateway: one monitor, one OSD (bluestore in a sparse file), one radosgw, all in the foreground.

It keeps what it acknowledges and is what S3 means in the tests. Authentication between its parts is off (they listen on
127.0.0.1 only), one copy of everything, few placement groups: a start takes some 15 seconds. Runs as root only.
"""

import http.client
import signal
import uuid

from tests.engines.servers import HOST, Engine, S3Account, Server, find_program, free_ports, has_program, run

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "monmaptool", "radosgw-admin", "ceph")
_STORE_BYTES = 24 << 30
_ACCESS_KEY, _SECRET_KEY = "testkey", "testsecret"

_CONFIG = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{v2},v1:{host}:{v1}]
mon initial members = a
public addr = {host}
cluster addr = {host}
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
# with authentication off, radosgw waits for ever unless the monitor's connections are crc
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
run dir = {folder}
admin socket = {folder}/$name.asok
pid file =
log file =
log to stderr = false
err to stderr = true
mon cluster log to file = false
mon data = {folder}/mon
mon allow pool size one = true
mon max pg per osd = 1000
# a test machine's disk may be nearly full of other things
mon data avail warn = 1
mon data avail crit = 1
mon osd full ratio = 0.99
mon osd nearfull ratio = 0.98
osd data = {folder}/osd
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = bluestore
osd memory target = 939524096
bluestore block create = true
bluestore block size = {store_bytes}
rgw frontends = beast endpoint={host}:{rgw} tcp_nodelay=1
# what is deleted gives its space back soon
rgw gc obj min wait = 1
rgw gc processor period = 20
rgw enable usage log = false
rgw run sync thread = false
rgw thread pool size = 64
"""


class Ceph(Engine):
    """A running Ceph. Its servers are ``mon``, ``osd`` and ``rgw``; ``s3`` says how the gateway is reached."""

    NAME = "ceph"

    @classmethod
    def is_installed(cls) -> bool:
        return all(has_program(name) for name in PROGRAMS)

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its name."""
        return self.s3.make_bucket(name)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of the servers; after SIGKILL it is gone."""
        self.servers[name].kill(number)

    def start(self, name: str, *, limit_s: float = 120) -> None:
        """Start a server again; the gateway answers when this returns, the others are on their way."""
        self.servers[name].start()
        if name == "rgw":
            self.servers[name].wait_until(self.answers, limit_s=limit_s)

    def settle(self) -> None:
        """Return when the gateway has given back the space of what was deleted so far: a measurement after it pays for none of it."""
        run("radosgw-admin", "-c", self._config, "gc", "process", "--include-all")

    def answers(self) -> bool:
        """Return whether the gateway answers a request."""
        asked = http.client.HTTPConnection(HOST, self._port, timeout=5)
        try:
            asked.request("GET", "/")
            return asked.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asked.close()

    def _start_all(self) -> None:
        self._config = self.folder / "ceph.conf"
        v2, v1, self._port = free_ports(3)
        self.s3 = S3Account(f"http://{HOST}:{self._port}", _ACCESS_KEY, _SECRET_KEY)
        self.servers: dict[str, Server] = {}
        self._make_monitor(v2, v1)
        self._make_osd()
        self._make_gateway()

    def _make_monitor(self, v2: int, v1: int) -> None:
        fsid = str(uuid.uuid4())
        text = _CONFIG.format(
            fsid=fsid, host=HOST, v2=v2, v1=v1, rgw=self._port, folder=self.folder, store_bytes=_STORE_BYTES
        )
        self._config.write_text(text)
        monmap = self.folder / "monmap"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:{HOST}:{v2},v1:{HOST}:{v1}]", monmap)
        run("ceph-mon", "-c", self._config, "--mkfs", "-i", "a", "--monmap", monmap)
        self._add("mon", "ceph-mon", "-i", "a")

    def _make_osd(self) -> None:
        identity = str(uuid.uuid4())
        number = run("ceph", "-c", self._config, "--connect-timeout", "60", "osd", "new", identity).strip()
        (self.folder / "osd").mkdir()
        run("ceph-osd", "-c", self._config, "-i", number, "--mkfs", "--osd-uuid", identity)
        self._add("osd", "ceph-osd", "-i", number)

    def _make_gateway(self) -> None:
        self._add("rgw", "radosgw", "-n", "client.rgw.a")
        self.servers["rgw"].wait_until(self.answers, limit_s=120)
        run(
            *("radosgw-admin", "-c", self._config, "user", "create", "--uid=test", "--display-name=test"),
            *(f"--access-key={_ACCESS_KEY}", f"--secret-key={_SECRET_KEY}"),
        )

    def _add(self, name: str, program: str, *words: str) -> None:
        argv = [find_program(program), "-f", "-c", str(self._config), *words]
        self.servers[name] = Server(name, argv, life=self.life)
        self.servers[name].start()
