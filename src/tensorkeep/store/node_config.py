"""The configuration of this machine: a file that neither the store nor the catalog knows.

``$TENSORKEEP_NODE_CONFIG``, else ``~/.config/tensorkeep/node.toml`` (``$XDG_CONFIG_HOME``), else ``/etc/tensorkeep/node.toml``; the
first that is there. It may say::

    [cache]
    folder = "/nvme/tensorkeep-cache"
    limit_bytes = 500_000_000_000
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from tensorkeep.errors import InvalidInput
from tensorkeep.runtime import Runtime
from tensorkeep.store.node_cache import NodeCache

VARIABLE = "TENSORKEEP_NODE_CONFIG"
_NAME = Path("tensorkeep") / "node.toml"


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the node's cache is, and the most bytes that it takes; None is half of the file system that it lies on."""

    folder: str
    limit_bytes: int | None = None


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says; without one there is no cache."""

    cache: CacheConfig | None = None


class _Found(NamedTuple):
    path: Path
    text: str


def read_node_config(environment: Mapping[str, str]) -> NodeConfig:
    """Return the node's configuration; an empty one where no file is there.

    Raises:
        InvalidInput: the file can't be read, or says what it may not; the message names it.
    """
    found = _find(environment)
    if found is None:
        return NodeConfig()
    try:
        config = msgspec.convert(tomllib.loads(found.text), type=NodeConfig)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:  # of TOML, and of integers without end
        raise InvalidInput(f"{found.path} is no configuration of a node: {error}", path=str(found.path)) from error
    _check(config, found.path)
    return config


def open_node_cache(environment: Mapping[str, str], runtime: Runtime) -> NodeCache | None:
    """Return the cache of this machine, None where its configuration names none.

    Raises:
        InvalidInput: the configuration is wrong; see `read_node_config`.
    """
    config = read_node_config(environment).cache
    return None if config is None else NodeCache(Path(config.folder), config.limit_bytes, runtime)


def _check(config: NodeConfig, path: Path) -> None:
    if config.cache is None:
        return
    if not os.path.isabs(config.cache.folder):
        raise InvalidInput(f"{path}: cache.folder {config.cache.folder!r} must be an absolute path", path=str(path))
    if config.cache.limit_bytes is not None and config.cache.limit_bytes <= 0:
        raise InvalidInput(f"{path}: cache.limit_bytes must be over 0; leave [cache] out for no cache", path=str(path))


def _find(environment: Mapping[str, str]) -> _Found | None:
    named = environment.get(VARIABLE)
    if named == "":
        return None
    for path in [Path(named)] if named else _usual_paths(environment):
        try:
            return _Found(path, path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if named:  # else a user without a home of their own is like one without a configuration
                raise InvalidInput(f"${VARIABLE} names {path}: {error.strerror}", path=str(path)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} can't be read: {error}", path=str(path)) from error
    return None


def _usual_paths(environment: Mapping[str, str]) -> Iterator[Path]:
    home = environment.get("XDG_CONFIG_HOME") or (environment.get("HOME") and f"{environment['HOME']}/.config")
    if home:
        yield Path(home) / _NAME
    yield Path("/etc") / _NAME
