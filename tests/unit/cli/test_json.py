"""``--json``: one document on standard output, with the keys that ``docs/cli.md`` promises."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorkeep.cli.documents import json_text, to_plain
from tensorkeep.cli.failures import INTERRUPTED
from tensorkeep.errors import ERROR_TABLE
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_store import (
    DAMAGE,
    DIFF,
    DRAIN_REPORT,
    LEFT,
    LOAD_REPORT,
    MODEL,
    REPAIR_REPORT,
    SCRUB_REPORT,
    SHORT,
    problem_report,
)

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"
OPEN = ("unmapped_bytes", "aliases", "facts", "device_bytes", "branches", "tags", "metadata", "before", "after", "owed")
"""Objects whose keys are names, not promises."""

SHARED = {
    "device check → conformance": "device add → conformance",
    "device lost → conformance": "device add → conformance",
    "device remove → conformance": "device add → conformance",
    "device ls → devices[] → conformance": "device add → conformance",
    "status → devices[] → conformance": "device add → conformance",
    "status → devices[]": "device ls → devices[]",
    "device lost": "device add",
    "device remove": "device add",
    "device drain → left[]": "repair → left[]",
    "repair → lost[]": "repair → left[]",
    "scrub → devices[] → problems[]": "verify → problems[]",
    "show → version": "push",
    "log → entries[] → version": "push",
    "ls MODEL → versions[]": "push",
    "retain → expired[]": "push",
    "load → report": "pull → load",
    "load --to → load": "pull → load",
    "prefetch → load": "pull → load",
    "join → parts[]": "split → parts[]",
}

COMMANDS = {
    "init": ("init", "./store"),
    "device add": ("device", "add", "nvme0", "file:///mnt/nvme0"),
    "device check": ("device", "check", "nvme0"),
    "device bench": ("device", "bench", "nvme0", "hdd0"),
    "device ls": ("device", "ls"),
    "device drain": ("device", "drain", "nvme0"),
    "device remove": ("device", "remove", "nvme0"),
    "device lost": ("device", "lost", "nvme0", "--yes"),
    "plan": ("plan", "./llama", MODEL),
    "push": ("push", "./llama", MODEL),
    "pull": ("pull", MODEL),
    "load": ("load", MODEL),
    "load --to": ("load", MODEL, "out.safetensors", "--to", "safetensors"),
    "load --plan": ("load", MODEL, "--plan"),
    "prefetch": ("prefetch", MODEL),
    "ls": ("ls",),
    "ls MODEL": ("ls", MODEL),
    "show": ("show", MODEL, "--metadata"),
    "log": ("log", MODEL),
    "diff": ("diff", MODEL, MODEL),
    "tag": ("tag", MODEL, "v1"),
    "tag MODEL": ("tag", MODEL),
    "branch": ("branch", MODEL, "prod"),
    "branch MODEL": ("branch", MODEL),
    "rm": ("rm", f"{MODEL}@v1"),
    "verify": ("verify",),
    "scrub": ("scrub",),
    "repair": ("repair",),
    "rebalance": ("rebalance",),
    "policy": ("policy",),
    "policy MODEL": ("policy", MODEL, "--ec", "4+2"),
    "retain": ("retain", MODEL),
    "gc": ("gc",),
    "du": ("du",),
    "status": ("status",),
    "rebuild-catalog": ("rebuild-catalog",),
    "split": ("split", "model.bin", "--parts", "2"),
    "join": ("join", "model.bin.parts.json"),
}


def documented_keys() -> dict[str, set[str]]:
    """Return path of an object → its keys, as the table in the documentation has them."""
    keys: dict[str, set[str]] = {}
    for line in DOCS.read_text().splitlines():
        if match := re.match(r"\| `([^`]+)` \| (`.*`) \|$", line):
            keys[match[1]] = set(re.findall(r"`([^`]+)`", match[2]))
    return keys


def objects(path: str, value: Any) -> Iterator[tuple[str, set[str]]]:
    """Yield the path and the keys of every object in a document."""
    if isinstance(value, dict):
        yield path, set(value)
        for key, item in value.items():
            if not (key in OPEN and isinstance(item, dict)):
                yield from objects(f"{path} → {key}", item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(f"{path}[]", item)


def troubled() -> dict[str, Any]:
    """Return answers of upkeep that found something: so that what they say of it is there too."""
    problems = problem_report().problems
    devices = tuple(dataclasses.replace(device, problems=problems) for device in SCRUB_REPORT.devices)
    return {
        "verify": problem_report(),
        "scrub": dataclasses.replace(SCRUB_REPORT, devices=devices),
        "repair": dataclasses.replace(REPAIR_REPORT, left=(LEFT, SHORT)),
        "devices.drain": dataclasses.replace(DRAIN_REPORT, left=(SHORT,)),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_keys_of_each_document_are_those_of_the_documentation(run: Run, command: str) -> None:
    documented = documented_keys()
    report = dataclasses.replace(LOAD_REPORT, damaged=(DAMAGE,))
    pulled = run("pull", MODEL).doors.store.answers["pull"]
    ran = run(*COMMANDS[command], "--json", load=report, pull=dataclasses.replace(pulled, load=report), **troubled())
    found: dict[str, set[str]] = defaultdict(set)
    for path, keys in objects(command, ran.document):
        found[_shared(path)] |= keys
    assert found
    for path, keys in found.items():
        assert keys == documented[path], path


def _shared(path: str) -> str:
    """Return where the documentation describes an object that several commands print."""
    for start, where in SHARED.items():
        if path.startswith(start):
            return where + path.removeprefix(start)
    return path


def test_every_documented_object_is_one_that_a_command_prints(run: Run) -> None:
    report = dataclasses.replace(LOAD_REPORT, damaged=(DAMAGE,))
    pulled = run("pull", MODEL).doors.store.answers["pull"]
    seen = set()
    for command, words in COMMANDS.items():
        ran = run(*words, "--json", load=report, pull=dataclasses.replace(pulled, load=report), **troubled())
        seen |= {_shared(path) for path, _ in objects(command, ran.document)}
    assert set(documented_keys()) == seen


@pytest.mark.parametrize("command", COMMANDS)
def test_standard_output_holds_one_document_and_nothing_else(run: Run, command: str) -> None:
    ran = run(*COMMANDS[command], "--json")
    assert isinstance(ran.document, dict)
    assert ran.out.endswith("}\n")
    assert ran.code == 0
    for line in ran.err.splitlines():
        assert set(json.loads(line)) == {"warning"}


def test_verification_that_found_something_exits_with_6_and_still_prints_its_document(run: Run) -> None:
    ran = run("verify", "--json", verify=problem_report())
    assert ran.code == 6
    assert ran.document["ok"] is False
    assert ran.document["problems"][0]["lost"] is True


def test_computed_values_are_in_the_documents(run: Run) -> None:
    assert run("push", "x", MODEL, "--json").document["report"]["rate_bytes_per_s"] == 1e9
    report = run("load", MODEL, "--json").document["report"]
    assert (report["slowest_seconds"], report["predicted_seconds"]) == (1.25, 1.0)
    assert [device["rate_bytes_per_s"] for device in report["devices"]] == [8e8, 2_001_000_000]
    assert run("diff", MODEL, MODEL, "--json").document["same"] is DIFF.same
    assert run("status", "--json").document["ok"] is False
    assert run("log", MODEL, "--json").document["entries"][1] == {
        "id": run("log", MODEL).doors.store.answers["log"][1].id,
        "version": None,
        "removed": True,
    }


def test_names_of_any_bytes_are_valid_json_in_ascii() -> None:
    text = json_text(to_plain({"name": "é\udcff\x1b", "digest": b"\x00\xff", "set": {1}, "never": float("inf")}))
    assert text.isascii()
    assert json.loads(text) == {"name": "é\udcff\x1b", "digest": "00ff", "set": [1], "never": None}


def test_the_documented_exit_codes_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| `([a-z_]+)` \|$", DOCS.read_text(), re.MULTILINE)
    documented = {code: int(number) for number, code in rows}
    assert documented.pop("interrupted") == INTERRUPTED
    assert documented == {code: row.exit_code for code, row in ERROR_TABLE.items()}
