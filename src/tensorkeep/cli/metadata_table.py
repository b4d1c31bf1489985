"""What files say of themselves, as rows for people: long texts and lists are shown by their start and their length."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tensorkeep.cli.tables import Table
from tensorkeep.cli.units import human_count

_TEXT_LENGTH = 120
_ITEM_LENGTH = 30
_ITEMS = 6


def metadata_table(metadata: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of keys, types and values; with the file where there are several."""
    several = len(metadata) > 1
    headings = ("KEY", "TYPE", "VALUE")
    rows = [(path, *row) if several else row for path, keys in metadata.items() for row in _rows(keys)]
    return Table(("FILE", *headings) if several else headings, rows, empty="no metadata")


def _rows(keys: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, value in keys.items():
        yield key, _type_text(value), _value_text(value)


def _type_text(value: Any) -> str:
    if isinstance(value, list):
        kinds = {_type_text(item).partition(" ")[0] for item in value}
        return f"list of {kinds.pop()}" if len(kinds) == 1 else "list"
    names: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "text"}
    return names.get(type(value), type(value).__name__)


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return _list_text(value, depth=0)
    if isinstance(value, str):
        return _cut(value, _TEXT_LENGTH)
    return _scalar_text(value)


def _list_text(items: list[Any], *, depth: int) -> str:
    shown = []
    for item in items[:_ITEMS]:
        if isinstance(item, list):
            shown.append(_list_text(item, depth=depth + 1) if depth == 0 else f"[{human_count(len(item), 'item')}]")
        elif isinstance(item, str):
            shown.append(json.dumps(_cut(item, _ITEM_LENGTH), ensure_ascii=False))
        else:
            shown.append(_scalar_text(item))
    more = " …" if len(items) > _ITEMS else ""
    return f"[{human_count(len(items), 'item')}] {', '.join(shown)}{more}".rstrip()


def _scalar_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        import numpy as np  # 1e-05 in single precision, as GGUF has it, would read 9.999999747378752e-06

        with np.errstate(over="ignore"):
            single = np.float32(value)
        return str(single) if float(single) == value else str(value)  # as float: numpy compares in single precision
    return f"{value}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"
