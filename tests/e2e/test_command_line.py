"""The command line from a shell: no set-up, every command with its JSON, exit codes by the table."""

import json
from pathlib import Path

import pytest

from tensorkeep.cli.main import main
from tensorkeep.errors import ERROR_TABLE
from tests.e2e.conftest import CommandLine, Models
from tests.e2e.trees import check_same_tree, read_tree, safetensors_bytes, seeded_bytes, tensor_data, write_tree
from tests.e2e.workshop import Workshop


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {"layers.0.w": tensor_data("BF16", (700, 800), 1), "bias": tensor_data("F32", (7,), 2)}
    return write_tree(
        tmp_path / "source", {"model.safetensors": safetensors_bytes(tensors), "config.json": b"{}", "empty": b""}
    )


def test_a_push_needs_no_set_up_at_all(source: Path, command_line: CommandLine) -> None:
    pushed = command_line("push", source, "acme/llama")
    assert "acme/llama" in pushed.out
    assert (command_line.home / ".tensorkeep" / "devices" / "local").is_dir()
    command_line("pull", "acme/llama", "out")
    check_same_tree(source, command_line.home / "out")
    assert "acme/llama" in command_line("ls").out
    command_line("verify")


def test_the_store_is_found_by_option_then_environment_then_home(
    source: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    command_line("push", source, "acme/home")
    command_line("push", source, "acme/environment", store=tmp_path / "environment")
    command_line("push", source, "acme/option", "--store", tmp_path / "option", store=tmp_path / "environment")
    command_line("--store", tmp_path / "option", "tag", "acme/option", "v1")

    def models(*words: object, store: Path | None = None) -> list[str]:
        return [model["name"] for model in command_line(*words, "ls", "--json", store=store).json["models"]]

    assert models() == ["acme/home"]
    assert models(store=tmp_path / "environment") == ["acme/environment"]
    assert models("--store", tmp_path / "option", store=tmp_path / "environment") == ["acme/option"]


def test_every_command_speaks_json(source: Path, command_line: CommandLine, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def run(*words: object, code: int = 0) -> dict[str, object]:
        answer = command_line(*words, "--json", store=store, code=code)
        assert answer.err == "" or code
        document = answer.json
        assert isinstance(document, dict)
        return document

    assert run("init", "--replicas", 2)["policy"] == "replicas=2"
    for name in ("a", "b", "c"):
        device = run("device", "add", name, tmp_path / name, "--bandwidth", "1GB/s", "--zone", f"zone-{name}")
        assert (device["name"], device["zone"], device["bandwidth"]) == (name, f"zone-{name}", 10**9)
    assert len(run("device", "ls")["devices"]) == 3  # type: ignore[arg-type]
    first = run("push", source, "acme/m", "--tag", "v1", "-m", "first")
    assert (first["message"], first["tags"], first["policy"]) == ("first", ["v1"], "replicas=2")
    (source / "config.json").write_bytes(b'{"a": 1}')
    second = run("push", source, "acme/m", "--message", "second", "--split", "tensor", "--part-size", "2MiB")
    assert second["parent"] == first["id"]
    assert second["report"]["part_size"] == 2 << 20  # type: ignore[index]
    assert [model["name"] for model in run("ls")["models"]] == ["acme/m"]  # type: ignore[attr-defined]
    assert [version["id"] for version in run("ls", "acme/m")["versions"]] == [second["id"], first["id"]]  # type: ignore[attr-defined]
    shown = run("show", "acme/m@v1")
    assert [file["path"] for file in shown["files"]] == ["config.json", "empty", "model.safetensors"]  # type: ignore[attr-defined]
    assert {tensor["name"]: tensor["shape"] for tensor in shown["tensors"]} == {"layers.0.w": [700, 800], "bias": [7]}  # type: ignore[attr-defined]
    assert [entry["id"] for entry in run("log", "acme/m")["entries"]] == [second["id"], first["id"]]  # type: ignore[attr-defined]
    difference = run("diff", "acme/m@v1", "acme/m")
    assert [(change["kind"], change["path"]) for change in difference["files"]] == [("changed", "config.json")]  # type: ignore[attr-defined]
    assert run("tag", "acme/m", "v2")["version"] == second["id"]
    assert run("tag", "acme/m")["tags"] == [
        {"name": "v1", "version": first["id"]},
        {"name": "v2", "version": second["id"]},
    ]
    assert run("branch", "acme/m", "prod", "--to", "v1")["version"] == first["id"]
    assert len(run("branch", "acme/m")["branches"]) == 2  # type: ignore[arg-type]
    loaded = run("load", "acme/m@prod", "--include", "layers.*")
    assert (loaded["tensors"], loaded["version"]) == (1, first["id"])
    assert loaded["report"]["bytes_needed"] == 700 * 800 * 2  # type: ignore[index]
    pulled = run("pull", "acme/m@v1", tmp_path / "out")
    assert (pulled["files"], pulled["written_files"]) == (3, 3)
    assert run("verify", "acme/m@v1")["problems"] == []
    everything = run("verify")
    assert everything["problems"] == []
    usage = run("du")
    assert len(usage["rows"]) == 2  # type: ignore[arg-type]
    assert run("du", "acme/m")["logical_bytes"] == usage["logical_bytes"]
    status = run("status")
    assert (status["models"], status["versions"], status["policy"]) == (1, 2, "replicas=2")
    assert run("tag", "acme/m", "v2", "--delete")["deleted"] is True
    assert run("branch", "acme/m", "prod", "--delete")["deleted"] is True
    assert run("tag", "acme/m", "v1", "--delete")["deleted"] is True
    assert run("rm", f"acme/m@{first['id']}")["versions_removed"] == 1
    assert run("gc", "--dry-run", "--grace", 0)["dry_run"] is True
    assert run("gc", "--grace", "0", "--yes")["deleted"]
    assert run("device", "lost", "c", "--yes")["state"] == "lost"
    healed = run("push", source, "acme/m")
    assert healed["id"] == second["id"]
    assert run("verify")["ok"] is True
    (store / "catalog.sqlite").unlink()
    rebuilt = run("rebuild-catalog", "--from", tmp_path / "a")
    assert (rebuilt["models"], rebuilt["versions"]) == (1, 1)
    assert run("verify")["ok"] is True
    assert run("rm", "acme/m", "--all", "--yes")["versions_removed"] == 1
    assert run("ls")["models"] == []


def test_the_same_commands_print_tables_for_people(
    source: Path, shared_workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_workshop.store.push(source, "tables/m", tag="v1")
    for words in (["ls"], ["show", "tables/m", "--files", "--tensors"], ["log", "tables/m"], ["du"], ["status"]):
        assert main(["--store", str(shared_workshop.location), *words]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert not printed.out.startswith("{")
        assert len(printed.out.splitlines()) >= 2


def test_exit_codes_are_those_of_the_table(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORKEEP_STORE", str(tmp_path / "store"))
    assert main(["push", str(source), "acme/m", "--tag", "v1"]) == 0
    broken = write_tree(tmp_path / "broken", {"model.safetensors": seeded_bytes(100)})
    out = write_tree(tmp_path / "out", {"config.json": b"mine"})
    for code, words in (
        ("not_found", ("push", tmp_path / "nothing", "acme/m")),
        ("not_found", ("load", "acme/m@v9")),
        ("not_found", ("show", "acme/other")),
        ("already_exists", ("tag", "acme/m", "v1")),
        ("already_exists", ("init",)),
        ("already_exists", ("pull", "acme/m", out)),
        ("already_exists", ("rebuild-catalog",)),
        ("conflict", ("rm", "acme/m@v1")),
        ("invalid_input", ("push", source, "acme/m", "--replicas", 0)),
        ("invalid_input", ("push", source, "acme/m", "--replicas", 5)),
        ("invalid_input", ("push", source, "acme/m", "--split", "diagonal")),
        ("invalid_input", ("push", source, "a/b/c")),
        ("invalid_input", ("push", source, "acme/m", "--ec", "4+2")),
        ("invalid_input", ("device", "add", "x", "ftp://host/disk")),
        ("invalid_input", ("no-such-command",)),
        ("invalid_input", ("gc", "--grace", "soon")),
        ("format", ("push", broken, "acme/m")),
    ):
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == ERROR_TABLE[code].exit_code, words
        printed = capsys.readouterr()
        assert json.loads(printed.err.splitlines()[-1])["error"]["code"] == code
        assert printed.out == ""
    assert main(["verify"]) == 0


def test_the_models_command_line_user_sees_real_weights(
    models: Models, shared_workshop: Workshop, command_line: CommandLine
) -> None:
    pushed = command_line("push", models.minilm, "real/minilm", "--json", store=shared_workshop.location).json
    assert pushed["report"]["method"] == "tensor"
    shown = command_line("show", "real/minilm", "--tensors", store=shared_workshop.location)
    assert "embeddings.word_embeddings.weight" in shown.out
    loaded = command_line("load", "real/minilm", store=shared_workshop.location)
    for name in shared_workshop.devices:
        assert name in loaded.out
    assert "max L_i" in loaded.out


def test_history_survives_from_process_to_process(source: Path, command_line: CommandLine) -> None:
    ids = []
    for number in range(3):
        (source / "config.json").write_text(json.dumps({"number": number}))
        ids.append(command_line("push", source, "acme/m", "--json").json["id"])
    log = command_line("log", "acme/m", "--json").json["entries"]
    assert [entry["id"] for entry in log] == ids[::-1]
    command_line("branch", "acme/m", "main", "--to", ids[0][:9])
    command_line("pull", "acme/m", "out")
    assert read_tree(command_line.home / "out")["config.json"] == b'{"number": 0}'
