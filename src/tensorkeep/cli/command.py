"""A command: a plain function of a `Session` and its own options, made into what typer wants.

Every command gets ``--store``, ``--json`` and ``--debug`` here, and its examples under its help.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_models, suggest_specs

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="The store's folder. Default: $TENSORKEEP_STORE, then ~/.tensorkeep.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
MessageOption = Annotated[str, typer.Option("--message", "-m", help="A note for the log.", show_default=False)]
SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@REV]",
        help="A model, and a branch, tag or version id (default: main).",
        autocompletion=suggest_specs,
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model's name: namespace/name, or a bare name.", autocompletion=suggest_models
    ),
]
SplitOption = Annotated[
    str, typer.Option("--split", metavar="METHOD", help="Where to cut: auto, tensor, layer, size or parts=N.")
]
PartSizeOption = Annotated[
    str | None,
    typer.Option("--part-size", metavar="SIZE", help="Whole MiB, at most 64MiB. Default: by size.", show_default=False),
]
LayerPatternOption = Annotated[
    str | None,
    typer.Option(
        "--layer-pattern",
        metavar="REGEX",
        help="Its groups name the layer in a tensor's name. Default: as the usual families do.",
        show_default=False,
    ),
]

_COMMON = {"store": StoreOption, "json": JsonOption, "debug": DebugOption}


class Carried(Exception):
    """An exception on its way through typer, which would turn interrupts and closed pipes into exits of its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def add_command(app: typer.Typer, name: str, function: Callable[..., None], *examples: str) -> None:
    """Add a command to an application; its help is the function's docstring and the examples."""
    app.command(name, help=help_text(function.__doc__, *examples))(_as_typer(function))


def help_text(doc: str | None, *examples: str) -> str:
    r"""Return a help text that ends with examples; ``\b`` keeps their lines as they are."""
    lines = "\n".join(f"  $ {example}" for example in examples)
    return f"{inspect.cleandoc(doc or '')}\n\n\b\nExamples:\n{lines}"


def _as_typer(function: Callable[..., None]) -> Callable[..., None]:
    def call(ctx: typer.Context, **values: Any) -> None:
        location, as_json, debug = (values.pop(name) for name in _COMMON)
        session: Session = ctx.obj.with_options(location=location, as_json=as_json, debug=debug)
        try:
            function(session, **values)
        except (KeyboardInterrupt, OSError) as error:
            raise Carried(error) from error

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    common = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=None if name == "store" else False
        )
        for name, kind in _COMMON.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *common]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it from functions too
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__name__ = function.__name__
    return call
