"""Paths of files in a version: relative, POSIX, safe to write on any file system that people use."""

from collections.abc import Iterable

from tensorkeep.errors import Format

COMPONENT_LIMIT_BYTES = 255
PATH_LIMIT_BYTES = 4096


def check_path(path: str) -> None:
    """Return if a path may name a file of a version.

    Raises:
        Format: it is empty, absolute, holds ``..``, ``.``, an empty component, NUL or a backslash, is not valid Unicode, or
            a component has over 255 bytes.
    """
    problem = _find_problem(path)
    if problem:
        raise Format(f"the path {path!r} {problem}: rename the file", path=path)


def check_paths(paths: Iterable[str]) -> None:
    """Return if these paths can lie in one folder on every file system.

    Raises:
        Format: one is unsafe, two are equal or differ only in case, or one is both a file and a folder.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_path(path)
        folded = path.casefold()
        if folded in seen:
            raise Format(
                f"the paths {seen[folded]!r} and {path!r} are the same where case does not count: rename one",
                path=path,
                other=seen[folded],
            )
        seen[folded] = path
        components = folded.split("/")
        for depth in range(1, len(components)):
            folders.setdefault("/".join(components[:depth]), path)
    for folded, path in seen.items():
        if folded in folders:
            raise Format(f"the path {path!r} is a file and also the folder of {folders[folded]!r}", path=path)


def _find_problem(path: str) -> str | None:
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is absolute"
    if "\0" in path or "\\" in path:
        return "holds a NUL or a backslash"
    if len(encoded) > PATH_LIMIT_BYTES:
        return f"has over {PATH_LIMIT_BYTES} bytes"
    for component in path.split("/"):
        if component in ("", ".", ".."):
            return f"holds the component {component!r}"
        if len(component.encode("utf-8")) > COMPONENT_LIMIT_BYTES:
            return f"has a component over {COMPONENT_LIMIT_BYTES} bytes"
    return None
