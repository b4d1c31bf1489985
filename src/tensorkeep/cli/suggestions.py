"""What a shell is offered for a word that is being typed: names of models, branches, tags and devices.

The names are read from the catalog's file, quickly. Where there is no store, or it can't be read now, nothing is offered:
completing a word makes no store, writes nothing and never complains.
"""

from typing import TYPE_CHECKING

import typer

from tensorkeep.errors import TensorkeepError

if TYPE_CHECKING:
    from tensorkeep.store.known_names import KnownNames

_DEFAULT_NAMESPACE = "default/"


def suggest_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of models; those of the default namespace also bare."""
    names = _find_names(ctx)
    if names is None:
        return []
    bare = [name.removeprefix(_DEFAULT_NAMESPACE) for name in names.tags if name.startswith(_DEFAULT_NAMESPACE)]
    return [name for name in (*bare, *names.tags) if name.startswith(incomplete)]


def suggest_specs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of models; after ``@`` the branches and tags of that model."""
    model, at, _ = incomplete.partition("@")
    return [f"{model}@{name}" for name in _find_refs(ctx, model)] if at else suggest_models(ctx, incomplete)


def suggest_revisions(ctx: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001 - typer passes it by its name
    """Return the branches and tags of the model that the command names."""
    return _find_refs(ctx, _find_model(ctx))


def suggest_tags(ctx: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001
    """Return the tags of the model that the command names."""
    return _find_refs(ctx, _find_model(ctx), branches=False)


def suggest_branches(ctx: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001
    """Return the branches of the model that the command names."""
    return _find_refs(ctx, _find_model(ctx), tags=False)


def suggest_devices(ctx: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001
    """Return the names of devices."""
    names = _find_names(ctx)
    return [] if names is None else names.devices


def _find_model(ctx: typer.Context) -> str | None:
    """Return the model that the command names; typer has parsed no argument where the last word is an option without value."""
    if (model := ctx.params.get("model")) is not None:
        return str(model)
    names = [param.name for param in ctx.command.params if param.param_type_name == "argument"]
    at = names.index("model") if "model" in names else len(names)
    return ctx.args[at] if at < len(ctx.args) else None


def _find_refs(ctx: typer.Context, model: str | None, *, branches: bool = True, tags: bool = True) -> list[str]:
    names = _find_names(ctx)
    if names is None or model is None:
        return []
    wanted = (model if "/" in model else _DEFAULT_NAMESPACE + model).casefold()
    spelled = next((name for name in names.tags if name.casefold() == wanted), None)
    if spelled is None:
        return []
    return [*(names.branches[spelled] if branches else ()), *(names.tags[spelled] if tags else ())]


def _find_names(ctx: typer.Context) -> "KnownNames | None":
    location = None
    place: typer.Context | None = ctx
    while place is not None and location is None:  # an option after the command goes before one that stands first
        location = place.params.get("store")
        place = place.parent  # type: ignore[assignment]  # typer's and click's contexts are one
    try:
        found: KnownNames = ctx.obj.doors.known_names(location)
    except TensorkeepError:
        return None
    return found
