"""What the documents show is run, in order, as a reader would type it.

Each document gets a new folder with a home and a store of its own, and a small model in ``./llama`` where it says
``<!-- needs ./llama -->``. Of its blocks these are run, unless a line ``<!-- not run … -->`` stands right before them:

- ``python``: as a program of its own;
- ``bash``: as a script;
- ``console``: each line that begins with ``$`` as a command; the other lines are what it prints, for the reader.

Every one must exit with 0.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.docs.preloaded import write_client

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "bash", "console")
NEEDS_LLAMA = "<!-- needs ./llama -->"

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"<!-- not run[^>]*-->\s*\Z")


class Block(NamedTuple):
    """A fenced block: the line of its fence, its language, its text, and whether it is to be run."""

    line: int
    language: str
    text: str
    run: bool


def find_blocks(text: str) -> list[Block]:
    return [
        Block(
            line=text.count("\n", 0, found.start()) + 1,
            language=found["language"],
            text=found["body"],
            run=found["language"] in RUN and not _NOT_RUN.search(text[: found.start()]),
        )
        for found in _FENCE.finditer(text)
    ]


def command_of(block: Block) -> list[str]:
    """Return the program that runs a block."""
    if block.language == "python":
        return [sys.executable, "-W", "error::DeprecationWarning:tensorkeep", "-c", block.text]
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
        # Each command in a shell of its own folder, as the next prompt would be.
        lines = [f"( {line}\n)" for line in lines]
    return ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a ``tensorkeep`` that need not be imported each time; see `tests.docs.preloaded`."""
    folder = tmp_path_factory.mktemp("programs")
    place = folder / "calls"
    command = [sys.executable, "-m", "tests.docs.preloaded", str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        write_client(folder, place)
        yield folder
        server.kill()


def _environment(folder: Path, programs: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(folder / "home"),
        "TENSORKEEP_STORE": str(folder / "home" / "store"),
        "XDG_CACHE_HOME": str(folder / "home" / "cache"),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }


def _make_llama(folder: Path) -> None:
    random = np.random.default_rng(1)
    names = ["model.embed_tokens.weight", "lm_head.weight", *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(4))]
    folder.mkdir()
    save_file({name: random.random((2048, 256), np.float32) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}\n', "utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_the_code_of_a_document_runs(document: Path, tmp_path: Path, programs: Path) -> None:
    (tmp_path / "home").mkdir()
    text = document.read_text("utf-8")
    if NEEDS_LLAMA in text:
        _make_llama(tmp_path / "llama")
    for block in find_blocks(text):
        if not block.run:
            continue
        result = subprocess.run(
            command_of(block),
            cwd=tmp_path,
            env=_environment(tmp_path, programs),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{document.name}:{block.line}\n{block.text}\n{result.stdout}{result.stderr}"


TEXT = """
```python
print(1)
```

<!-- not run: needs a disk -->
```bash
mount
```

```console
$ false
output
```

```json
{}
```
"""


def test_blocks_are_found_with_their_lines() -> None:
    blocks = find_blocks(TEXT)
    assert [(block.line, block.language, block.run) for block in blocks] == [
        (2, "python", True),
        (7, "bash", False),
        (11, "console", True),
        (16, "json", False),
    ]


def test_a_command_that_fails_is_seen() -> None:
    failing = find_blocks(TEXT)[2]
    assert subprocess.run(command_of(failing), check=False).returncode == 1
    first_of_two = Block(1, "console", "$ false\n$ true\n", run=True)
    assert subprocess.run(command_of(first_of_two), check=False).returncode == 1


def test_what_a_command_prints_is_not_run() -> None:
    block = Block(1, "console", "$ echo yes\nfalse\n", run=True)
    assert subprocess.run(command_of(block), check=True, capture_output=True).stdout == b"yes\n"
