"""The application: the global options and the table of commands, in the order of ``--help``."""

from typing import Annotated

import typer

from tensorkeep._version import __version__
from tensorkeep.cli.command import DebugOption, JsonOption, StoreOption, add_command, help_text
from tensorkeep.cli.commands import (
    devices,
    history,
    names,
    part_files,
    planning,
    policies,
    removal,
    retention,
    setup,
    showing,
    transfers,
    upkeep,
)
from tensorkeep.cli.completion import INSTALL, SHOW, install_callback, show_callback
from tensorkeep.cli.failures import USAGE
from tensorkeep.cli.session import Session
from tensorkeep.errors import InvalidInput

_MAIN_HELP = """A distributed store for large AI models: split, placed, verified, loaded from all devices at once.

MODEL is namespace/name or a bare name; REV is a branch, a tag or a version id (a unique prefix of 7 or more digits).
Sizes are decimal (1 kB = 1000 bytes); options take both 2TB and 16MiB."""


def build_app() -> typer.Typer:
    """Return the application with every command."""
    app = _group(help_text(_MAIN_HELP, "tensorkeep push ./llama acme/llama --tag v1", "tensorkeep load acme/llama@v1"))
    app.callback(invoke_without_command=True)(_main_options)
    add_command(app, "init", setup.init, "tensorkeep init ./store --replicas 2", "tensorkeep init")
    app.add_typer(_device_group(), name="device")
    add_command(
        app,
        "plan",
        planning.plan,
        "tensorkeep plan ./llama",
        "tensorkeep plan ./llama acme/llama --split layer --replicas 2",
    )
    add_command(
        app,
        "push",
        transfers.push,
        "tensorkeep push ./llama acme/llama --tag v1 -m 'first weights'",
        "tensorkeep push ./llama acme/llama --replicas 2 --part-size 32MiB",
    )
    add_command(
        app,
        "pull",
        transfers.pull,
        "tensorkeep pull acme/llama@v1",
        "tensorkeep pull acme/llama ./out --include '*.json'",
    )
    add_command(
        app,
        "load",
        transfers.load,
        "tensorkeep load acme/llama@v1",
        "tensorkeep load acme/llama --include 'model.layers.0.*' --framework torch",
        "tensorkeep load acme/llama --tensor-parallel 0/8 --plan",
    )
    add_command(
        app,
        "prefetch",
        transfers.prefetch,
        "tensorkeep prefetch acme/llama@v1",
        "tensorkeep prefetch acme/llama --tensor-parallel 0/8",
    )
    add_command(app, "ls", history.ls, "tensorkeep ls", "tensorkeep ls acme/llama --json")
    add_command(
        app,
        "show",
        showing.show,
        "tensorkeep show acme/llama@v1 --tensors",
        "tensorkeep show acme/llama --layer 0 --dtype BF16 --shape '4096x*'",
    )
    add_command(app, "log", history.log, "tensorkeep log acme/llama")
    add_command(
        app,
        "diff",
        history.diff,
        "tensorkeep diff acme/llama@v1 acme/llama@v2",
        "tensorkeep diff acme/llama@v1 acme/llama@v2 --stats --include 'model.layers.0.*'",
    )
    add_command(app, "tag", names.tag, "tensorkeep tag acme/llama v2", "tensorkeep tag acme/llama v2 --delete")
    add_command(
        app, "branch", names.branch, "tensorkeep branch acme/llama prod --to v1", "tensorkeep branch acme/llama"
    )
    add_command(app, "rm", removal.rm, "tensorkeep rm acme/llama@4f1c2ab", "tensorkeep rm acme/llama --all --yes")
    add_command(app, "verify", upkeep.verify, "tensorkeep verify", "tensorkeep verify acme/llama@v1")
    add_command(app, "scrub", upkeep.scrub, "tensorkeep scrub", "tensorkeep scrub --deep --rate-limit 200MB/s")
    add_command(app, "repair", upkeep.repair, "tensorkeep repair", "tensorkeep repair --dry-run")
    add_command(
        app,
        "rebalance",
        upkeep.rebalance,
        "tensorkeep rebalance --dry-run",
        "tensorkeep rebalance --rate-limit 200MB/s",
    )
    add_command(
        app,
        "policy",
        policies.policy,
        "tensorkeep policy",
        "tensorkeep policy acme/llama --ec 4+2",
        "tensorkeep policy acme/llama --replicas 2 --dry-run",
    )
    add_command(
        app,
        "retain",
        retention.retain,
        "tensorkeep retain acme/llama",
        "tensorkeep retain acme/llama --last 3 --days 30 --protect 'v*'",
    )
    add_command(app, "gc", removal.gc, "tensorkeep gc --dry-run", "tensorkeep gc --grace 0 --yes")
    add_command(app, "du", upkeep.du, "tensorkeep du", "tensorkeep du acme/llama")
    add_command(app, "status", upkeep.status, "tensorkeep status")
    add_command(
        app,
        "rebuild-catalog",
        setup.rebuild_catalog,
        "tensorkeep rebuild-catalog --from file:///mnt/nvme0 --from file:///mnt/nvme1",
    )
    add_command(
        app,
        "split",
        part_files.split,
        "tensorkeep split model.bin --parts 4",
        "tensorkeep split model.bin --parts 4 --to /mnt/a --to /mnt/b",
    )
    add_command(
        app,
        "join",
        part_files.join,
        "tensorkeep join model.bin.parts.json",
        "tensorkeep join model.bin.parts.json ./again.bin --from /mnt/c",
    )
    return app


def _device_group() -> typer.Typer:
    group = _group(
        help_text(
            "Add, list, check, measure, empty and give up devices.",
            "tensorkeep device add nvme0 file:///mnt/nvme0",
        )
    )
    group.callback(invoke_without_command=True)(_device_options)
    add_command(
        group,
        "add",
        devices.add,
        "tensorkeep device add nvme0 file:///mnt/nvme0 --zone rack1",
        "tensorkeep device add hdd0 file:///mnt/hdd0 --capacity 2TB --rate-limit 200MB/s",
        "tensorkeep device add s3 's3://bucket/models?region=eu-central-1&credentials=profile:team'",
    )
    add_command(group, "ls", devices.ls, "tensorkeep device ls -v")
    add_command(
        group,
        "check",
        devices.check,
        "tensorkeep device check nvme0",
        "tensorkeep device check /mnt/nvme1",
    )
    add_command(
        group,
        "bench",
        devices.bench,
        "tensorkeep device bench nvme0",
        "tensorkeep device bench nvme0 hdd0 --size 1GiB --save",
    )
    add_command(group, "drain", devices.drain, "tensorkeep device drain hdd0", "tensorkeep device drain hdd0 --cancel")
    add_command(group, "remove", devices.remove, "tensorkeep device remove hdd0")
    add_command(group, "lost", devices.lost, "tensorkeep device lost nvme0 --yes")
    return group


def _group(help_lines: str) -> typer.Typer:
    # Plain help: typer's rich help imports rich and costs a third of the start-up that is allowed. Its completion
    # options would import what finds the user's shell; ours are in `completion`.
    return typer.Typer(
        help=help_lines,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=False,
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tensorkeep {__version__}")
        raise typer.Exit


def _main_options(
    ctx: typer.Context,
    store: StoreOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    show_completion: Annotated[
        str | None,
        typer.Option(
            SHOW,
            metavar="[SHELL]",
            help="Print the script that completes commands in bash, zsh or fish. Default: $SHELL.",
            callback=show_callback,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
    install_completion: Annotated[
        str | None,
        typer.Option(
            INSTALL,
            metavar="[SHELL]",
            help="Have the shell load that script when it starts.",
            callback=install_callback,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    del version, show_completion, install_completion
    _take_options(ctx, store=store, json=json, debug=debug)


def _device_options(
    ctx: typer.Context, store: StoreOption = None, json: JsonOption = False, debug: DebugOption = False
) -> None:
    _take_options(ctx, store=store, json=json, debug=debug)


def _take_options(ctx: typer.Context, *, store: str | None, json: bool, debug: bool) -> None:
    session: Session = ctx.obj.with_options(location=store, as_json=json, debug=debug)
    ctx.obj = session
    if ctx.invoked_subcommand is None:
        if session.as_json:
            raise InvalidInput(f"no command was given: see '{ctx.command_path} --help'")
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(USAGE)
