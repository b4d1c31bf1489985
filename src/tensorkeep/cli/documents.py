"""The ``--json`` form of what the verbs return: field names as in `tensorkeep.store.reports`, plus what they compute.

Sizes are bytes, times seconds, digests hex. The keys are promises to scripts: ``docs/cli.md`` lists them and a test compares.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

_COMPUTED = (
    "ok",
    "same",
    "reachable",
    "removed",
    "short_id",
    "parameters",
    "changed_fraction",
    "shared_bytes",
    "rate_bytes_per_s",
    "slowest_seconds",
    "predicted_seconds",
    "load_seconds",
    "empty",
    "lost",
)
"""Properties of reports that belong in their documents."""


def to_plain(value: Any) -> Any:
    """Return a report as what JSON knows: dataclasses, structs and named tuples as objects, bytes as hex.

    A number that is not finite becomes null, and so does a field that is unset.
    """
    from msgspec import UNSET

    if value is UNSET:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON knows neither infinity nor NaN
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    names = _field_names(value)
    if names is not None:
        computed = [name for name in _COMPUTED if isinstance(getattr(type(value), name, None), property)]
        return {name: to_plain(getattr(value, name)) for name in (*names, *computed)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    return str(value)


def device_document(status: Any) -> dict[str, Any]:
    """Return a device's status with its facts beside it, not below it."""
    document: dict[str, Any] = to_plain(status)
    facts: dict[str, Any] = document.pop("facts")
    return facts | document


def json_text(document: Any) -> str:
    """Return a document as indented JSON in ASCII, so that any file name survives any terminal's encoding."""
    return json.dumps(document, indent=2, allow_nan=False)


def json_line(document: Any) -> str:
    """Return a document as one line of JSON."""
    return json.dumps(document, allow_nan=False, default=str)


def _field_names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    found = getattr(value, "__struct_fields__", None) or getattr(value, "_fields", None)
    return tuple(found) if found else None
