"""Tags, which stay, and branches, which move."""

from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import ModelArgument
from tensorkeep.cli.commands.history import versions_of, when
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_branches, suggest_revisions, suggest_tags
from tensorkeep.cli.tables import Table
from tensorkeep.errors import InvalidInput
from tensorkeep.records.names import DEFAULT_BRANCH

if TYPE_CHECKING:
    from tensorkeep.store.reports import Version

DeleteOption = Annotated[bool, typer.Option("--delete", help="Delete it; the version stays.")]


def tag(
    session: Session,
    model: ModelArgument,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The tag. Without it, tags are listed.",
            show_default=False,
            autocompletion=suggest_tags,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Argument(
            metavar="[REV]",
            help="What to tag. Default: main.",
            show_default=False,
            autocompletion=suggest_revisions,
        ),
    ] = None,
    *,
    delete: DeleteOption = False,
) -> None:
    """Tag a version, list tags, or delete one.

    A tag does not move: to point it elsewhere, delete it first.
    """
    if name is None:
        _list_names(session, model, kind="tag", delete=delete)
        return
    if delete:
        if revision is not None:
            raise InvalidInput(
                f"--delete deletes the tag {name!r} wherever it points: leave out {revision!r}", name=name
            )
        with session.store() as store:
            store.delete_tag(model, name)
        _show_deleted(session, model, "tag", name)
        return
    with session.store() as store:
        version = store.tag(model, name, revision or DEFAULT_BRANCH)
    _show_set(session, version, "tag", name)


def branch(
    session: Session,
    model: ModelArgument,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The branch. Without it, branches are listed.",
            show_default=False,
            autocompletion=suggest_branches,
        ),
    ] = None,
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="REV",
            help="Where it shall point. Default: main.",
            show_default=False,
            autocompletion=suggest_revisions,
        ),
    ] = None,
    delete: DeleteOption = False,
) -> None:
    """Make or move a branch, list branches, or delete one.

    Moving a branch back to an older version rolls back.
    """
    if name is None:
        if to is not None:
            raise InvalidInput("--to needs the name of a branch: tensorkeep branch MODEL NAME --to REV", to=to)
        _list_names(session, model, kind="branch", delete=delete)
        return
    if delete:
        if to is not None:
            raise InvalidInput("--delete and --to exclude each other: give one", name=name)
        with session.store() as store:
            store.delete_branch(model, name)
        _show_deleted(session, model, "branch", name)
        return
    with session.store() as store:
        version = store.branch(model, name, to=to or DEFAULT_BRANCH)
    _show_set(session, version, "branch", name)


def _list_names(session: Session, model: str, *, kind: str, delete: bool) -> None:
    if delete:
        raise InvalidInput(f"--delete needs the name of a {kind}: tensorkeep {kind} MODEL NAME --delete", model=model)
    with session.store() as store:
        versions = versions_of(store, model)
    pairs = [(name, v) for v in versions for name in (v.tags if kind == "tag" else v.branches)]
    pairs.sort(key=lambda pair: pair[0])
    plural = "tags" if kind == "tag" else "branches"
    document = {
        "model": versions[0].model if versions else model,
        plural: [{"name": name, "version": version.id} for name, version in pairs],
    }
    rows = [(name, v.id[:12], when(v.created_at), v.message) for name, v in pairs]
    session.show(
        document, lambda: [Table((kind.upper(), "VERSION", "CREATED (UTC)", "MESSAGE"), rows, empty=f"no {plural}")]
    )


def _show_set(session: Session, version: "Version", kind: str, name: str) -> None:
    document = {"model": version.model, kind: name, "version": version.id, "deleted": False}
    session.show(document, lambda: [f"{kind} {name} of {version.model} is {version.id[:12]}"])


def _show_deleted(session: Session, model: str, kind: str, name: str) -> None:
    document = {"model": model, kind: name, "version": None, "deleted": True}
    session.show(document, lambda: [f"deleted {kind} {name} of {model}"])
