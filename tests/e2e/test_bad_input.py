"""Sources, headers, names and revisions that can't be right: what, which, what to do; and nothing that is stored is lost."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorkeep import AlreadyExists, Format, InvalidInput, NotFound, PermissionDenied, TensorkeepError
from tensorkeep.errors import ERROR_TABLE
from tensorkeep.records.manifest import Extent, File, Manifest, decode_manifest, encode_manifest
from tensorkeep.records.version import VersionRecord, encode_version
from tensorkeep.runtime import ManualClock, Runtime, SeededRandomness
from tensorkeep.store.sources import FileSource, open_sources
from tests.e2e.conftest import CommandLine, Models, StoreFactory
from tests.e2e.trees import read_tree, safetensors_bytes, seeded_bytes, tensor_data, write_tree
from tests.e2e.workshop import Workshop

KEPT = {"weights.bin": seeded_bytes(1 << 20, seed=77), "config.json": b"{}"}


@pytest.fixture(scope="module")
def store_with_a_model(shared_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A store that holds ``kept/model@v1`` before anything bad is tried."""
    source = write_tree(tmp_path_factory.mktemp("kept") / "source", KEPT)
    shared_workshop.store.push(source, "kept/model", tag="v1", replicas=2)
    return shared_workshop


@pytest.fixture
def kept(store_with_a_model: Workshop, tmp_path: Path) -> Iterator[Workshop]:
    """That store; after the test, what was stored before must still load and verify, and nothing new have appeared."""
    workshop = store_with_a_model
    before = [(model.name, model.head, model.tags) for model in workshop.store.models()]
    yield workshop
    store = workshop.store
    assert [(model.name, model.head, model.tags) for model in store.models()] == before
    store.pull("kept/model@v1", tmp_path / "kept")
    assert read_tree(tmp_path / "kept") == KEPT
    assert store.verify().problems == ()
    assert workshop.unfinished() == []
    store.gc(grace_s=0, max_fraction=None)  # what refused pushes left is not read again after each test


@contextmanager
def refused(kind: type[TensorkeepError], *messages: str, does: str) -> Iterator[None]:
    """Expect an error of exactly this kind, whose message names the thing (``messages``) and says what to do (``does``)."""
    with pytest.raises(kind) as raised:
        yield
    assert type(raised.value) is kind
    assert ERROR_TABLE[raised.value.code].error is kind
    for message in messages:
        assert message in str(raised.value)
    assert re.search(does, str(raised.value)), f"{raised.value} does not say {does!r}"


# ------------------------------------------------------------------------------------------------ paths


def test_a_path_that_does_not_exist(kept: Workshop, tmp_path: Path, command_line: CommandLine) -> None:
    with refused(NotFound, str(tmp_path / "nothing"), does="does not exist"):
        kept.store.push(tmp_path / "nothing", "bad/model")
    with refused(NotFound, "inside", does="does not exist"):
        kept.store.push(write_tree(tmp_path / "f", {"file": b""}) / "file" / "inside", "bad/model")
    assert command_line("push", "nothing", "bad/model", "--json", store=kept.location, code=3).error["facts"]["path"]


@pytest.mark.parametrize("inside", [(), ("empty",), ("empty/in/empty", "other")])
def test_a_folder_without_files(inside: tuple[str, ...], kept: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in inside:
        (source / folder).mkdir(parents=True)
    with refused(InvalidInput, str(source), does="holds no files: nothing to push"):
        kept.store.push(source, "bad/model")


def test_a_path_with_a_nul_or_of_endless_length(kept: Workshop) -> None:
    with refused(InvalidInput, "a\\x00b", does="holds a NUL"):
        kept.store.push("/tmp/a\0b", "bad/model")
    with refused(InvalidInput, "xxxx", does="too long"):
        kept.store.push("/tmp/" + "x" * 5000, "bad/model")


def test_an_empty_set_of_arrays_and_arrays_of_no_dtype(kept: Workshop) -> None:
    with refused(InvalidInput, does="no arrays were given: nothing to push"):
        kept.store.push({}, "bad/model")
    with refused(InvalidInput, "'w'", "object", does="safetensors does not have"):
        kept.store.push({"w": np.array([None])}, "bad/model")
    with refused(InvalidInput, "list", does="give numpy arrays"):
        kept.store.push({"w": [1, 2, 3]}, "bad/model")
    with refused(InvalidInput, "__metadata__", does="rename the array"):
        kept.store.push({"__metadata__": np.ones(3)}, "bad/model")
    with refused(InvalidInput, does="not valid Unicode"):
        kept.store.push({"\udcff": np.ones(3)}, "bad/model")


# ------------------------------------------------------------------------------------------------ links and odd files


def test_a_linked_folder_inside_the_source(kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"config.json": b"{}"})
    write_tree(tmp_path / "elsewhere", {"file": b""})
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    with refused(InvalidInput, str(source / "linked"), does="is a link to a folder: push the folder itself"):
        kept.store.push(source, "bad/model")


def test_a_link_that_leads_back_into_the_source_ends(kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"config.json": b"{}"})
    (source / "again").symlink_to(source)
    with refused(InvalidInput, "again", does="link to a folder"):
        kept.store.push(source, "bad/model")


@pytest.mark.parametrize("target", ["nothing", "itself"])
def test_a_link_to_nothing(target: str, kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"config.json": b"{}"})
    (source / "link").symlink_to(source / "link" if target == "itself" else "nowhere")
    with refused(InvalidInput, str(source / "link"), does="link to nothing: remove it|Too many levels"):
        kept.store.push(source, "bad/model")
    with refused(InvalidInput, str(source / "link"), does="link to nothing: remove it|Too many levels"):
        kept.store.push(source / "link", "bad/model")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the limit of a socket's path is about 100 bytes


@pytest.mark.parametrize("make", [os.mkfifo, make_socket], ids=["fifo", "socket"])
@pytest.mark.parametrize("how", ["inside", "linked", "itself"])
def test_a_socket_or_a_fifo(
    how: str,
    make: Callable[[Path], None],
    kept: Workshop,
    tmp_path: Path,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_tree(tmp_path / "source", {"config.json": b"{}"})
    odd = tmp_path / "odd" if how == "linked" else source / "odd"
    make(odd)
    if how == "linked":
        (source / "odd").symlink_to(odd)
    pushed = source / "odd" if how == "itself" else source
    with refused(InvalidInput, str(source / "odd"), does="not a regular file: remove it from what is pushed"):
        kept.store.push(pushed, "bad/model")
    if how == "inside":
        command_line("push", pushed, "bad/model", store=kept.location, code=2)


@pytest.mark.parametrize("name", ["null", "zero", "random"])
def test_a_device_node(name: str, kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"config.json": b"{}"})
    (source / "weights.bin").symlink_to(f"/dev/{name}")
    assert stat.S_ISCHR(os.stat(source / "weights.bin").st_mode)
    with refused(InvalidInput, str(source / "weights.bin"), does="not a regular file"):
        kept.store.push(source, "bad/model")
    with refused(InvalidInput, f"/dev/{name}", does="not a regular file"):
        kept.store.push(f"/dev/{name}", "bad/model")


def test_links_to_regular_files_are_followed_wherever_they_lead(
    store_factory: StoreFactory, models: Models, tmp_path: Path
) -> None:
    """A cache of the Hub: snapshots of links to blobs, which are named by their digest."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(models.tiny.iterdir())):
        shutil.copyfile(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    (tmp_path / "linked snapshot").symlink_to(snapshot)
    workshop = store_factory(1)
    version = workshop.store.push(snapshot, "hub/model")
    workshop.store.pull("hub/model", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(models.tiny)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    # What the caller names may be a link itself, to a folder or to a file.
    assert workshop.store.push(tmp_path / "linked snapshot", "hub/model").id == version.id
    workshop.store.push(snapshot / "config.json", "hub/config")
    assert [file.path for file in workshop.store.model("hub/config").files] == ["config.json"]


def unprivileged(*command: object) -> list[str]:
    """Return a command that runs without root's right to read and write everything."""
    words = [str(word) for word in command]
    if os.geteuid() != 0:
        return words
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *words]


@pytest.mark.parametrize("unreadable", ["secret.bin", "folder"])
def test_an_unreadable_file_or_folder(
    unreadable: str, kept: Workshop, tmp_path: Path, command_line: CommandLine
) -> None:
    source = write_tree(tmp_path / "source", {"config.json": b"{}", "secret.bin": b"secret", "folder/file": b""})
    (source / unreadable).chmod(0)
    push = unprivileged(sys.executable, "-m", "tensorkeep", "push", source, "bad/model")
    done = subprocess.run(
        push,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=command_line.environment(TENSORKEEP_STORE=str(kept.location)),
    )
    (source / unreadable).chmod(0o700)
    assert done.returncode == ERROR_TABLE[PermissionDenied.code].exit_code, done
    assert f"{source / unreadable} can't be read: change its permissions" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ files that change


def shrink(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 1)
        file.write(b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a program does that wants to hide it


def replace(path: Path) -> None:
    other = path.with_name("other.tmp~")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


class Once:
    """A failpoint that does something at the first time of a step; whoever comes to a step meanwhile waits until it is done."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self._name: str | None = name
        self._action = action
        self._lock = threading.RLock()

    def hit(self, name: str) -> None:
        """Do it."""
        with self._lock:
            if name == self._name:
                self._name = None
                self._action()


CHANGES: list[Callable[[Path], None]] = [shrink, grow, rewrite, replace, empty, remove, turn_into_folder]
PATHS = ["large.bin", "small.txt", "model.safetensors"]
STEPS = ["push.scanned", "push.planned", "push.part_written"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_changes_during_the_push(
    path: str, change: Callable[[Path], None], step: str, kept: Workshop, tmp_path: Path
) -> None:
    # Each case has bytes of its own: what an earlier one left in the store would not be written again.
    seed = CHANGES.index(change) + 10 * STEPS.index(step) + 100 * PATHS.index(path)
    files = {
        "large.bin": seeded_bytes(5 << 20, seed),
        "small.txt": seeded_bytes(100, seed),
        "model.safetensors": safetensors_bytes({"w": tensor_data("F32", (600, 700), seed)}),
    }
    source = write_tree(tmp_path / "source", files)
    done = threading.Event()

    def change_once() -> None:
        change(source / path)
        done.set()

    store = kept.open(runtime=Runtime(failpoints=Once(step, change_once)))
    with pytest.raises((InvalidInput, Format), match=re.escape(path)) as raised:
        store.push(source, "bad/model")
    assert done.is_set()
    # A header that is half rewritten may also be read as a broken one.
    assert "push again when it is still" in str(raised.value) or type(raised.value) is Format


def test_a_file_that_changed_is_stored_right_by_the_next_push(store_factory: StoreFactory, tmp_path: Path) -> None:
    workshop = store_factory(1)
    source = write_tree(tmp_path / "source", {"a.bin": seeded_bytes(9 << 20), "b.bin": b"b"})
    runtime = Runtime(failpoints=Once("push.part_written", lambda: rewrite(source / "a.bin")))
    with refused(InvalidInput, "a.bin", does="nothing was committed, push again"):
        workshop.open(runtime=runtime).push(source, "acme/m")
    assert workshop.store.models() == []
    workshop.store.push(source, "acme/m")
    workshop.store.pull("acme/m", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)
    workshop.store.gc(grace_s=0, max_fraction=None)
    assert workshop.store.verify().problems == ()


# ------------------------------------------------------------------------------------------------ headers


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


GOOD = safetensors_bytes({"a": tensor_data("F32", (8, 8), 1), "b": tensor_data("I8", (3,), 2)})
BROKEN = {
    "nothing at all": b"",
    "seven bytes": GOOD[:7],
    "a header that is cut off": GOOD[:40],
    "data that is cut off": GOOD[:-1],
    "a byte too much": GOOD + b"\0",
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + GOOD[8:],
    "a header of 2^64-1 bytes": b"\xff" * 8 + GOOD[8:],
    "a header over the limit": (100_000_001).to_bytes(8, "little") + GOOD[8:],
    "text instead of a header": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "no JSON": with_header(b"{x}"),
    "not UTF-8": with_header(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "a list": with_header(b"[]"),
    "tensors that overlap": with_header(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
        b"123456",
    ),
    "a hole": with_header(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}',
        b"123456",
    ),
    "a shape that lies": with_header(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', b"12345678"),
    "a shape of 2^63": with_header(b'{"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,4]}}', b"1234"),
    "a shape whose product overflows to the right size": with_header(
        b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}', b"1234"
    ),
    "offsets of 2^63": with_header(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[9223372036854775808,9223372036854775812]}}', b"1234"
    ),
    "an end before the start": with_header(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}', b"1234"),
    "a negative size": with_header(b'{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}', b"1234"),
    "a dtype that nobody knows": with_header(b'{"a":{"dtype":"F33","shape":[4],"data_offsets":[0,4]}}', b"1234"),
    "a name twice": with_header(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
        b"1234",
    ),
    "metadata that is no text": with_header(b'{"__metadata__":{"a":1}}'),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_safetensors_file_that_is_broken(what: str, kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"sub/model.safetensors": BROKEN[what], "config.json": b"{}"})
    for split in ("auto", "tensor"):
        with refused(Format, "sub/model.safetensors", does="use --split size, which stores it as an opaque file"):
            kept.store.push(source, "bad/model", split=split)


def test_broken_files_are_stored_as_they_are_where_the_user_says_so(
    store_factory: StoreFactory, tmp_path: Path
) -> None:
    workshop = store_factory(1)
    source = write_tree(
        tmp_path / "source", {f"{number}.safetensors": data for number, data in enumerate(BROKEN.values())}
    )
    workshop.store.push(source, "acme/broken", split="size")
    workshop.store.pull("acme/broken", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)
    assert dict(workshop.store.model("acme/broken").tensors) == {}
    with pytest.raises(Format):
        workshop.store.push(source, "acme/other")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"m.safetensors.index.json": b'{"weight_map": {"a": "gone.safetensors"}}'}, ["gone.safetensors"]),
        ({"m.safetensors.index.json": b'{"weight_map": {"zz": "m.safetensors"}}', "m.safetensors": GOOD}, ["zz"]),
        ({"m.safetensors.index.json": b"{"}, ["m.safetensors.index.json"]),
        ({"m.safetensors.index.json": b'{"weight_map": {"a": "../m.safetensors"}}', "m.safetensors": GOOD}, ["../m"]),
    ],
    ids=["a shard that is missing", "a tensor that is missing", "no JSON", "a shard outside"],
)
def test_an_index_that_does_not_fit_its_shards(
    files: dict[str, bytes], names: list[str], kept: Workshop, tmp_path: Path
) -> None:
    with refused(Format, *names, does="."):
        kept.store.push(write_tree(tmp_path / "source", files), "bad/model")


# ------------------------------------------------------------------------------------------------ names of files

UNSAFE = [
    "../evil",
    "a/../../evil",
    "..",
    "/evil",
    "a//b",
    "./a",
    "a/.",
    "",
    "nul\0nul",
    "back\\slash",
    "x" * 256,
    "é" * 128,
]


def test_a_path_that_leads_elsewhere(kept: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system makes most of them; an archive, a Hub or a forged record can."""
    (real,) = open_sources(write_tree(tmp_path / "source", {"file": b"bytes"}) / "file")
    assert isinstance(real, FileSource)
    for path in UNSAFE:
        fake = FileSource(path, real.real_path, real.stamp)
        monkeypatch.setattr("tensorkeep.store.push.open_sources", lambda _, fake=fake: [fake])
        with refused(Format, repr(path), does="rename the file"):
            kept.store.push(tmp_path / "source", "bad/model")


@pytest.mark.parametrize("path", UNSAFE)
def test_a_manifest_with_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    file = File(
        path=path,
        size_bytes=1,
        format="opaque",
        extents=(Extent(0, 0, 1),),
        tensors=(),
        items=(),
        sha256="0" * 64,
        git_sha1=None,
    )
    forged = Manifest(split="size", part_size=4 << 20, files=(file,), parts=(1,), checks="0" * 64)
    with refused(Format, repr(path), does="rename the file"):
        decode_manifest(encode_manifest(forged))


def test_a_pull_of_a_forged_version_writes_nothing_outside(
    store_factory: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = store_factory(1)
    (real,) = open_sources(write_tree(tmp_path / "source", {"file": b"bytes"}) / "file")
    assert isinstance(real, FileSource)
    fake = FileSource("../evil", real.real_path, real.stamp)
    with monkeypatch.context() as patch:
        patch.setattr("tensorkeep.store.push.open_sources", lambda _: [fake])
        patch.setattr("tensorkeep.store.push_manifest.check_manifest", lambda _: None)
        patch.setattr("tensorkeep.records.manifest.check_paths", lambda _: None)
        workshop.store.push(tmp_path / "source", "acme/forged")
    (tmp_path / "out").mkdir()
    with refused(Format, "../evil", does="rename"):
        workshop.open().pull("acme/forged", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\xff\xfe", b"sub\xe9/file"])
def test_a_name_that_is_not_utf_8(name: bytes, kept: Workshop, tmp_path: Path, command_line: CommandLine) -> None:
    source = write_tree(tmp_path / "source", {"config.json": b"{}"})
    path = os.path.join(os.fsencode(source), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"x")
    with refused(Format, "\\udc", does="is not valid UTF-8: rename the file"):
        kept.store.push(source, "bad/model")
    command_line("push", source, "bad/model", "--json", store=kept.location, code=11)


def test_a_name_with_a_backslash(kept: Workshop, tmp_path: Path) -> None:
    with refused(Format, "'a\\\\b'", does="backslash: rename the file"):
        kept.store.push(write_tree(tmp_path / "source", {"a\\b": b""}), "bad/model")


@pytest.mark.parametrize(
    "paths", [("README.md", "Readme.md"), ("a/b", "A/c/d", "a/C"), ("straße", "STRASSE"), ("a/x", "A/X")]
)
def test_names_that_differ_only_in_case(paths: tuple[str, ...], kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", dict.fromkeys(paths, b""))
    with refused(
        Format, paths[-1], does="the same where case does not count: rename one|is a file and also the folder"
    ):
        kept.store.push(source, "bad/model")


def test_odd_but_harmless_names_are_kept(store_factory: StoreFactory, tmp_path: Path) -> None:
    names = [
        "with space",
        "-dash",
        "quote'\"",
        "new\nline",
        "tab\t",
        "*?[glob]",
        "~",
        "a" * 255,
        "é" * 127,
        "...",
        "CON",
    ]
    source = write_tree(tmp_path / "source", {name: name.encode() for name in names})
    workshop = store_factory(1)
    workshop.store.push(source, "acme/odd")
    workshop.store.pull("acme/odd", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)


def test_a_source_folder_whose_own_name_is_not_utf_8_is_pushed(store_factory: StoreFactory, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "config.json").write_bytes(b"{}")
    workshop = store_factory(1)
    first = workshop.store.push(os.fsdecode(folder), "acme/m")
    assert workshop.store.push(os.fsdecode(folder), "acme/m").id == first.id
    workshop.store.pull("acme/m", os.fsdecode(folder + b"/out"))
    assert workshop.store.verify().problems == ()


# ------------------------------------------------------------------------------------------------ names of versions

BAD_NAMES = [
    "",
    " ",
    "a b",
    "-a",
    ".a",
    "ä",
    "a\0b",
    "a\nb",
    "a\n",
    "a@b@c",
    "x" * 201,
    "a//b",
    "/a",
    "a/",
    "a:b",
    "a\\b",
    "..",
    "*",
]
LIKE_IDS = ["abcdef0", "ABCDEF0", "0123456789", "d" * 40]


def test_a_model_name_that_cannot_be(kept: Workshop) -> None:
    for name in [*BAD_NAMES, "a/b/c", *LIKE_IDS, f"acme/{LIKE_IDS[0]}"]:
        does = "choose another" if name.rpartition("/")[2] in LIKE_IDS else "is no model name: write namespace/name"
        if "@" not in name:
            with refused(InvalidInput, repr(name), does=does):
                kept.store.push({"w": np.ones(2)}, name)
            with refused(InvalidInput, repr(name), does=does):
                kept.store.tag(name, "v1")
            with refused(InvalidInput, repr(name), does=does):
                kept.store.rm_model(name)
        with pytest.raises((InvalidInput, NotFound)):
            kept.store.model(name)


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_a_branch_or_tag_name_that_cannot_be(kind: str, kept: Workshop) -> None:
    for name in [*(name for name in BAD_NAMES if name != "a@b@c"), "a@b", *LIKE_IDS]:
        does = "choose another" if name in LIKE_IDS else f"is no {kind} name: use letters, digits"
        options: dict[str, Any] = {kind: name}
        with refused(InvalidInput, repr(name), does=does):
            kept.store.push({"w": np.ones(2)}, "kept/model", **options)
        with refused(InvalidInput, repr(name), does=does):
            getattr(kept.store, kind)("kept/model", name, "v1")


def test_a_tag_that_exists(kept: Workshop, command_line: CommandLine, tmp_path: Path) -> None:
    with refused(AlreadyExists, "'v1'", "kept/model", does="choose another"):
        kept.store.push({"w": np.ones(2)}, "kept/model", tag="v1")
    with refused(AlreadyExists, "v1", does="choose another|delete it first"):
        kept.store.tag("kept/model", "v1")
    source = write_tree(tmp_path / "source", {"a": b""})
    command_line("push", source, "kept/model", "--tag", "v1", store=kept.location, code=4)


def test_a_revision_that_does_not_exist(kept: Workshop, command_line: CommandLine, tmp_path: Path) -> None:
    for revision in ("v2", "0123456", "f" * 40, "feature/x"):
        with refused(NotFound, revision, "kept/model", does="log|show|ls|list"):
            kept.store.model(f"kept/model@{revision}")
        with refused(NotFound, revision, does="."):
            kept.store.pull(f"kept/model@{revision}", tmp_path / "out")
        with refused(NotFound, revision, does="."):
            kept.store.branch("kept/model", "other", to=revision)
    assert not (tmp_path / "out").exists()
    with refused(NotFound, "kept/other", "kept/model", does="the store has"):
        kept.store.model("kept/other")
    command_line("show", "kept/model@v2", store=kept.location, code=3)


def test_an_ambiguous_prefix(store_factory: StoreFactory, tmp_path: Path, command_line: CommandLine) -> None:
    """Two versions whose ids begin alike are searched for, by their messages."""
    clock = ManualClock()
    workshop = store_factory(1, runtime=Runtime(clock=clock, randomness=SeededRandomness(3)))
    first = workshop.store.push({"w": np.ones(2)}, "acme/m", author="ada")
    model = next(model.id for model in workshop.store.models())
    manifest = workshop.store.model("acme/m")._facts.manifest
    seen: dict[str, str] = {}
    pair: tuple[str, str] | None = None
    for number in range(400_000):
        record = VersionRecord(
            model=model,
            parent=None,
            manifest=manifest,
            message=str(number),
            author="ada",
            created_at=first.created_at,
            total_bytes=first.total_bytes,
        )
        version_id, _ = encode_version(record)
        if (other := seen.setdefault(version_id[:7], str(number))) != str(number):
            pair = other, str(number)
            break
    assert pair is not None
    clock.advance(-clock.monotonic_s())
    versions = [
        workshop.store.push({"w": np.ones(2)}, "acme/m", author="ada", branch=f"b{message}", message=message)
        for message in pair
    ]
    assert versions[0].id != versions[1].id
    prefix = versions[0].id[:7]
    assert versions[1].id.startswith(prefix)
    with refused(InvalidInput, prefix, does="more digits|longer|ambiguous"):
        workshop.store.model(f"acme/m@{prefix}")
    with refused(InvalidInput, prefix, does="more digits|longer|ambiguous"):
        workshop.store.rm(f"acme/m@{prefix}")
    for version in versions:
        assert workshop.store.model(f"acme/m@{version.id[:20]}").version.id == version.id
    command_line("show", f"acme/m@{prefix}", store=workshop.location, code=2)
    # A prefix of another model's version means nothing here.
    workshop.store.push({"w": np.ones(2)}, "acme/n")
    with refused(NotFound, prefix, does="."):
        workshop.store.model(f"acme/n@{prefix}")


def test_options_of_a_push_that_cannot_be(kept: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"a": b"a"})
    for options, message in (
        ({"split": "diagonal"}, "diagonal"),
        ({"part_size": 12345}, "12345|MiB"),
        ({"part_size": 65 << 20}, "MiB"),
        ({"part_size": 0}, "MiB"),
        ({"replicas": 0}, "at least 1"),
        ({"replicas": -1}, "at least 1"),
        ({"replicas": 4}, "devices"),
        ({"ec": "4+2"}, "replicas"),
        ({"ec": "nonsense"}, "K\\+M"),
        ({"ec": "2+1", "replicas": 2}, "not both"),
    ):
        with pytest.raises(InvalidInput, match=message):
            kept.store.push(source, "bad/model", **options)
    with pytest.raises(NotFound, match="no/base"):
        kept.store.push(source, "bad/model", base="no/base")
