"""Moving models: into the store, out of it as files, out of it into memory."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensorkeep.cli.command import (
    LayerPatternOption,
    MessageOption,
    ModelArgument,
    PartSizeOption,
    SpecArgument,
    SplitOption,
)
from tensorkeep.cli.documents import to_plain
from tensorkeep.cli.session import Session
from tensorkeep.cli.shard_options import (
    ExpertsOption,
    FsdpOption,
    LayersOption,
    OutsideOption,
    PresetOption,
    RuleOption,
    TensorParallelOption,
    make_shard,
)
from tensorkeep.cli.suggestions import suggest_branches, suggest_specs
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import exact_size, human_count, human_duration, human_rate, human_size, parse_size
from tensorkeep.errors import InvalidInput
from tensorkeep.records.names import parse_revision

if TYPE_CHECKING:
    from tensorkeep import LoadPlan, LoadReport, Shard, Version


class TensorFormat(StrEnum):
    """A format that tensors can leave in."""

    SAFETENSORS = "safetensors"


class Verify(StrEnum):
    """How what is read is checked."""

    BLOCKS = "blocks"
    DIGEST = "digest"
    OFF = "off"


IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Only these tensors; may be repeated.", show_default=False),
]
VerifyOption = Annotated[
    Verify | None,
    typer.Option(
        "--verify",
        help="How to check: each block (against accidents), each part's digest (against attackers), or not at all. "
        "Default: blocks; digest where a device is untrusted.",
        show_default=False,
    ),
]


def push(
    session: Session,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a file.")],
    model: ModelArgument,
    *,
    branch: Annotated[
        str, typer.Option("--branch", metavar="NAME", help="The branch to move.", autocompletion=suggest_branches)
    ] = "main",
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME", help="Tag the version too.", show_default=False)
    ] = None,
    message: MessageOption = "",
    author: Annotated[
        str | None, typer.Option("--author", metavar="NAME", help="Who made it. Default: the user.", show_default=False)
    ] = None,
    split: SplitOption = "auto",
    part_size: PartSizeOption = None,
    layer_pattern: LayerPatternOption = None,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", metavar="N", min=1, help="Keep N copies; later pushes do too.", show_default=False),
    ] = None,
    ec: Annotated[
        str | None,
        typer.Option(
            "--ec", metavar="K+M", help="Keep K data and M parity fragments; later pushes do too.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL@REV",
            help="Cut like that version, to share its parts.",
            show_default=False,
            autocompletion=suggest_specs,
        ),
    ] = None,
    allow_soft: Annotated[
        bool, typer.Option("--allow-soft", help="Count copies on devices that may forget (tmpfs, NFS, memory).")
    ] = False,
    allow_degraded: Annotated[
        bool, typer.Option("--allow-degraded", help="With a device down, write the copies that can be written.")
    ] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read all files, also those that look unchanged.")] = False,
) -> None:
    """Store a folder or file as a new version of a model.

    Only parts that are not stored yet are written. Where nothing changed since the branch's last version, none is made.
    A push that was killed is resumed by running it again.
    """
    size = None if part_size is None else parse_size(part_size, what="part size")
    with session.store() as store, session.progress() as progress:
        version = store.push(
            path,
            model,
            branch=branch,
            tag=tag,
            message=message,
            author=author,
            split=split,
            part_size=size,
            layer_pattern=layer_pattern,
            replicas=replicas,
            ec=ec,
            base=base,
            allow_soft=allow_soft,
            allow_degraded=allow_degraded,
            rehash=rehash,
            progress=progress,
        )
    for warning in version.report.warnings if version.report else ():
        session.warn(warning)
    session.show(version, lambda: _push_blocks(version))


def pull(
    session: Session,
    spec: SpecArgument,
    destination: Annotated[
        str | None, typer.Argument(metavar="[DEST]", help="A folder. Default: ./NAME of the model.", show_default=False)
    ] = None,
    *,
    format_: Annotated[
        TensorFormat | None,
        typer.Option(
            "--format",
            help="Write files of other known tensor formats in this one. Default: all as pushed.",
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Only these files; may be repeated.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
    verify: VerifyOption = None,
) -> None:
    """Write a version's files into a folder.

    They are the bytes that were pushed; with --format, files with tensors in another known format are converted. A file that
    is there and differs is kept, and an error, unless --force is given.
    """
    folder = str(Path(parse_revision(spec).model.name)) if destination is None else destination
    with session.store() as store, session.progress() as progress:
        report = store.pull(
            spec,
            folder,
            format=format_.value if format_ else None,
            include=include or None,
            force=force,
            verify=verify.value if verify else None,
            progress=progress,
        )
    _warn_of_damage(session, report.load)
    for warning in report.warnings:
        session.warn(warning)
    reading = f"{human_duration(report.load.seconds)}, {human_rate(report.load.rate_bytes_per_s)}"

    def blocks() -> list[Block]:
        written = f"{report.written_files:,} written, {report.unchanged_files:,} already there"
        return [
            Facts(
                [
                    ("pulled", f"{spec} to {report.destination}"),
                    ("files", f"{report.files:,} ({written})"),
                    ("converted", human_count(report.converted_files, "file") if report.converted_files else None),
                    ("bytes", human_size(report.bytes)),
                    ("time", reading if report.written_files else None),  # nothing was read otherwise
                ]
            )
        ]

    session.show({"spec": spec} | to_plain(report), blocks)


def load(
    session: Session,
    spec: SpecArgument,
    out: Annotated[
        str | None, typer.Argument(metavar="[OUT]", help="The file to write, with --to.", show_default=False)
    ] = None,
    *,
    to: Annotated[
        TensorFormat | None,
        typer.Option(
            "--to", help="Write the tensors to OUT in this format, instead of into memory.", show_default=False
        ),
    ] = None,
    include: IncludeOption = None,
    framework: Annotated[
        str, typer.Option("--framework", metavar="NAME", help="Whose arrays to make: numpy or torch.")
    ] = "numpy",
    tensor_parallel: TensorParallelOption = None,
    rule: RuleOption = None,
    preset: PresetOption = True,
    fsdp: FsdpOption = None,
    layers: LayersOption = None,
    outside_layers: OutsideOption = True,
    experts: ExpertsOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be read, and read nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --to, replace OUT.")] = False,
    verify: VerifyOption = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Show the table of devices.")] = True,
) -> None:
    """Load tensors and time each device.

    They go into memory; with --to into a file, whatever format they were pushed in. L_i is the time of device i, L = max L_i
    that of the whole: the devices are read at once. Ranks, layers and experts choose the part of a model that one process of
    several wants; --plan says what it would cost.
    """
    shard = make_shard(
        tensor_parallel=tensor_parallel,
        rules=rule,
        preset=preset,
        fsdp=fsdp,
        layers=layers,
        outside_layers=outside_layers,
        experts=experts,
    )
    if (out is None) != (to is None):
        raise InvalidInput("--to and the file OUT go together: load MODEL OUT --to safetensors")
    if to is not None and framework != "numpy":
        raise InvalidInput("--framework makes arrays, and --to a file: leave one of them out")
    if to is not None and (shard is not None or plan):
        raise InvalidInput("--to writes whole tensors: choose them with --include, and leave --plan and shards out")
    if plan:
        _plan(session, spec, include=include or None, shard=shard, verify=verify, table=report)
        return
    if out is not None:
        _save(session, spec, out, include=include or None, force=force, verify=verify, table=report)
        return
    with session.store() as store, session.progress() as progress:
        model = store.model(spec)
        tensors = model.load(
            framework=framework,
            include=include or None,
            shard=shard,
            verify=verify.value if verify else None,
            progress=progress,
        )
        loaded = len(tensors)
        result = model.report
        assert result is not None, "a load reports"
    _warn_of_damage(session, result)
    for path in [] if include else model.unknown_shards:
        session.warn(
            f"{path!r} is a piece of a model, and no tensors of it are known: the load is without them", file=path
        )
    document = {"spec": spec, "version": model.version.id, "framework": framework, "tensors": loaded, "report": result}
    facts = [("loaded", f"{_title(spec, model.version)}: {_amount(loaded, result)}")]
    session.show(document, lambda: _load_blocks(facts, result, table=report))


def _plan(
    session: Session,
    spec: str,
    *,
    include: list[str] | None,
    shard: "Shard | None",
    verify: Verify | None,
    table: bool,
) -> None:
    """Say what a load would read: ``load --plan``."""
    with session.store() as store:
        model = store.model(spec)
        found = model.plan_load(include=include, shard=shard, verify=verify.value if verify else None)
    document = {"spec": spec, "version": model.version.id, "plan": found}
    session.show(document, lambda: _plan_blocks(_title(spec, model.version), found, table=table))


def _plan_blocks(title: str, plan: "LoadPlan", *, table: bool) -> list[Block]:
    cut = sum(tensor.shape != tensor.full_shape for tensor in plan.tensors)
    more = f", {cut:,} of them cut" if cut else ""
    ratio = f" ({plan.bytes_read / plan.bytes_needed:.3f} of what is needed)" if plan.bytes_needed else ""
    rows = [
        (device.name, human_size(device.bytes), human_duration(device.predicted_seconds)) for device in plan.devices
    ]
    facts = Facts(
        [
            ("plan", f"{title}: {human_count(len(plan.tensors), 'tensor')}{more}"),
            ("needed", f"{human_size(plan.bytes_needed)} ({plan.bytes_needed:,} bytes)"),
            ("read", f"{human_size(plan.bytes_read)}{ratio}, verify={plan.verify}"),
            ("max L_i", f"{human_duration(plan.load_seconds)}, predicted"),
        ]
    )
    return [*([Table(("DEVICE", ">TO READ", ">L_i"), rows)] if table else []), facts]


def prefetch(
    session: Session,
    spec: SpecArgument,
    *,
    include: IncludeOption = None,
    tensor_parallel: TensorParallelOption = None,
    rule: RuleOption = None,
    preset: PresetOption = True,
    fsdp: FsdpOption = None,
    layers: LayersOption = None,
    outside_layers: OutsideOption = True,
    experts: ExpertsOption = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Show the table of devices.")] = True,
) -> None:
    """Bring a remote model into this machine's cache.

    The cache is a folder that ~/.config/tensorkeep/node.toml or /etc/tensorkeep/node.toml names under [cache]. Loads of all processes
    read what is there, verified, instead of the network; parts that lie on disks of this machine need none.
    """
    shard = make_shard(
        tensor_parallel=tensor_parallel,
        rules=rule,
        preset=preset,
        fsdp=fsdp,
        layers=layers,
        outside_layers=outside_layers,
        experts=experts,
    )
    with session.store() as store, session.progress() as progress:
        model = store.model(spec)
        found = model.prefetch(include=include or None, shard=shard, progress=progress)
    _warn_of_damage(session, found.load)
    if found.left_out_bytes:
        session.warn(
            f"{human_size(found.left_out_bytes)} did not get into the cache: raise its limit_bytes, make room on its disk, or choose less",
            left_out_bytes=found.left_out_bytes,
        )
    facts = [
        ("cached", f"{_title(spec, model.version)}: {human_size(found.cached_bytes)}"),
        ("local", f"{human_size(found.local_bytes)} on disks of this machine" if found.local_bytes else None),
    ]
    document = {"spec": spec, "version": model.version.id} | to_plain(found)
    session.show(document, lambda: _load_blocks(facts, found.load, table=report))


def _save(
    session: Session,
    spec: str,
    out: str,
    *,
    include: list[str] | None,
    force: bool,
    verify: Verify | None,
    table: bool,
) -> None:
    """Write tensors to a file: ``load --to``."""
    with session.store() as store, session.progress() as progress:
        model = store.model(spec)
        saved = model.save(
            out, include=include, force=force, verify=verify.value if verify else None, progress=progress
        )
    _warn_of_damage(session, saved.load)
    for warning in saved.warnings:
        session.warn(warning)
    facts = [
        ("wrote", f"{saved.path}, {human_size(saved.bytes)}"),
        ("from", f"{_title(spec, model.version)}: {_amount(saved.tensors, saved.load)}"),
        ("ties", f"{human_count(len(saved.aliases), 'name')} of tensors that have another" if saved.aliases else None),
    ]
    document = {"spec": spec, "version": model.version.id} | to_plain(saved)
    session.show(document, lambda: _load_blocks(facts, saved.load, table=table))


def _push_blocks(version: "Version") -> list[Block]:
    report = version.report
    assert report is not None, "a push reports"
    rate = f", {human_rate(report.rate_bytes_per_s)}" if report.created else ""  # nothing was moved otherwise
    stored = human_size(report.written_bytes) + " on all devices" if report.written_bytes else "nothing: all is there"
    blocks: list[Block] = [
        Facts(
            [
                ("version" if report.created else "unchanged", version.id),
                ("model", version.model),
                ("names", ", ".join([*version.branches, *(f"tag {tag}" for tag in version.tags)]) or None),
                ("files", f"{report.files:,}, {human_size(report.bytes)}"),
                ("parts", f"{report.parts:,}, {report.new_parts:,} of them new ({human_size(report.new_bytes)})"),
                ("stored", stored),
                ("policy", version.policy),
                ("split", f"{report.method}, parts of {exact_size(report.part_size)}: {report.why}"),
                ("time", f"{human_duration(report.seconds)}{rate}"),
                *(("note", f"{note.path}: {note.note}") for note in report.notes),
            ]
        )
    ]
    if report.device_bytes:
        rows = [(name, human_size(size)) for name, size in sorted(report.device_bytes.items())]
        blocks.append(Table(("DEVICE", ">WRITTEN"), rows))
    return blocks


def _title(spec: str, version: "Version") -> str:
    return f"{spec} ({version.id[:12]})"


def _amount(tensors: int, report: "LoadReport") -> str:
    return f"{human_count(tensors, 'tensor')}, {human_size(report.bytes_needed)}"


def _load_blocks(facts: Sequence[tuple[str, str | None]], report: "LoadReport", *, table: bool) -> list[Block]:
    blocks: list[Block] = []
    details: list[tuple[str, str | None]] = []
    if table:
        details = _load_details(report)
        blocks.append(
            Table(("DEVICE", ">READ", ">L_i", ">RATE", ">PREDICTED"), [_device_row(d) for d in report.devices])
        )
    blocks.append(
        Facts(
            [
                *facts,
                ("read", f"{human_size(report.bytes_read)}, verify={report.verify}"),
                ("retried", human_count(report.retried, "read") if report.retried else None),
                *details,
                ("max L_i", human_duration(report.slowest_seconds)),
                ("predicted", human_duration(report.predicted_seconds) if report.devices else None),
                ("time", f"{human_duration(report.seconds)}, {human_rate(report.rate_bytes_per_s)}"),
            ]
        )
    )
    return blocks


def _load_details(report: "LoadReport") -> list[tuple[str, str | None]]:
    """Return what was damaged, by device, and what was mapped or why it was not."""
    copies = Counter((damage.device_name, damage.kind) for damage in report.damaged)
    damaged = [f"{name}: {human_count(count, 'copy', 'copies')} {kind}" for (name, kind), count in copies.items()]
    unmapped = [f"{human_size(size)} {reason}" for reason, size in report.unmapped_bytes.items() if size]
    return [
        ("damaged", "; ".join(damaged) or None),
        ("mapped", human_size(report.mapped_bytes) if report.mapped_bytes or unmapped else None),
        ("not mapped", "; ".join(unmapped) or None),
    ]


def _device_row(device: Any) -> tuple[str, ...]:
    rate = human_rate(device.rate_bytes_per_s) if device.seconds else ""
    predicted = "" if device.predicted_seconds is None else human_duration(device.predicted_seconds)
    return device.name, human_size(device.bytes), human_duration(device.seconds), rate, predicted


def _warn_of_damage(session: Session, report: "LoadReport") -> None:
    """Warn once for each device whose copies failed; the load itself was served by others."""
    by_device: dict[str, list[Any]] = {}
    for damage in report.damaged:
        by_device.setdefault(damage.device_name, []).append(damage)
    for name, damages in by_device.items():
        first = damages[0]
        more = f" and {len(damages) - 1:,} more" if len(damages) > 1 else ""
        absent = all(damage.kind == "unreachable" for damage in damages)
        advice = (
            f"Bring it back, or give it up with `tensorkeep device lost {name}` and push the model again"
            if absent
            else "Push the model again to restore them"
        )
        if first.location < 0:  # no row of the catalog: the node's cache
            advice = "They are fetched again by a later load"
        session.warn(
            f"device {name}: {first.reason}{more}; other copies were read instead. {advice}",
            device=name,
            damaged=[damage.location for damage in damages],
        )
