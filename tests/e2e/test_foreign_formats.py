"""Formats of other packages: the one that the documentation shows, built from its very text, and broken ones."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.e2e.conftest import CommandLine

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"


def section_blocks() -> list[tuple[str, str]]:
    """Return the language and text of each block of the section on formats of one's own."""
    section = DOCUMENT.read_text("utf-8").partition("## A format of your own")[2].partition("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def install(folder: Path, name: str, module: str, code: str, points: dict[str, str]) -> None:
    """Put a package where an installer would: its module, and its entry points in a ``dist-info`` folder."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    lines = "".join(f"{point} = {value}\n" for point, value in points.items())
    (info / "entry_points.txt").write_text(f"[tensorkeep.formats]\n{lines}", "utf-8")
    (folder / f"{module}.py").write_text(code, "utf-8")


def install_documented(folder: Path) -> str:
    """Install the package of the documentation and return the program that uses it."""
    (_, project), (_, module), (_, use) = section_blocks()
    facts = tomllib.loads(project)["project"]
    points = facts["entry-points"]["tensorkeep.formats"]
    install(folder, facts["name"], "tensorkeep_plain", module, points)
    return use


@pytest.fixture
def site(command_line: CommandLine) -> Path:
    """A folder where packages of the test's own are installed."""
    folder = command_line.home / "site"
    folder.mkdir()
    return folder


def test_the_documented_package_is_complete_and_works(command_line: CommandLine, site: Path) -> None:
    use = install_documented(site)
    more = {"PYTHONPATH": str(site)}
    command_line(program=("-c", use), more=more)
    store = command_line.home / "store"
    files = command_line("show", "acme/plain", "--json", store=store, more=more).json["files"]
    assert [(file["path"], file["format"]) for file in files] == [("model.plain", "plain")]
    # Without the package: what was pushed is loaded and pulled all the same, what is pushed now is opaque.
    command_line("load", "acme/plain", store=store)
    command_line("pull", "acme/plain", command_line.home / "out", store=store)
    source = command_line.home / "model.plain"
    assert (command_line.home / "out" / "model.plain").read_bytes() == source.read_bytes()
    command_line("push", source, "acme/opaque", store=store)
    files = command_line("show", "acme/opaque", "--json", store=store).json["files"]
    assert [file["format"] for file in files] == ["opaque"]


def test_what_the_documented_reader_refuses_is_refused_in_its_words(command_line: CommandLine, site: Path) -> None:
    install_documented(site)
    more = {"PYTHONPATH": str(site)}
    broken = command_line.home / "broken.plain"
    broken.write_bytes(b"[{}]\n")
    answer = command_line("push", broken, "acme/broken", more=more, code=None)
    assert answer.code != 0
    for words in ("broken.plain", "its first line is no list of arrays: KeyError('name')", "--split size"):
        assert words in answer.err
    broken.write_bytes(b'[{"name": "w", "dtype": "F32", "shape": [9]}]\n')
    answer = command_line("push", broken, "acme/broken", "--json", more=more, code=None)
    assert answer.code != 0
    for words in ("tensorkeep_plain:PlainReader", "broken.plain", "'w' ends at byte 82 of 46", "--split size"):
        assert words in answer.error["message"]
    command_line("push", broken, "acme/broken", "--split", "size", more=more)


READER = """
from tensorkeep.formats.protocol import FileStructure, TensorLayout

class Reader:
    name = "odd"
    def claims(self, path):
        return path.endswith(".odd")
    def read_structure(self, path, source):
        return {structure}
"""
WRONG = {
    "nothing": ("None", "Expected `array`, got `null`"),
    "a shape of floats": ("FileStructure('odd', (TensorLayout('w', 'F32', (1.5,), None, 0, 6),))", "got `float`"),
    "no name": ("FileStructure('odd', (TensorLayout(None, 'F32', (1,), None, 0, 4),))", "Expected `str`"),
    "a set": ("FileStructure('odd', ({1, object()},))", "object"),
    "the same name twice": (
        "FileStructure('odd', (TensorLayout('w', 'U8', (1,), None, 0, 1),) * 2)",
        "'w' is there twice",
    ),
    "out of order": (
        "FileStructure('odd', (TensorLayout('v', 'U8', (1,), None, 1, 1), TensorLayout('w', 'U8', (1,), None, 0, 1)))",
        "'w' starts before",
    ),
    "past the end": ("FileStructure('odd', (TensorLayout('w', 'U8', (9,), None, 0, 9),))", "'w' ends at byte 9 of 4"),
    "another length": ("FileStructure('odd', (TensorLayout('w', 'F32', (1,), None, 0, 2),))", "need 4"),
}


@pytest.mark.parametrize(("structure", "words"), WRONG.values(), ids=WRONG)
def test_a_reader_that_says_what_cannot_be_is_named(
    structure: str, words: str, command_line: CommandLine, site: Path
) -> None:
    install(site, "odd-format", "odd_format", READER.replace("{structure}", structure), {"odd": "odd_format:Reader"})
    (command_line.home / "w.odd").write_bytes(b"1234")
    more = {"PYTHONPATH": str(site)}
    answer = command_line("push", command_line.home / "w.odd", "acme/odd", "--json", more=more, code=None)
    assert answer.code != 0
    assert words in answer.error["message"]
    for named in ("odd_format:Reader", "w.odd", "Mend or uninstall"):
        assert named in answer.error["message"]


UNUSABLE = {
    "a module that is missing": ("", "gone:Reader", "No module named 'gone'"),
    "a library that is missing": ("import no_such_library", "odd_format:Reader", "No module named 'no_such_library'"),
    "a class that is missing": ("", "odd_format:Reader", "has no attribute 'Reader'"),
    "no Python": ("class Reader:", "odd_format:Reader", "expected an indented block"),
    "arguments": ("class Reader:\n    def __init__(self, x): pass", "odd_format:Reader", "missing 1 required"),
    "no reader": ("class Reader:\n    name = 'odd'", "odd_format:Reader", "it has no 'claims'"),
}


@pytest.mark.parametrize(("code", "value", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_reader_that_cannot_be_used_is_named(
    code: str, value: str, words: str, command_line: CommandLine, site: Path
) -> None:
    install(site, "odd-format", "odd_format", code, {"odd": value})
    (command_line.home / "w.odd").write_bytes(b"1234")
    more = {"PYTHONPATH": str(site)}
    answer = command_line("push", command_line.home / "w.odd", "acme/odd", "--json", more=more, code=None)
    assert answer.code != 0
    for named in (words, "'odd'", value, "mend or uninstall"):
        assert named in answer.error["message"]
