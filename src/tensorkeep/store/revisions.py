"""Names of versions: what a revision means, how a version looks to users, and the verbs that move names."""

from typing import NoReturn

from tensorkeep.catalog.protocol import Catalog
from tensorkeep.errors import NotFound
from tensorkeep.records.history import ModelFacts, RefFacts, RefKind, VersionFacts
from tensorkeep.records.names import (
    DEFAULT_BRANCH,
    ModelName,
    Revision,
    check_ref_name,
    parse_model_name,
    parse_revision,
)
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import record_change, refuse_stale
from tensorkeep.store.reports import LogEntry, ModelSummary, PushReport, Version


def get_model(context: StoreContext, name: ModelName) -> ModelFacts:
    """Return a model by name.

    Raises:
        NotFound: there is none; the message names what there is.
    """
    return context.catalog.find_model(name) or _refuse_unknown(context, name)


def get_version(context: StoreContext, spec: Revision) -> tuple[ModelFacts, VersionFacts]:
    """Return the model and the version that a revision means.

    Raises:
        NotFound: there is no such model or revision.
        InvalidInput: the version prefix is ambiguous.
    """
    found = context.catalog.find_version(spec.model, spec.revision or DEFAULT_BRANCH)
    return found or _refuse_unknown(context, spec.model)


def describe_version(
    context: StoreContext, model: ModelFacts, version: VersionFacts, *, report: PushReport | None = None
) -> Version:
    """Return a version as users see it, with the names that point at it."""
    return make_version(model, version, context.catalog.list_refs(model.id), report=report)


def make_version(
    model: ModelFacts, version: VersionFacts, refs: list[RefFacts], *, report: PushReport | None = None
) -> Version:
    """Return a version as users see it, from rows that are at hand."""
    return Version(
        id=version.id,
        model=model.name,
        parent=version.parent,
        message=version.message,
        author=version.author,
        created_at=version.created_at,
        total_bytes=version.total_bytes,
        policy=version.policy,
        branches=tuple(ref.name for ref in refs if ref.kind == "branch" and ref.version == version.id),
        tags=tuple(ref.name for ref in refs if ref.kind == "tag" and ref.version == version.id),
        report=report,
    )


def list_models(context: StoreContext) -> list[ModelSummary]:
    """Return every model at a glance, by name."""
    return [_summarize(context.catalog, model) for model in context.catalog.list_models()]


def _summarize(catalog: Catalog, model: ModelFacts) -> ModelSummary:
    refs = catalog.list_refs(model.id)
    versions = {version.id: version for version in catalog.list_versions(model.id)}
    head = next((versions.get(r.version) for r in refs if r.kind == "branch" and r.name == DEFAULT_BRANCH), None)
    return ModelSummary(
        name=model.name,
        id=model.id,
        policy=model.policy,
        versions=len(versions),
        branches=tuple(ref.name for ref in refs if ref.kind == "branch"),
        tags=tuple(ref.name for ref in refs if ref.kind == "tag"),
        head=head.id if head else None,
        bytes=head.total_bytes if head else None,
        updated_at=max((version.created_at for version in versions.values()), default=None),
    )


def log(context: StoreContext, spec: str) -> list[LogEntry]:
    """Return a revision and its ancestors, newest first; a removed one ends the walk and is shown as removed."""
    model, version = get_version(context, parse_revision(spec))
    refs = context.catalog.list_refs(model.id)
    versions = {found.id: found for found in context.catalog.list_versions(model.id)}
    entries = []
    current: str | None = version.id
    while current is not None:
        found = versions.get(current)
        entries.append(LogEntry(current, make_version(model, found, refs) if found else None))
        current = found.parent if found else None
    return entries


def set_tag(context: StoreContext, model_name: str, name: str, revision: str) -> Version:
    """Make a tag; tags do not move."""
    check_ref_name(name, kind="tag")
    spec = Revision(parse_model_name(model_name), revision)
    model, version = get_version(context, spec)
    return _set_ref(context, model, "tag", name, version, expected=None)


def set_branch(context: StoreContext, model_name: str, name: str, revision: str) -> Version:
    """Make a branch, or move it: a roll back is a branch moved to an older version."""
    check_ref_name(name, kind="branch")
    model, version = get_version(context, Revision(parse_model_name(model_name), revision))
    present = _find_ref(context, model, "branch", name)
    if present is not None and present.version == version.id:
        # It may point there since a command that was cut off before its entry was on the devices.
        refuse_stale(context)
        record_change(context, lambda _: context.catalog.info().last_seq, policy=model.policy)
        return describe_version(context, model, version)
    return _set_ref(context, model, "branch", name, version, expected=present.version if present else None)


def delete_ref(context: StoreContext, model_name: str, kind: RefKind, name: str) -> None:
    """Delete a branch or tag; the versions stay.

    Raises:
        NotFound: there is none.
    """
    model = get_model(context, parse_model_name(model_name))
    present = _find_ref(context, model, kind, name)
    if present is None:
        raise NotFound(f"{model.name} has no {kind} {name!r}", model=model.name, name=name)
    _write_ref(context, model, kind, name, None, expected=present.version)


def remove_version(context: StoreContext, spec: str) -> Version:
    """Remove a version that no branch or tag points at; gc frees its parts later."""
    model, version = get_version(context, parse_revision(spec))
    described = describe_version(context, model, version)
    now = context.runtime.clock.now()
    record_change(
        context,
        lambda heads: context.catalog.remove_version(model.id, version.id, heads=heads, now=now),
        policy=model.policy,
    )
    return described


def remove_model(context: StoreContext, model_name: str) -> int:
    """Remove a model with all its versions, branches and tags; return how many versions there were."""
    model = get_model(context, parse_model_name(model_name))
    count = len(context.catalog.list_versions(model.id))
    now = context.runtime.clock.now()
    record_change(
        context, lambda heads: context.catalog.remove_model(model.id, heads=heads, now=now), policy=model.policy
    )
    return count


def _refuse_unknown(context: StoreContext, name: ModelName) -> NoReturn:
    known = [model.name for model in context.catalog.list_models()]
    listing = ", ".join(known[:5]) + (" …" if len(known) > 5 else "")
    raise NotFound(f"no model {name}: the store has {listing or 'none yet'}", model=str(name))


def _find_ref(context: StoreContext, model: ModelFacts, kind: RefKind, name: str) -> RefFacts | None:
    refs = context.catalog.list_refs(model.id)
    return next((ref for ref in refs if ref.kind == kind and ref.name == name), None)


def _set_ref(
    context: StoreContext, model: ModelFacts, kind: RefKind, name: str, version: VersionFacts, *, expected: str | None
) -> Version:
    _write_ref(context, model, kind, name, version.id, expected=expected)
    return describe_version(context, model, version)


def _write_ref(
    context: StoreContext, model: ModelFacts, kind: RefKind, name: str, version: str | None, *, expected: str | None
) -> None:
    now = context.runtime.clock.now()
    record_change(
        context,
        lambda heads: context.catalog.set_ref(model.id, kind, name, version, expected=expected, heads=heads, now=now),
        policy=model.policy,
    )
