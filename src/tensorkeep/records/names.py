"""Names that users choose: models, branches, tags, devices; and the revision grammar ``namespace/name@revision``."""

import re
from dataclasses import dataclass

from tensorkeep.errors import InvalidInput

DEFAULT_NAMESPACE = "default"
DEFAULT_BRANCH = "main"

_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}\Z")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*\Z")
_HEX = re.compile(r"[0-9a-fA-F]{7,40}\Z")
_VERSION_PREFIX = re.compile(r"[0-9a-f]{7,40}\Z")
_REF_LIMIT = 200


@dataclass(frozen=True, slots=True)
class ModelName:
    """``namespace/name``; equal without regard to case only in the catalog, which keeps the user's spelling."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def folded(self) -> str:
        """The form in which names are unique."""
        return str(self).casefold()


@dataclass(frozen=True, slots=True)
class Revision:
    """What a user types: a model, and what stands after ``@`` (None: the default branch)."""

    model: ModelName
    revision: str | None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision or DEFAULT_BRANCH}"


def parse_model_name(text: str) -> ModelName:
    """Return the model that ``namespace/name`` or a bare ``name`` names.

    Raises:
        InvalidInput: an illegal character, an empty or over-long component, or a name of 7-40 hex digits.
    """
    namespace, slash, name = text.rpartition("/")
    if not slash:
        namespace = DEFAULT_NAMESPACE
    for component in (namespace, name):
        if not _COMPONENT.match(component):
            raise InvalidInput(
                f"{text!r} is no model name: write namespace/name with letters, digits, '.', '_' and '-' "
                "(1-96 of them, none of '.' and '-' first)",
                model=text,
            )
    if _HEX.match(name):
        raise InvalidInput(
            f"the model name {text!r} looks like a version id (7-40 hex digits): choose another", model=text
        )
    return ModelName(namespace, name)


def parse_revision(text: str) -> Revision:
    """Return the model and the revision that ``model[@revision]`` names.

    Raises:
        InvalidInput: the model's name is illegal, or nothing stands after ``@``.
    """
    model, at, revision = text.partition("@")
    if at and not revision:
        raise InvalidInput(f"{text!r} has nothing after '@': write a branch, a tag or a version id", revision=text)
    return Revision(parse_model_name(model), revision or None)


def check_ref_name(text: str, *, kind: str) -> str:
    """Return a branch or tag name (``kind`` says which) if it is legal.

    Raises:
        InvalidInput: an illegal character, too long, or 7-40 hex digits, which would look like a version id.
    """
    if len(text) > _REF_LIMIT or not _REF.match(text):
        raise InvalidInput(
            f"{text!r} is no {kind} name: use letters, digits, '.', '_', '-' and '/' (at most {_REF_LIMIT})", name=text
        )
    if _HEX.match(text):
        raise InvalidInput(
            f"the {kind} name {text!r} looks like a version id (7-40 hex digits): choose another", name=text
        )
    return text


def check_device_name(text: str) -> str:
    """Return a device's or zone's name if it is legal.

    Raises:
        InvalidInput: an illegal character, or too long.
    """
    if not _COMPONENT.match(text):
        raise InvalidInput(f"{text!r} is no device or zone name: use letters, digits, '.', '_' and '-'", name=text)
    return text


def is_version_prefix(text: str) -> bool:
    """Return whether a text can be a version id or a prefix of one: 7-40 lower-case hex digits."""
    return bool(_VERSION_PREFIX.match(text))
