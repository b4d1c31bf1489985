"""Models in several GGUF files: all pieces, or a refusal that names the missing one."""

import pytest

from tensorkeep.errors import Format
from tensorkeep.formats.gguf import GgufReader
from tensorkeep.formats.gguf_split import check_splits
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import FileStructure
from tests.unit.formats.gguf_bytes import INT32, UINT16, Info, header, number, whole
from tests.unit.formats.test_gguf_reader import Source

READER = GgufReader()


def piece(no: int, pieces: int, *, tensors: int = 1, total: int | None = None) -> bytes:
    keys = {"split.no": number(UINT16, no), "split.count": number(UINT16, pieces)}
    if total is not None:
        keys["split.tensors.count"] = number(INT32, total)
    return plain(tensors, keys)


def plain(tensors: int = 1, keys: dict[str, bytes] | None = None) -> bytes:
    infos = [Info(f"w{index}", [0], 0, 0) for index in range(tensors)]
    return whole(header(keys or {}, infos))


def check(files: dict[str, bytes], opaque: tuple[str, ...] = ()) -> None:
    structures: dict[str, FileStructure] = {
        path: opaque_structure("") if path in opaque else READER.read_structure(path, Source(data))
        for path, data in files.items()
    }
    check_splits({path: Source(data) for path, data in files.items()}, structures)


THREE = {f"q/m-0000{index + 1}-of-00003.gguf": piece(index, 3, tensors=2, total=6) for index in range(3)}
SECOND = "q/m-00002-of-00003.gguf"


def without(path: str) -> dict[str, bytes]:
    return {name: data for name, data in THREE.items() if name != path}


def test_a_whole_model_passes_in_any_company() -> None:
    check(THREE)
    check(THREE | {"other.gguf": plain(), "q/n-00001-of-00001.gguf": piece(0, 1), "merged.gguf": piece(0, 0)})


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_piece_is_named(number: int) -> None:
    with pytest.raises(Format, match=f"number {number} is not in the folder: an incomplete download") as refused:
        check(without(f"q/m-0000{number}-of-00003.gguf"))
    assert "--split size" in refused.value.message
    assert refused.value.facts["missing"] == number


def test_a_piece_of_another_folder_or_another_model_does_not_count() -> None:
    for name in ("m-00002-of-00003.gguf", "q/n-00002-of-00003.gguf"):
        with pytest.raises(Format, match="not in the folder"):
            check(without(SECOND) | {name: THREE[SECOND]})


def test_a_piece_under_the_name_of_another_is_not_that_one() -> None:
    with pytest.raises(Format, match="number 2 is not"):
        check(THREE | {SECOND: piece(0, 3)})


def test_a_piece_that_was_renamed_is_known_by_its_metadata() -> None:
    with pytest.raises(Format, match="number 1 is not"):
        check({"model.gguf": piece(1, 2)})
    check({"one.gguf": piece(0, 2, total=2), "two.gguf": piece(1, 2, total=2)})
    check({f"{name}{index}.gguf": piece(index, 2, total=2) for name in "ab" for index in (0, 1)})


def test_names_alone_tell_of_pieces_without_metadata() -> None:
    check(dict.fromkeys(THREE, plain()))
    with pytest.raises(Format, match="number 2 is not"):
        check(dict.fromkeys(without(SECOND), plain()))


def test_a_piece_that_is_not_understood_is_there_all_the_same() -> None:
    check(THREE, opaque=(SECOND,))
    check(THREE | {SECOND: b"broken"}, opaque=(SECOND,))


def test_pieces_whose_tensors_do_not_add_up_are_refused() -> None:
    with pytest.raises(Format, match="have 5 tensors, and say that there are 6: files of different models"):
        check(THREE | {SECOND: piece(1, 3, tensors=1, total=6)})
