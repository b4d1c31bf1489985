"""Split and join: the file comes back, or the message names what is wrong with which part."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorkeep
from tensorkeep import AlreadyExists, Capacity, Format, Integrity, InvalidInput, NotFound, PermissionDenied
from tensorkeep.records.digest import blake3_256
from tensorkeep.runtime import InlineWorkers, Runtime
from tensorkeep.store.reports import Progress
from tests.e2e.conftest import CommandLine
from tests.e2e.trees import read_tree, seeded_bytes, write_tree
from tests.mounts import read_only_mount

SIZE = 10_007
DATA = seeded_bytes(SIZE, seed=1)
NAME = "model.bin"
INDEX = "model.bin.parts.json"


class Desk:
    """A file to split, and two folders for its parts."""

    def __init__(self, folder: Path, data: bytes = DATA) -> None:
        self.folder = folder
        self.data = data
        write_tree(folder, {NAME: data})
        self.source = folder / NAME
        self.index = folder / INDEX
        self.to = [folder / "a", folder / "b"]
        self.out = folder / "out.bin"

    def split(self, parts: int = 4, **options: Any) -> "tensorkeep.SplitReport":
        return tensorkeep.split_file(self.source, parts=parts, **{"to": self.to, **options})

    def join(self, **options: Any) -> "tensorkeep.JoinReport":
        report = tensorkeep.join_file(self.index, self.out, **options)
        assert self.out.read_bytes() == self.data
        return report

    def part(self, number: int, count: int = 4) -> Path:
        return self.to[(number - 1) % 2] / f"{NAME}.part-{number}-of-{count}"

    def flip(self, number: int, at: int, count: int = 4) -> None:
        data = bytearray(self.part(number, count).read_bytes())
        data[at] ^= 1
        self.part(number, count).write_bytes(data)

    def fails(self, error: type[Exception], match: str, **options: Any) -> list[dict[str, Any]]:
        """Assert that a join fails and leaves nothing; return the problems in its facts."""
        before = read_tree(self.folder)
        with pytest.raises(error, match=match) as caught:
            tensorkeep.join_file(self.index, self.out, **options)
        assert read_tree(self.folder) == before
        found: list[dict[str, Any]] = getattr(caught.value, "facts", {}).get("problems", [])
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 100])
def test_a_file_comes_back_from_any_number_of_parts(desk: Desk, count: int) -> None:
    report = desk.split(count)
    assert [part.start for part in report.parts] == [i * SIZE // count for i in range(count)]
    assert b"".join(Path(part.path).read_bytes() for part in report.parts) == DATA
    joined = desk.join()
    assert (joined.blake3, joined.sha256, joined.size_bytes) == (report.blake3, report.sha256, SIZE)
    assert joined.parts == report.parts
    assert joined.warnings == ()


def test_digests_are_those_that_other_tools_compute(desk: Desk) -> None:
    import hashlib

    for count in (1, 3):
        report = desk.split(count, force=True)
        assert (report.blake3, report.sha256) == (blake3_256(DATA).hex(), hashlib.sha256(DATA).hexdigest())
        for part in report.parts:
            data = DATA[part.start : part.start + part.size_bytes]
            assert (part.blake3, part.sha256) == (blake3_256(data).hex(), hashlib.sha256(data).hexdigest())


def test_parts_take_turns_in_the_folders_and_each_has_a_copy_of_the_index(desk: Desk) -> None:
    report = desk.split(3)
    assert sorted(read_tree(desk.folder)) == [
        *(f"a/{NAME}.part-1-of-3", f"a/{NAME}.part-3-of-3", f"a/{INDEX}"),
        *(f"b/{NAME}.part-2-of-3", f"b/{INDEX}"),
        *(NAME, INDEX),
    ]
    assert report.index == str(desk.index)
    assert report.copies == (str(desk.to[0] / INDEX), str(desk.to[1] / INDEX))


def test_without_folders_the_parts_lie_beside_the_file_and_the_index_is_there_once(desk: Desk) -> None:
    report = desk.split(12, to=None)
    assert report.copies == ()
    assert sorted(read_tree(desk.folder)) == [NAME, *(f"{NAME}.part-{i:02}-of-12" for i in range(1, 13)), INDEX]
    desk.join()


def test_a_folder_may_be_that_of_the_file(desk: Desk) -> None:
    assert desk.split(2, to=[desk.folder, desk.to[0]]).copies == (str(desk.to[0] / INDEX),)
    desk.join()


def test_a_folder_beyond_the_number_of_parts_gets_nothing(desk: Desk) -> None:
    desk.split(1)
    assert not desk.to[1].exists()
    desk.join()


def test_any_copy_of_the_index_finds_all_parts_by_relative_and_by_absolute_folders(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(desk.folder)
    for to in (["a", "b"], desk.to):
        desk.split(to=to, force=True)
        for place in (desk.folder, *desk.to):
            out = tmp_path / "out.bin"
            tensorkeep.join_file(place / INDEX, out, force=True)
            assert out.read_bytes() == DATA


def test_folders_that_were_given_as_relative_ones_may_move_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(desk.folder)
    desk.split(to=["a", "b"])
    desk.folder.rename(tmp_path / "moved")
    tensorkeep.join_file(tmp_path / "moved" / "b" / INDEX, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == DATA


def test_a_link_to_a_folder_is_followed_before_relative_paths_are_made(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (desk.folder / "a").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(desk.folder)
    desk.split(to=["a", "b"])
    desk.index.unlink()
    for copy in (desk.folder / "a" / INDEX, desk.folder / "b" / INDEX, tmp_path / "far" / "away" / INDEX):
        tensorkeep.join_file(copy, tmp_path / "out.bin", force=True)
        assert (tmp_path / "out.bin").read_bytes() == DATA


def test_parts_are_found_beside_the_index_and_in_folders_that_are_given(desk: Desk, tmp_path: Path) -> None:
    desk.split()
    moved = [tmp_path / "c", tmp_path / "d"]
    for folder, new in zip(desk.to, moved, strict=True):
        folder.rename(new)
    desk.join(sources=moved)
    desk.out.unlink()
    for folder in moved:
        for part in folder.glob("*.part-*"):
            part.rename(desk.folder / part.name)
    desk.join()


def test_the_old_name_beside_the_index_is_the_default(desk: Desk) -> None:
    desk.split()
    desk.source.unlink()
    assert tensorkeep.join_file(desk.index).path == str(desk.source)
    assert desk.source.read_bytes() == DATA


def test_missing_folders_are_made_for_parts_and_for_the_file(desk: Desk, tmp_path: Path) -> None:
    desk.split(2, to=tmp_path / "x" / "y")
    tensorkeep.join_file(desk.index, tmp_path / "z" / "out.bin")
    assert (tmp_path / "z" / "out.bin").read_bytes() == DATA


def test_an_empty_file_makes_one_empty_part(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", b"")
    with pytest.raises(InvalidInput, match="an empty file makes 1 part"):
        desk.split(2)
    report = desk.split(1)
    assert [part.size_bytes for part in report.parts] == [0]
    desk.join()
    desk.part(1, 1).write_bytes(b"x")
    desk.out.unlink()
    desk.fails(Integrity, "part 1 has the wrong size: .* has 1 bytes, not 0")


def test_workers_that_run_one_at_a_time_make_the_same(desk: Desk) -> None:
    threaded = desk.split(3)
    files = read_tree(desk.folder)
    inline = desk.split(3, force=True, runtime=Runtime(workers=InlineWorkers()))
    assert read_tree(desk.folder) == files
    assert inline.parts == threaded.parts
    desk.join(runtime=Runtime(workers=InlineWorkers()))


def test_a_link_to_a_file_is_followed_and_gives_its_name(desk: Desk) -> None:
    (desk.folder / "link").symlink_to(desk.source)
    tensorkeep.split_file(desk.folder / "link", parts=2)
    tensorkeep.join_file(desk.folder / "link.parts.json", desk.out)
    assert desk.out.read_bytes() == DATA


@pytest.mark.parametrize(
    "name", ["new\nline", "sp ace", "-dash", "üñï☃", ".hidden", "quote\"'", "a.part-1-of-1", "x" * 230]
)
def test_names_of_all_kinds_come_back(name: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {name: DATA})
    tensorkeep.split_file(tmp_path / name, parts=10, to=tmp_path / "to")
    (tmp_path / name).unlink()
    tensorkeep.join_file(tmp_path / f"{name}.parts.json")
    assert (tmp_path / name).read_bytes() == DATA


def test_progress_tells_of_every_byte_of_both(desk: Desk) -> None:
    told: list[Progress] = []
    desk.split(progress=told.append)
    assert told[-1] == Progress("split", SIZE, SIZE)
    desk.join(progress=told.append)
    assert told[-1] == Progress("join", SIZE, SIZE)


# ---------------------------------------------------------------- what is wrong with parts


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("at", [0, 1250, -1], ids=["first", "middle", "last"])
def test_a_flipped_byte_names_its_part(desk: Desk, number: int, at: int) -> None:
    desk.split()
    desk.flip(number, at)
    problems = desk.fails(Integrity, f"1 of its 4 parts is not right:\npart {number} is damaged: the BLAKE3 of")
    assert [(p["part"], p["kind"], p["path"]) for p in problems] == [(number, "damaged", str(desk.part(number)))]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_removed_part_is_named_with_the_places_where_it_was_looked_for(desk: Desk, number: int) -> None:
    desk.split()
    desk.part(number).unlink()
    place = desk.to[(number - 1) % 2]
    problems = desk.fails(
        NotFound, f"part {number} is missing: {NAME}.part-{number}-of-4 is not in {place} or {desk.folder}$"
    )
    assert [(p["part"], p["kind"]) for p in problems] == [(number, "missing")]


@pytest.mark.parametrize(("one", "other"), [(2, 3), (1, 2), (1, 4)])
def test_swapped_parts_are_named_whatever_their_sizes(desk: Desk, one: int, other: int) -> None:
    desk.split()
    swap(desk.part(one), desk.part(other))
    problems = desk.fails(
        Integrity,
        f"parts {one} and {other} are swapped: {desk.part(one)} holds what part {other} should, "
        f"{desk.part(other)} what part {one} should$",
    )
    assert [(p["part"], p["kind"], p["holds_part"]) for p in problems] == [
        (one, "swapped", other),
        (other, "swapped", one),
    ]


def test_parts_that_went_round_are_each_named(desk: Desk) -> None:
    desk.split()
    swap(desk.part(1), desk.part(2))
    swap(desk.part(2), desk.part(3))
    problems = desk.fails(Integrity, f"part 1 is not in its place: {desk.part(1)} holds what part 2 should")
    assert [(p["part"], p["holds_part"]) for p in problems] == [(1, 2), (2, 3), (3, 1)]


def test_a_part_in_two_places_is_named_where_it_should_not_be(desk: Desk) -> None:
    desk.split()
    desk.part(2).write_bytes(desk.part(3).read_bytes())
    desk.fails(Integrity, f"\npart 2 is not in its place: {desk.part(2)} holds what part 3 should$")


@pytest.mark.parametrize("change", [-1, 1, -2502])
def test_a_part_of_another_size_is_named_with_its_sizes(desk: Desk, change: int) -> None:
    desk.split()
    data = desk.part(3).read_bytes()
    desk.part(3).write_bytes((data + b"x" * 5)[: len(data) + change])
    size = len(data)
    desk.fails(Integrity, f"part 3 has the wrong size: {desk.part(3)} has {size + change} bytes, not {size}$")


def test_a_part_of_an_older_split_is_named_by_the_index_that_lies_beside_it(desk: Desk, tmp_path: Path) -> None:
    desk.split()
    old = {path: path.read_bytes() for path in desk.to[1].iterdir()}
    desk.source.write_bytes(seeded_bytes(SIZE, seed=2))
    desk.split(force=True)
    for path, data in old.items():
        path.write_bytes(data)
    problems = desk.fails(
        Integrity, f"part 2 is of another split: {desk.part(2)} holds part 2 of the {NAME} that {desk.to[1] / INDEX}"
    )
    assert [(p["part"], p["kind"]) for p in problems] == [(2, "foreign"), (4, "foreign")]


def test_all_that_is_wrong_is_told_at_once_and_damage_counts_most(desk: Desk) -> None:
    desk.split(7)
    desk.part(1, 7).unlink()
    desk.flip(2, 0, 7)
    swap(desk.part(3, 7), desk.part(4, 7))
    desk.part(5, 7).write_bytes(b"")
    desk.part(6, 7).unlink()
    desk.part(6, 7).mkdir()
    problems = desk.fails(Integrity, "6 of its 7 parts are not right")
    assert [(p["part"], p["kind"]) for p in problems] == [
        (1, "missing"),
        (2, "damaged"),
        (3, "swapped"),
        (4, "swapped"),
        (5, "size"),
        (6, "unreadable"),
    ]


def test_a_long_list_of_problems_is_cut_in_the_message_and_whole_in_the_facts(desk: Desk) -> None:
    desk.split(100)
    for folder in desk.to:
        for part in folder.glob("*.part-*"):
            part.unlink()
    assert len(desk.fails(NotFound, "100 of its 100 parts are not right(.|\n)*\nand 80 more$")) == 100


def test_a_bad_copy_is_passed_over_where_there_is_a_good_one(desk: Desk, tmp_path: Path) -> None:
    desk.split()
    good = write_tree(tmp_path / "good", {desk.part(2).name: desk.part(2).read_bytes()})
    desk.flip(2, 7)
    report = desk.join(sources=good)
    assert report.parts[1].path == str(good / desk.part(2).name)
    assert [warning.split(":")[0] for warning in report.warnings] == ["part 2 is damaged"]
    assert report.warnings[0].endswith(f"{good / desk.part(2).name} was read instead")


def test_a_copy_that_can_not_be_read_to_its_end_is_passed_over(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.split()
    good = write_tree(tmp_path / "good", {desk.part(1).name: desk.part(1).read_bytes()})
    bad = os.stat(desk.part(1)).st_ino
    preadv = os.preadv

    def fail(descriptor: int, *args: Any) -> int:
        if os.fstat(descriptor).st_ino == bad:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, *args)

    monkeypatch.setattr(os, "preadv", fail)
    assert "Input/output error" in desk.join(sources=[good]).warnings[0]
    desk.out.unlink()
    with pytest.raises(tensorkeep.Unavailable, match=r"part 1 can't be read: .*Input/output error"):
        desk.join()


def test_pipes_in_the_place_of_parts_are_not_waited_for(desk: Desk) -> None:
    desk.split()
    desk.part(1).unlink()
    os.mkfifo(desk.part(1))
    with pytest.raises(tensorkeep.Unavailable, match=r"part 1 can't be read: .* is not a regular file"):
        desk.join()


# ---------------------------------------------------------------- the index


def test_an_edited_index_is_noticed(desk: Desk) -> None:
    desk.split()
    desk.index.write_text(desk.index.read_text().replace('"start":0', '"start":1'))
    desk.fails(Integrity, f"{desk.index} is damaged: its checksum does not fit; each folder of parts has a copy")


def test_an_index_of_a_newer_format_asks_for_an_upgrade(desk: Desk) -> None:
    desk.split()
    body = desk.index.read_bytes().partition(b',"index_blake3"')[0] + b"}"
    body = body.replace(b'"format":1', b'"format":2')
    desk.index.write_bytes(body[:-1] + b',"index_blake3":"' + blake3_256(body).hex().encode() + b'"}\n')
    desk.fails(Format, "upgrade tensorkeep")


def test_an_index_whose_parts_fit_and_whole_does_not_is_refused(desk: Desk) -> None:
    desk.split()
    fields = json.loads(desk.index.read_text())
    del fields["index_blake3"]
    fields["sha256"] = "00" * 32
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    desk.index.write_bytes(body[:-1] + b',"index_blake3":"' + blake3_256(body).hex().encode() + b'"}\n')
    desk.fails(Integrity, "every part of model.bin fits the index, but the whole does not")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, NotFound),
        (lambda path: path.mkdir(), InvalidInput),
        (os.mkfifo, InvalidInput),
        (lambda path: path.write_bytes(b""), Integrity),
        (lambda path: path.write_bytes(DATA), Integrity),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), Integrity),
    ],
    ids=["nothing", "folder", "pipe", "empty", "no index", "huge"],
)
def test_what_is_no_index_is_refused(make: Callable[[Path], Any], error: type[Exception], tmp_path: Path) -> None:
    make(tmp_path / INDEX)
    with pytest.raises(error):
        tensorkeep.join_file(tmp_path / INDEX, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what is there already


@pytest.mark.parametrize("taken", [f"a/{NAME}.part-3-of-4", f"b/{INDEX}", INDEX])
def test_nothing_that_is_there_is_replaced_by_a_split_without_force(desk: Desk, taken: str) -> None:
    write_tree(desk.folder, {taken: b"mine"})
    before = read_tree(desk.folder)
    with pytest.raises(AlreadyExists, match=r"exists: move away, or split with --force"):
        desk.split()
    assert read_tree(desk.folder) == before
    desk.split(force=True)
    desk.join()


def test_nothing_that_is_there_is_replaced_by_a_join_without_force(desk: Desk) -> None:
    desk.split()
    desk.out.write_bytes(b"mine")
    desk.fails(AlreadyExists, r"out\.bin exists: move away, or join with --force")
    desk.join(force=True)


def test_a_file_that_another_made_meanwhile_is_not_replaced(desk: Desk) -> None:
    class Meanwhile:
        def hit(self, name: str) -> None:
            if name == "split.part_written":
                desk.part(3).write_bytes(b"theirs")
            if name == "join.verified":
                desk.out.write_bytes(b"theirs")

    runtime = Runtime(failpoints=Meanwhile())
    with pytest.raises(AlreadyExists, match="was made during the split"):
        desk.split(runtime=runtime)
    assert read_tree(desk.folder) == {NAME: DATA, f"a/{NAME}.part-3-of-4": b"theirs"}
    desk.part(3).unlink()
    desk.split()
    with pytest.raises(AlreadyExists, match="was made during the join"):
        desk.join(runtime=runtime)
    assert desk.out.read_bytes() == b"theirs"


def test_force_replaces_a_link_and_not_what_it_leads_to(desk: Desk, tmp_path: Path) -> None:
    precious = write_tree(tmp_path / "p", {"precious": b"precious"}) / "precious"
    desk.to[0].mkdir()
    desk.part(1).symlink_to(precious)
    desk.out.symlink_to(precious)
    desk.split(force=True)
    desk.join(force=True)
    assert precious.read_bytes() == b"precious"


def test_a_folder_in_the_place_of_a_file_is_never_replaced(desk: Desk) -> None:
    desk.part(2).mkdir(parents=True)
    with pytest.raises(AlreadyExists, match="is a folder"):
        desk.split(force=True)
    desk.part(2).rmdir()
    desk.split()
    desk.out.mkdir()
    desk.fails(AlreadyExists, "is a folder", force=True)


@pytest.mark.parametrize("what", ["part", "index", "link"])
def test_a_join_does_not_replace_what_it_reads(desk: Desk, what: str) -> None:
    desk.split()
    paths = {"part": desk.part(2), "index": desk.index, "link": desk.folder / "link"}
    (desk.folder / "link").symlink_to(desk.part(1))
    before = read_tree(desk.folder)
    with pytest.raises(InvalidInput, match="which is read: name another file"):
        tensorkeep.join_file(desk.index, paths[what], force=True)
    assert read_tree(desk.folder) == before


# ---------------------------------------------------------------- what can't be right


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (0, "from 1 to 10,000"),
        (-1, "from 1 to 10,000"),
        (10_001, "from 1 to 10,000"),
        (10**30, "from 1 to 10,000"),
    ],
)
def test_numbers_of_parts_that_make_no_sense_are_refused(desk: Desk, parts: int, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        desk.split(parts)
    assert read_tree(desk.folder) == {NAME: DATA}
    assert not desk.to[0].exists()


def test_a_part_for_each_byte_is_the_most(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", b"abc")
    with pytest.raises(InvalidInput, match="3 bytes can't make 4 parts: at most 3"):
        desk.split(4)
    desk.split(3)
    desk.join()


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "device", "NUL"])
def test_what_is_no_regular_file_is_refused(what: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    paths: dict[str, str | Path] = {
        "missing": tmp_path / "missing",
        "folder": tmp_path,
        "pipe": tmp_path / "pipe",
        "device": "/dev/zero",
        "NUL": "a\0b",
    }
    with pytest.raises(NotFound if what == "missing" else InvalidInput):
        tensorkeep.split_file(paths[what], parts=2, to=tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_folder_that_is_given_twice_is_refused(desk: Desk) -> None:
    (desk.folder / "c").mkdir()
    (desk.folder / "link").symlink_to("c")
    with pytest.raises(InvalidInput, match="is given twice: name each once"):
        desk.split(to=[desk.to[0], desk.folder / "c", desk.folder / "link"])
    assert sorted(path.name for path in desk.folder.iterdir()) == ["c", "link", NAME]


@pytest.mark.parametrize("to", ["", "a\0b", f"{NAME}", f"{NAME}/below"], ids=["empty", "NUL", "file", "below a file"])
def test_what_can_be_no_folder_is_refused(desk: Desk, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    with pytest.raises(InvalidInput):
        desk.split(to=[to])
    assert read_tree(desk.folder) == {NAME: DATA}


def test_a_folder_to_look_in_that_is_not_there_is_said(desk: Desk) -> None:
    desk.split()
    desk.fails(NotFound, "there is no folder .*/nowhere", sources=desk.folder / "nowhere")


def test_a_name_too_long_for_parts_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_tree(tmp_path, {"x" * 250: DATA})
    with pytest.raises(InvalidInput, match="File name too long"):
        tensorkeep.split_file(tmp_path / ("x" * 250), parts=2, to=tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x" * 250]


def test_a_name_that_is_not_unicode_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff.bin")
    Path(os.fsdecode(path)).write_bytes(DATA)
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        tensorkeep.split_file(os.fsdecode(path), parts=2, to=tmp_path / "to")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff.bin"]


# ---------------------------------------------------------------- disks and files that change


CHANGES: dict[str, Callable[[Path], Any]] = {
    "shrinks": lambda path: os.truncate(path, 5000),
    "grows": lambda path: path.write_bytes(DATA + b"x"),
    "is written in place": lambda path: path.write_bytes(DATA[::-1]),
    "is replaced": lambda path: path.with_name("new").write_bytes(DATA) and path.with_name("new").rename(path),
    "is removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("when", ["split.reserved", "split.part_written"])
@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changes_during_a_split_is_an_error_and_nothing_stays(desk: Desk, how: str, when: str) -> None:
    class Change:
        def __init__(self) -> None:
            self.done = False

        def hit(self, name: str) -> None:
            if name == when and not self.done:
                self.done = True
                CHANGES[how](desk.source)

    with pytest.raises(InvalidInput, match=r"model\.bin changed during the split: nothing was kept"):
        desk.split(runtime=Runtime(failpoints=Change()))
    assert set(read_tree(desk.folder)) <= {NAME}
    assert not desk.to[0].exists()


class FailAt:
    """Raises at a step."""

    def __init__(self, step: str, error: BaseException) -> None:
        self._step = step
        self._error = error

    def hit(self, name: str) -> None:
        if name == self._step:
            raise self._error


@pytest.mark.parametrize("error", [Capacity("full"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize(
    "step",
    [
        "split.reserved",
        "split.part_written",
        "split.part_published",
        "split.parts_durable",
        "split.copy_published",
        "split.index_published",
    ],
)
def test_a_split_that_fails_at_any_step_leaves_nothing(desk: Desk, step: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        desk.split(runtime=Runtime(failpoints=FailAt(step, error)))
    assert [path.name for path in desk.folder.iterdir()] == [NAME]
    desk.split()
    desk.join()


@pytest.mark.parametrize("error", [Capacity("full"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("step", ["join.reserved", "join.part_taken", "join.verified"])
def test_a_join_that_fails_at_any_step_leaves_nothing(desk: Desk, step: str, error: BaseException) -> None:
    desk.split()
    before = read_tree(desk.folder)
    with pytest.raises(type(error)):
        desk.join(runtime=Runtime(failpoints=FailAt(step, error)))
    assert read_tree(desk.folder) == before
    desk.join()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "link"])
@pytest.mark.parametrize(
    ("number", "error"), [(28, Capacity), (30, PermissionDenied), (5, tensorkeep.Unavailable)], ids=["full", "ro", "io"]
)
def test_what_a_disk_refuses_is_a_typed_error_that_names_the_file_and_leaves_nothing(
    desk: Desk, call: str, number: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error, match=str(desk.to[0])):
            desk.split()
    assert [path.name for path in desk.folder.iterdir()] == [NAME]
    desk.split()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        desk.fails(error, str(desk.out))


@pytest.mark.parametrize("call", ["posix_fallocate", "link", "fsync"])
def test_file_systems_without_a_call_do_as_well(desk: Desk, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = getattr(os, call)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if call == "fsync" and not Path(f"/proc/self/fd/{args[0]}").resolve().is_dir():
            return real(*args)
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        desk.split()
        desk.join()
        with pytest.raises(AlreadyExists):
            desk.split()


@pytest.mark.root
def test_a_folder_that_may_not_be_written_is_said(desk: Desk) -> None:
    desk.to[1].mkdir()
    with (
        read_only_mount(desk.to[1]),
        pytest.raises(PermissionDenied, match=r"b/model\.bin\.part-2-of-4 can't be written"),
    ):
        desk.split()
    desk.to[1].rmdir()
    assert [path.name for path in desk.folder.iterdir()] == [NAME]


@pytest.mark.root
def test_a_disk_without_room_is_said_before_anything_is_read(desk: Desk, small_disk: Path) -> None:
    desk.source.write_bytes(seeded_bytes(3 << 20))

    class Reading:
        def hit(self, name: str) -> None:
            raise AssertionError(name)

    runtime = Runtime(failpoints=Reading())
    with pytest.raises(Capacity, match=r"model\.bin\.part-2-of-2 does not fit, its disk is full"):
        desk.split(2, to=[desk.to[0], small_disk], runtime=runtime)
    assert os.listdir(small_disk) == []
    assert [path.name for path in desk.folder.iterdir()] == [NAME]
    desk.split(2)
    with pytest.raises(Capacity, match="does not fit"):
        tensorkeep.join_file(desk.index, small_disk / "out", runtime=runtime)
    assert os.listdir(small_disk) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


# ---------------------------------------------------------------- the command line


def test_the_command_line_splits_and_joins_and_makes_no_store(command_line: CommandLine) -> None:
    home = command_line.home
    write_tree(home, {NAME: DATA})
    split = command_line("split", NAME, "--parts", 3, "--to", "a", "--to", "b", "--json").json
    assert [part["size_bytes"] for part in split["parts"]] == [3335, 3336, 3336]
    joined = command_line("join", f"b/{INDEX}", "again.bin", "--json").json
    assert joined["sha256"] == split["sha256"]
    assert (home / "again.bin").read_bytes() == DATA
    assert sorted(path.name for path in home.iterdir()) == ["a", "again.bin", "b", NAME, INDEX]
    assert "3 parts" in command_line("split", NAME, "--parts", 3, "--to", "a", "--to", "b", "--force").out
    assert command_line("join", INDEX, code=4).err.endswith("exists: move away, or join with --force\n")


def test_the_command_line_names_what_is_wrong_with_each_part_and_exits_by_the_table(command_line: CommandLine) -> None:
    home = command_line.home
    write_tree(home, {NAME: DATA})
    command_line("split", NAME, "--parts", 4)
    (home / f"{NAME}.part-1-of-4").unlink()
    assert command_line("join", INDEX, "out", code=3).err.splitlines() == [
        f"error: {NAME} can't be joined, 1 of its 4 parts is not right:",
        f"part 1 is missing: {NAME}.part-1-of-4 is not in {home}",
    ]
    swap(home / f"{NAME}.part-2-of-4", home / f"{NAME}.part-3-of-4")
    answer = command_line("join", INDEX, "out", "--json", code=6)
    assert answer.error["code"] == "integrity"
    assert [problem["part"] for problem in answer.error["facts"]["problems"]] == [1, 2, 3]
    assert "parts 2 and 3 are swapped" in answer.error["message"]


def test_an_interrupt_from_outside_leaves_nothing(command_line: CommandLine) -> None:
    home = command_line.home
    write_tree(home, {NAME: seeded_bytes(64 << 20)})
    with command_line.start("split", NAME, "--parts", 4, "--to", "a") as process:
        while not (home / "a").exists() and process.poll() is None:
            pass
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted; nothing that was acknowledged is lost\n")
    assert [path.name for path in home.iterdir()] == [NAME]
