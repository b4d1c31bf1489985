"""Looking before a push: how a model would be split, and what each device would get and give."""

from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import LayerPatternOption, PartSizeOption, SplitOption
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_branches, suggest_models, suggest_specs
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import exact_size, human_count, human_duration, human_size, parse_size

if TYPE_CHECKING:
    from tensorkeep import PushForecast
    from tensorkeep.store.reports import LayerBalance


def plan(
    session: Session,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a file.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="The model to push to. Default: a new one.",
            show_default=False,
            autocompletion=suggest_models,
        ),
    ] = None,
    *,
    branch: Annotated[
        str, typer.Option("--branch", metavar="NAME", help="The branch to move.", autocompletion=suggest_branches)
    ] = "main",
    split: SplitOption = "auto",
    part_size: PartSizeOption = None,
    layer_pattern: LayerPatternOption = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", metavar="N", min=1, help="Keep N copies.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL@REV",
            help="Cut like that version.",
            show_default=False,
            autocompletion=suggest_specs,
        ),
    ] = None,
    allow_soft: Annotated[bool, typer.Option("--allow-soft", help="As in push.")] = False,
    allow_degraded: Annotated[bool, typer.Option("--allow-degraded", help="As in push.")] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="As in push.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read everything: find parts that are equal, or stored already.")
    ] = False,
) -> None:
    """Say what a push would do, and why; write nothing.

    Only headers are read. Parts that are stored already count as new unless --exact is given or their files are known.
    """
    size = None if part_size is None else parse_size(part_size, what="part size")
    with session.store() as store, session.progress() as progress:
        forecast = store.plan(
            path,
            model,
            branch=branch,
            split=split,
            part_size=size,
            layer_pattern=layer_pattern,
            replicas=replicas,
            base=base,
            allow_soft=allow_soft,
            allow_degraded=allow_degraded,
            rehash=rehash,
            exact=exact,
            progress=progress,
        )
    for warning in forecast.warnings:
        session.warn(warning)
    session.show(forecast, lambda: _blocks(forecast))


def _blocks(forecast: "PushForecast") -> list[Block]:
    new = (
        f"{forecast.new_parts:,} to write ({human_size(forecast.new_bytes)}, {human_count(forecast.new_packs, 'pack')})"
    )
    files = [
        (
            file.path,
            human_size(file.size_bytes),
            file.format,
            f"{file.tensors:,}",
            "; ".join(filter(None, ("unchanged" if file.kept else "", file.note))),
        )
        for file in forecast.files
    ]
    devices = [
        (
            device.name,
            f"{device.parts:,}",
            human_size(device.bytes),
            human_size(device.load_bytes),
            human_duration(device.load_seconds),
        )
        for device in forecast.devices
    ]
    return [
        Facts(
            [
                ("split", f"{forecast.method}, parts of {exact_size(forecast.part_size)}: {forecast.why}"),
                ("model", forecast.model),
                ("files", f"{len(forecast.files):,}, {human_size(forecast.bytes)}"),
                ("parts", f"{forecast.parts:,}, {'' if forecast.exact else 'at most '}{new}"),
                ("layers", _layers_text(forecast.layers) if forecast.layers else None),
                ("load", f"{human_duration(forecast.load_seconds)}, predicted"),
            ]
        ),
        Table(("FILE", ">SIZE", "FORMAT", ">TENSORS", "NOTE"), files),
        Table(("DEVICE", ">PARTS", ">TO WRITE", ">LOAD READS", ">L_i"), devices),
    ]


def _layers_text(layers: "LayerBalance") -> str:
    slowest = f"slowest {layers.slowest} in {human_duration(layers.slowest_seconds)}"
    return f"{layers.layers:,}, {100 * layers.balance:.0f} % of what even loads would give, {slowest}"
