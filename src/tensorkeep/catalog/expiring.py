"""What the retentions of all models let go, and what the journal tells of it: the same for each kind of catalog."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tensorkeep.errors import Integrity, InvalidInput
from tensorkeep.planning.retention import choose_expired
from tensorkeep.records.history import Change, ModelFacts, RefChanged, RefFacts, VersionFacts, VersionRemoved
from tensorkeep.records.retention import parse_retention


@dataclass(frozen=True, slots=True)
class Expired:
    """Versions that go, by model and newest first, the names of their models, and the changes for the journal."""

    versions: list[VersionFacts] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def find_expired(
    models: Iterable[ModelFacts],
    *,
    list_versions: Callable[[str], Sequence[VersionFacts]],
    list_refs: Callable[[str], Sequence[RefFacts]],
    now: datetime,
) -> Expired:
    """Return what goes: of each model with a retention what that does not keep, with its tags.

    Args:
        models: all, in the order in which they are told.
        list_versions: those of a model (ulid), all read at one moment, as are the refs.
        list_refs: its branches and tags.
        now: what days are counted back from.

    Raises:
        Integrity: the retention of a model is none; a newer tensorkeep or a damaged journal may have brought it.
    """
    found = Expired()
    for model in models:
        if model.retention is None:
            continue
        refs = list_refs(model.id)
        try:
            retention = parse_retention(model.retention)
        except InvalidInput as error:
            raise Integrity(
                f"what {model.name} keeps can't be read: {error.message}; set it again by `tensorkeep retain {model.name}`",
                model=model.name,
            ) from error
        going = choose_expired(list_versions(model.id), refs, retention, now=now)
        if not going:
            continue
        ids = {version.id for version in going}
        found.changes.extend(
            RefChanged(model=model.id, ref=ref.kind, name=ref.name, old=ref.version, new=None)
            for ref in refs
            if ref.version in ids  # a tag: the heads of branches stay
        )
        found.changes.extend(VersionRemoved(version=version) for version in going)
        found.versions.extend(going)
        found.models.append(model.name)
    return found
