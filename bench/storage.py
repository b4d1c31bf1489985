"""What a history takes on disk: a model, its fine-tune, a version with few changes, and ten training checkpoints.

tensorkeep beside plain copies, beside what keeps each file once (git-lfs, DVC), beside zstd, and beside backup programs that
cut files by content (restic, borg), where these are installed. Seconds are of one run each, warm: an order, not a figure.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import tensorkeep
from bench.pushing import changed_model
from bench.results import Options, Row, Table
from bench.rounds import disk_bytes, files_under, make_warm, size_of
from bench.work import WORK, get_model, new_store, remove

COPIES = "plain copies"
OURS = "tensorkeep"


def storage_tables(options: Options) -> list[Table]:
    """Return the table ``storage``."""
    versions = _versions(options.model)
    stored: dict[str, Callable[[Path], Path]] = {
        OURS: lambda out: _push(versions, out),
        COPIES: lambda out: _copy(versions, out),
        "each file once, as git-lfs and DVC do": lambda out: _copy_once(versions, out),
        "plain copies, zstd -3": lambda out: _compress(versions, out),
    }
    failures = {}
    for program, store in (("restic", _restic), ("borg", _borg)):
        if shutil.which(program):
            stored[f"{program} ({_first_line(program)})"] = lambda out, store=store: store(versions, out)  # type: ignore[misc]
        else:
            failures[program] = "not installed"
    for folder in versions.values():
        make_warm(folder)
    rows = []
    for name, put in stored.items():
        out = remove("storage")
        start = time.perf_counter()
        kept = put(out)
        seconds = time.perf_counter() - start
        figures = {"stored_bytes": [float(disk_bytes(kept))], "once_seconds": [seconds]}
        rows.append(Row(name, "ours" if name == OURS else "other", figures))
    remove("storage")
    total = sum(size_of(folder) for folder in versions.values())
    title = f"What {len(versions)} versions of {total / 1e9:.1f} GB take on disk"
    return [Table("storage", title, "scripts/bench.sh run storage", rows, COPIES, total, failures=failures)]


def _versions(model: str) -> dict[str, Path]:
    """Return folders by ``model@tag``, in the order in which they are stored."""
    versions = {"bench/model@first": get_model(model)}
    if model == "small":
        versions["bench/model@finetune"] = get_model("finetune")
    else:
        from bench.make_models import make_model  # noqa: PLC0415

        folder = WORK / "models" / f"finetune-{model}"
        versions["bench/model@finetune"] = (
            folder if folder.exists() else make_model("finetune", folder, base=get_model(model))
        )
    versions["bench/model@frozen"] = changed_model(model)
    return versions | {f"bench/steps@{path.name}": path for path in sorted(get_model("steps").iterdir())}


def _push(versions: dict[str, Path], out: Path) -> Path:
    new_store(out.name).close()
    with tensorkeep.open(out) as store:
        for name, folder in versions.items():
            model, _, tag = name.partition("@")
            store.push(folder, model, tag=tag)
    return out


def _copy(versions: dict[str, Path], out: Path) -> Path:
    for name, folder in versions.items():
        shutil.copytree(folder, out / name)
    return out


def _copy_once(versions: dict[str, Path], out: Path) -> Path:
    """Keep each file once under its SHA-256, as git-lfs and DVC do."""
    out.mkdir()
    for folder in versions.values():
        for path in files_under(folder):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not (out / digest).exists():
                shutil.copyfile(path, out / digest)
    return out


def _compress(versions: dict[str, Path], out: Path) -> Path:
    for name, folder in versions.items():
        for path in files_under(folder):
            target = out / name / f"{path.relative_to(folder)}.zst"
            target.parent.mkdir(parents=True, exist_ok=True)
            _run(["zstd", "-3", "-q", "-T0", str(path), "-o", str(target)])
    return out


def _restic(versions: dict[str, Path], out: Path) -> Path:
    environment = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(out / "cache")}
    restic = ["restic", "--quiet", "--repo", str(out / "repository")]
    _run([*restic, "init"], environment)
    for name, folder in versions.items():
        _run([*restic, "backup", "--tag", name, str(folder)], environment)
    return out / "repository"


def _borg(versions: dict[str, Path], out: Path) -> Path:
    environment = {"BORG_BASE_DIR": str(out / "home"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    repository = out / "repository"
    repository.mkdir(parents=True)
    _run(["borg", "init", "--encryption", "none", str(repository)], environment)
    for name, folder in versions.items():
        archive = name.replace("/", "-").replace("@", "-")
        _run(["borg", "create", "--compression", "zstd,3", f"{repository}::{archive}", str(folder)], environment)
    return repository


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, **(environment or {})}
    )


def _first_line(program: str) -> str:
    words = {"restic": ["restic", "version"], "borg": ["borg", "--version"]}[program]
    found = subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return found.stdout.split()[1]
