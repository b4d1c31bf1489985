"""The options of ``load`` that say which part of a model one process wants, and the `Shard` that they mean."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.errors import InvalidInput

if TYPE_CHECKING:
    from tensorkeep import Shard

TensorParallelOption = Annotated[
    str | None,
    typer.Option(
        "--tensor-parallel",
        metavar="RANK/SIZE",
        help="Only this rank's run of each matrix, cut as Llama-like models are, or by --rule. Ranks count from 0.",
        show_default=False,
    ),
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="GLOB=AXIS",
        help="Cut tensors of such a name at that axis, or not: 'GLOB=whole'. The first that fits holds; may be repeated.",
        show_default=False,
    ),
]
PresetOption = Annotated[
    bool, typer.Option("--preset/--no-preset", help="Cut what no --rule fits as Llama-like models are; else whole.")
]
FsdpOption = Annotated[
    str | None,
    typer.Option(
        "--fsdp",
        metavar="RANK/SIZE",
        help="Only this rank's chunk of each tensor's first dimension, as torch's fully_shard cuts.",
        show_default=False,
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="A-B",
        help="Only layers A to B, both included, and what belongs to no layer.",
        show_default=False,
    ),
]
OutsideOption = Annotated[
    bool,
    typer.Option("--outside-layers/--no-outside-layers", help="With what belongs to no layer: embeddings, norm, head."),
]
ExpertsOption = Annotated[
    str | None,
    typer.Option(
        "--experts",
        metavar="N,N,…",
        help="Of the experts only these, as 0,1,5 or 0-7; all else stays.",
        show_default=False,
    ),
]

_RANK = re.compile(r"(\d{1,9})/(\d{1,9})\Z", re.ASCII)
_NUMBERS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?\Z", re.ASCII)
_WHOLE = "whole"


def make_shard(
    *,
    tensor_parallel: str | None,
    rules: list[str] | None,
    preset: bool,
    fsdp: str | None,
    layers: str | None,
    outside_layers: bool,
    experts: str | None,
) -> "Shard | None":
    """Return the shard that the options mean, None where none of them was given.

    Raises:
        InvalidInput: a value is not what the option takes, or makes no sense.
    """
    given = (tensor_parallel, rules or None, fsdp, layers, experts)
    if all(value is None for value in given) and preset and outside_layers:
        return None
    from tensorkeep import Shard

    return Shard(
        tensor_parallel=_parse_rank("--tensor-parallel", tensor_parallel),
        rules=dict(_parse_rule(text) for text in rules or ()),
        preset=preset,
        fsdp=_parse_rank("--fsdp", fsdp),
        layers=None if layers is None else _parse_range("--layers", layers),
        outside_layers=outside_layers,
        experts=None
        if experts is None
        else {number for text in experts.split(",") for number in _parse_range("--experts", text)},
    )


def _parse_rank(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = _RANK.match(text.strip())
    if not found:
        raise InvalidInput(f"{option} {text!r}: write the rank and how many there are, as 0/8", text=text)
    return int(found[1]), int(found[2])


def _parse_range(option: str, text: str) -> range:
    """Return the numbers of a text like ``3`` or ``0-7``, which includes 7."""
    found = _NUMBERS.match(text.strip())
    if not found or (found[2] is not None and int(found[1]) > int(found[2])):
        raise InvalidInput(f"{option} {text!r}: write a number, or the first and the last one, as 0-7", text=text)
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _parse_rule(text: str) -> tuple[str, int | None]:
    glob, equals, axis = text.rpartition("=")
    if not equals or not glob or not re.fullmatch(rf"-?[0-9]{{1,3}}|{_WHOLE}", axis.strip()):
        raise InvalidInput(f"--rule {text!r}: write a glob over names and an axis, as '*.c_fc.weight=1', or =whole")
    return glob, None if axis.strip() == _WHOLE else int(axis)
