"""Each command calls its promise with what the user wrote, and prints what came back for people."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tensorkeep import Shard
from tensorkeep.cli.metadata_table import metadata_table
from tensorkeep.errors import Unavailable
from tensorkeep.store.reports import Diff, GcReport, TensorChange, TensorStats, Version
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_store import (
    BENCH,
    DAMAGE,
    DEVICE,
    DRAIN_REPORT,
    FACTS,
    FORECAST,
    LEFT,
    LOAD_REPORT,
    MODEL,
    NEW_ID,
    OLD_ID,
    POLICY_REPORT,
    PUSH_REPORT,
    REBALANCE_REPORT,
    REFUSED,
    REPAIR_REPORT,
    SCRUB_REPORT,
    SHORT,
    VERSION,
    problem_report,
)


def test_push_passes_every_option_on(run: Run) -> None:
    ran = run(
        *(
            "push",
            "./llama",
            MODEL,
            "--branch",
            "dev",
            "--tag",
            "v2",
            "-m",
            "note",
            "--author",
            "ada",
            "--split",
            "size",
        ),
        *(
            "--part-size",
            "16MiB",
            "--layer-pattern",
            r"stage(\d+)",
            "--replicas",
            "2",
            "--base",
            "acme/old@v1",
            "--allow-soft",
            "--allow-degraded",
            "--rehash",
        ),
    )
    assert ran.call == (
        "push",
        ("./llama", MODEL),
        {
            "branch": "dev",
            "tag": "v2",
            "message": "note",
            "author": "ada",
            "split": "size",
            "part_size": 16 * 2**20,
            "layer_pattern": r"stage(\d+)",
            "replicas": 2,
            "ec": None,
            "base": "acme/old@v1",
            "allow_soft": True,
            "allow_degraded": True,
            "rehash": True,
        },
    )
    assert ran.code == 0


def test_plan_passes_every_option_on(run: Run) -> None:
    ran = run(
        *("plan", "./llama", MODEL, "--branch", "dev", "--split", "parts=4", "--part-size", "16MiB", "--replicas", "2"),
        *("--layer-pattern", r"stage(\d+)", "--base", "acme/old@v1", "--allow-soft", "--allow-degraded", "--rehash"),
        "--exact",
    )
    assert ran.call == (
        "plan",
        ("./llama", MODEL),
        {
            "branch": "dev",
            "split": "parts=4",
            "part_size": 16 * 2**20,
            "layer_pattern": r"stage(\d+)",
            "replicas": 2,
            "base": "acme/old@v1",
            "allow_soft": True,
            "allow_degraded": True,
            "rehash": True,
            "exact": True,
        },
    )
    assert ran.code == 0


def test_plan_needs_no_model(run: Run) -> None:
    name, words, options = run("plan", "./llama").call
    assert (name, words) == ("plan", ("./llama", None))
    assert {k: v for k, v in options.items() if v} == {"branch": "main", "split": "auto"}


def test_plan_shows_the_sentence_files_with_notes_layers_and_devices(run: Run) -> None:
    ran = run("plan", "./llama", MODEL)
    for text in (
        "layer, parts of 16MiB: layers are scattered over the files",
        "125, at most 5 to write (80.0 MB, 2 packs)",
        "32, 93 % of what even loads would give, slowest layers.3 in 50 ms",
        "1.25 s, predicted",
        "unchanged",
        "it is compressed",
    ):
        assert text in ran.out
    assert ["nvme0", "3", "48.0", "MB", "1.00", "GB", "1.25", "s"] in [line.split() for line in ran.out.splitlines()]
    ran = run("plan", "./llama", plan=dataclasses.replace(FORECAST, model=None, exact=True, layers=None))
    assert "125, 5 to write" in ran.out
    assert "layers  " not in ran.out


def test_push_shows_notes_of_files(run: Run) -> None:
    assert "note     old.bin: it is compressed" in run("push", "./llama", MODEL).out


def test_push_leaves_what_was_not_said_to_the_store(run: Run) -> None:
    options = run("push", "./llama", MODEL).call[2]
    assert {k: v for k, v in options.items() if v} == {"branch": "main", "split": "auto"}


def test_push_shows_version_parts_bytes_method_time_and_devices(run: Run) -> None:
    ran = run("push", "./llama", MODEL)
    for text in (NEW_ID, MODEL, "125, 5 of them new (80.0 MB)", "160 MB on all devices", "tensor, parts of 16MiB"):
        assert text in ran.out
    assert "safetensors files of 3 tensors" in ran.out
    assert "2.00 s, 1.00 GB/s" in ran.out
    assert ["nvme0", "80.0", "MB"] in [line.split() for line in ran.out.splitlines()]
    assert ran.err == "warning: device nvme1 is nearly full\n"


def test_push_of_the_same_files_says_that_nothing_changed(run: Run) -> None:
    report = dataclasses.replace(PUSH_REPORT, created=False, new_parts=0, new_bytes=0, written_bytes=0, device_bytes={})
    ran = run("push", "./llama", MODEL, push=dataclasses.replace(VERSION, report=report))
    assert f"unchanged  {NEW_ID}" in ran.out
    assert "nothing: all is there" in ran.out
    assert "B/s" not in ran.out


def test_pull_writes_to_the_models_name_by_default(run: Run) -> None:
    ran = run("pull", "acme/llama@v1")
    options = {"format": None, "include": None, "force": False, "verify": None}
    assert ran.call == ("pull", ("acme/llama@v1", "llama"), options)
    assert "3 (2 written, 1 already there)" in ran.out


def test_pull_of_what_is_there_shows_no_rate(run: Run) -> None:
    pulled = run("pull", MODEL).doors.store.answers["pull"]
    there = dataclasses.replace(pulled, written_files=0, unchanged_files=3)
    out = run("pull", MODEL, pull=there).out
    assert "3 (0 written, 3 already there)" in out
    assert "B/s" not in out


def test_pull_passes_folder_globs_force_and_verification_on(run: Run) -> None:
    ran = run("pull", MODEL, "out", "--include", "*.json", "--include", "*.txt", "--force", "--verify", "digest")
    options = {"format": None, "include": ["*.json", "*.txt"], "force": True, "verify": "digest"}
    assert ran.call == ("pull", (MODEL, "out"), options)


def test_pull_in_another_format_says_what_was_converted_and_warns_of_what_was_not(run: Run) -> None:
    pulled = run("pull", MODEL).doors.store.answers["pull"]
    assert "converted" not in run("pull", MODEL).out
    converted = dataclasses.replace(pulled, converted_files=2, warnings=("'x.bin' comes as it is",))
    ran = run("pull", MODEL, "out", "--format", "safetensors", pull=converted)
    assert ran.call[2]["format"] == "safetensors"
    assert ["converted", "2", "files"] in [line.split() for line in ran.out.splitlines()]
    assert ran.err == "warning: 'x.bin' comes as it is\n"
    assert run("pull", MODEL, "--format", "gguf").code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--to", "safetensors", MODEL, "out.safetensors"),
        (MODEL, "--to", "safetensors", "out.safetensors"),
        (MODEL, "out.safetensors", "--to", "safetensors"),
    ],
    ids=["before", "between", "after"],
)
def test_load_to_a_file_shows_the_file_the_ties_and_the_devices(run: Run, words: tuple[str, ...]) -> None:
    ran = run("load", *words, "--include", "w*", "--verify", "off", "--force")
    assert ran.call == ("save", ("out.safetensors",), {"include": ["w*"], "force": True, "verify": "off"})
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["nvme0", "1.00", "GB", "1.25", "s", "800", "MB/s", "1.00", "s"] in rows
    assert ["ties", "1", "name", "of", "tensors", "that", "have", "another"] in rows
    assert "out.safetensors, 2.00 GB" in ran.out
    assert f"{MODEL} ({NEW_ID[:12]}): 2 tensors, 2.00 GB" in ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("out.safetensors",), "--to safetensors"),
        (("--to", "safetensors"), "--to safetensors"),
        (("out.safetensors", "--to", "safetensors", "--framework", "torch"), "leave one of them out"),
    ],
    ids=["no format", "no file", "arrays too"],
)
def test_a_file_and_its_format_go_together(run: Run, words: tuple[str, ...], message: str) -> None:
    ran = run("load", MODEL, *words)
    assert ran.code == 2
    assert message in ran.err


def test_load_shows_the_time_of_each_device_and_the_slowest(run: Run) -> None:
    ran = run("load", "acme/llama@v2", "--include", "w*", "--framework", "torch", "--verify", "off")
    options = {"framework": "torch", "include": ["w*"], "shard": None, "verify": "off"}
    assert ran.call == ("load", ("acme/llama@v2",), options)
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["nvme0", "1.00", "GB", "1.25", "s", "800", "MB/s", "1.00", "s"] in rows
    assert ["max", "L_i", "1.25", "s"] in rows
    assert "2 tensors, 2.00 GB" in ran.out
    assert ran.err == ""


def test_load_holds_the_prediction_beside_what_it_took(run: Run) -> None:
    rows = [line.split() for line in run("load", MODEL, "--report").out.splitlines()]
    assert ["nvme1", "1.00", "GB", "500", "ms", "2.00", "GB/s", "600", "ms"] in rows
    at = rows.index(["max", "L_i", "1.25", "s"])
    assert rows[at + 1] == ["predicted", "1.00", "s"]


def test_load_says_what_was_retried_damaged_mapped_and_why_not(run: Run) -> None:
    report = dataclasses.replace(
        LOAD_REPORT,
        retried=3,
        damaged=(DAMAGE, dataclasses.replace(DAMAGE, location=8), dataclasses.replace(DAMAGE, kind="missing")),
        mapped_bytes=1_500_000_000,
        unmapped_bytes={"elsewhere": 400_000_000, "misaligned": 100_000_000},
    )
    rows = [line.split(maxsplit=1) for line in run("load", MODEL, load=report).out.splitlines()]
    assert ["retried", "3 reads"] in rows
    assert ["damaged", "nvme1: 2 copies corrupt; nvme1: 1 copy missing"] in rows
    assert ["mapped", "1.50 GB"] in rows
    assert ["not", "mapped  400 MB elsewhere; 100 MB misaligned"] in rows
    short = run("load", MODEL, "--no-report", load=report).out
    assert "mapped" not in short
    assert "mapped" not in run("load", MODEL).out  # nothing to say of it


SHARD_WORDS = (
    *("--tensor-parallel", "1/8", "--rule", "*.c_fc.weight=-1", "--rule", "*=x*=whole", "--no-preset", "--fsdp", "0/2"),
    *("--layers", "4-7", "--no-outside-layers", "--experts", "0,2,5-7"),
)
SHARD = Shard(
    tensor_parallel=(1, 8),
    rules={"*.c_fc.weight": -1, "*=x*": None},
    preset=False,
    fsdp=(0, 2),
    layers=range(4, 8),
    outside_layers=False,
    experts=[0, 2, 5, 6, 7],
)


def test_load_and_its_plan_pass_the_shard_on(run: Run) -> None:
    loaded = run("load", MODEL, *SHARD_WORDS)
    assert loaded.call[2] == {"framework": "numpy", "include": None, "shard": SHARD, "verify": None}
    planned = run("load", MODEL, *SHARD_WORDS, "--plan", "--include", "h.*", "--verify", "digest")
    assert planned.call == ("plan_load", (), {"include": ["h.*"], "shard": SHARD, "verify": "digest"})
    assert run("load", MODEL, "--layers", "3", "--plan").call[2]["shard"] == Shard(layers=range(3, 4))
    assert run("load", MODEL, "--plan").call[2]["shard"] is None


def test_a_prefetch_passes_its_options_on_and_says_what_is_where(run: Run) -> None:
    ran = run("prefetch", MODEL, *SHARD_WORDS, "--include", "h.*")
    assert {name: ran.call[2][name] for name in ("include", "shard")} == {"include": ["h.*"], "shard": SHARD}
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["cached", MODEL, f"({NEW_ID[:12]}):", "1.50", "GB"] in rows
    assert ["local", "500", "MB", "on", "disks", "of", "this", "machine"] in rows
    assert "7.00 MB did not get into the cache" in ran.err
    assert run("prefetch", MODEL).call[2]["shard"] is None


def test_a_plan_shows_what_is_needed_what_is_read_and_the_slowest_device(run: Run) -> None:
    ran = run("load", MODEL, "--plan", "--fsdp", "1/2")
    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["nvme0", "516", "MB", "250", "ms"] in rows
    assert ["nvme1", "500", "MB", "750", "ms"] in rows
    assert f"{MODEL} ({NEW_ID[:12]}): 2 tensors, 1 of them cut" in ran.out
    assert "1.00 GB (1,000,000,000 bytes)" in ran.out
    assert "1.02 GB (1.016 of what is needed), verify=blocks" in ran.out
    assert ["max", "L_i", "750", "ms,", "predicted"] in rows
    assert "nvme0" not in run("load", MODEL, "--plan", "--no-report").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tensor-parallel", "8"), "--tensor-parallel '8': write the rank and how many there are, as 0/8"),
        (("--tensor-parallel", "8/8"), "ranks go from 0"),
        (("--fsdp", "-1/8"), "--fsdp '-1/8'"),
        (("--layers", "7-4"), "--layers '7-4'"),
        (("--layers", "a"), "as 0-7"),
        (("--experts", "0,,1"), "--experts ''"),
        (("--rule", "*=0"), "tensor_parallel"),
        (("--tensor-parallel", "0/2", "--rule", "*.w"), "--rule '*.w'"),
        (("--tensor-parallel", "0/2", "--rule", "*.w=all"), "or =whole"),
        (("out.safetensors", "--to", "safetensors", "--fsdp", "0/2"), "--to writes whole tensors"),
        (("out.safetensors", "--to", "safetensors", "--plan"), "--to writes whole tensors"),
    ],
    ids=str,
)
def test_shards_that_make_no_sense_are_refused(run: Run, words: tuple[str, ...], message: str) -> None:
    ran = run("load", MODEL, *words)
    assert ran.code == 2
    assert message in ran.err
    assert not ran.doors.store.calls


def test_load_without_report_leaves_the_table_of_devices_out(run: Run) -> None:
    ran = run("load", MODEL, "--no-report")
    assert "nvme0" not in ran.out
    assert "max L_i" in ran.out


@pytest.mark.parametrize("command", ["load", "pull"])
def test_damage_is_a_warning_for_each_device_and_exit_code_0(run: Run, command: str) -> None:
    damaged = (DAMAGE, dataclasses.replace(DAMAGE, location=8), dataclasses.replace(DAMAGE, device_name="nvme2"))
    report = dataclasses.replace(LOAD_REPORT, damaged=damaged)
    pulled = run("pull", MODEL).doors.store.answers["pull"]
    ran = run(command, MODEL, load=report, pull=dataclasses.replace(pulled, load=report))
    assert ran.code == 0
    warnings = ran.err.splitlines()
    assert len(warnings) == 2
    assert warnings[0].startswith("warning: device nvme1: block 2 does not fit its check and 1 more;")
    assert warnings[1].startswith("warning: device nvme2: block 2 does not fit its check;")


def test_the_warning_of_a_device_out_of_reach_says_how_to_give_it_up(run: Run) -> None:
    absent = dataclasses.replace(DAMAGE, kind="unreachable", reason="can't be reached", confirmed=False)
    ran = run("load", MODEL, load=dataclasses.replace(LOAD_REPORT, damaged=(absent,)))
    assert ran.code == 0
    assert "Bring it back, or give it up with `tensorkeep device lost nvme1`" in ran.err


def test_ls_lists_models_and_says_what_to_do_without_any(run: Run) -> None:
    assert MODEL in run("ls").out
    assert "tensorkeep push PATH MODEL" in run("ls", models=[]).out


def test_ls_of_a_model_lists_its_versions_newest_first(run: Run) -> None:
    lines = run("ls", MODEL).out.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", NEW_ID[:12], OLD_ID[:12]]


def test_show_sums_tensors_by_dtype_and_lists_them_on_request(run: Run) -> None:
    short = run("show", MODEL).out
    rows = [line.split() for line in short.splitlines()]
    assert ["BF16", "2", "2,048", "4.10", "kB"] in rows
    assert "parameters  2.05 thousand (2,049); 1 tied, counted once" in short
    assert "32, 64" not in short
    assert "LAYER" not in short
    long = run("show", MODEL, "--tensors", "--files").out
    assert "[32, 64]" in long
    assert "abababababab" in long


def test_show_lists_metadata_by_the_start_and_the_length_of_what_is_long(run: Run) -> None:
    ran = run("show", MODEL, "--metadata")
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in ran.out.splitlines() if line}
    assert rows["KEY"].split() == ["TYPE", "VALUE"]
    assert rows["general.name"].split() == ["text", "tiny\\x1b[31m\\nllama"]
    assert '[151,936 items] "token 0", "token 1", "token 2", ' in rows["tokenizer.ggml.tokens"]
    assert rows["tokenizer.ggml.tokens"].startswith("list of text")
    assert rows["tokenizer.ggml.tokens"].endswith("…")
    assert rows["tokenizer.chat_template"].endswith("xxx… (4,321 characters)")
    assert rows["llama.block_count"].split() == ["int", "36"]
    assert rows["llama.attention.layer_norm_rms_epsilon"].split() == ["float", "1e-05"]
    assert rows["tokenizer.ggml.add_bos_token"].split() == ["bool", "true"]
    assert rows["nested"].endswith("[2 items] [2 items] 1, 2, [0 items]")


def test_numbers_of_double_precision_are_shown_in_full() -> None:
    numbers = {"large": 1e300, "long": 1.23456789012345, "single": float(np.float32(0.1)), "none": float("nan")}
    shown = {key: value for key, _, value in metadata_table({"m.gguf": numbers}).rows}
    assert shown == {"large": "1e+300", "long": "1.23456789012345", "single": "0.1", "none": "nan"}


def test_show_names_the_files_of_metadata_where_there_are_several(run: Run) -> None:
    several = {"a.safetensors": {"format": "pt"}, "b.safetensors": {}, "c.safetensors": {"format": "pt"}}
    rows = [line.split() for line in run("show", MODEL, "--metadata", metadata=several).out.splitlines()]
    assert rows[-3:] == [
        ["FILE", "KEY", "TYPE", "VALUE"],
        ["a.safetensors", "format", "text", "pt"],
        ["c.safetensors", "format", "text", "pt"],
    ]
    assert run("show", MODEL, "--metadata", metadata={}).out.endswith("no metadata\n")


def test_show_reads_metadata_only_when_asked(run: Run) -> None:
    plain = run("show", MODEL, "--json")
    assert "metadata" not in plain.document
    assert not any(name == "metadata" for name, _, _ in plain.doors.store.calls)
    asked = run("show", MODEL, "--json", "--metadata").document["metadata"]["model.gguf"]
    assert len(asked["tokenizer.ggml.tokens"]) == 151_936
    assert asked["general.name"] == "tiny\x1b[31m\nllama"


def test_show_sums_tensors_by_layer(run: Run) -> None:
    rows = [line.split() for line in run("show", MODEL, "--layers").out.splitlines()]
    assert rows[-2:] == [["h.0", "1", "2,048", "4.10", "kB"], ["(no", "layer)", "2", "1", "4", "B"]]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--dtype", "bf16"), ["h.0.w", "tied.w"]),
        (("--dtype", "F*"), ["b"]),
        (("--dtype", "F32", "--dtype", "BF16"), ["b", "h.0.w", "tied.w"]),
        (("--name", "*w"), ["h.0.w", "tied.w"]),
        (("--shape", "*x64"), ["h.0.w", "tied.w"]),
        (("--shape", "scalar"), ["b"]),
        (("--layer", "0"), ["h.0.w"]),
        (("--min-size", "4kB"), ["h.0.w", "tied.w"]),
        (("--max-size", "4"), ["b"]),
        (("--min-size", "4kB", "--name", "h.*"), ["h.0.w"]),
        (("--dtype", "I8"), []),
        (("--sort", "size"), ["h.0.w", "tied.w", "b"]),
    ],
)
def test_show_lists_the_tensors_that_fit_alone_in_tables_and_json(
    run: Run, words: tuple[str, ...], names: list[str]
) -> None:
    ran = run("show", MODEL, *words)
    assert ran.code == 0
    listed = [line.split()[0] for line in ran.out.splitlines() if "model.safetensors" in line]
    assert listed == names
    if "--sort" not in words:
        assert f"\n{len(names)} of 3 tensors; parameters: " in ran.out
    if not names:
        assert ran.out.endswith("no tensor fits\n")
    document = run("show", MODEL, *words, "--json").document
    assert [tensor["name"] for tensor in document["tensors"]] == names
    assert (document["tensors_in_all"], document["summary"]["tensors"]) == (3, len(names))


@pytest.mark.parametrize("words", [("--shape", "4096,64"), ("--min-size", "big"), ("--sort", "age")])
def test_a_filter_that_makes_no_sense_is_refused_before_the_store_is_opened(run: Run, words: tuple[str, ...]) -> None:
    ran = run("show", MODEL, *words)
    assert ran.code == 2
    assert ran.doors.locations == []


def test_device_bench_asks_for_each_device_with_the_options(run: Run) -> None:
    ran = run("device", "bench", "nvme0", "hdd0")
    options = {"size": 256 * 2**20, "save": None}
    assert ran.doors.store.calls == [
        ("devices.bench", ("nvme0",), options),
        ("devices.bench", ("hdd0",), options),
    ]
    assert run("device", "bench", "nvme0", "--size", "1GB", "--save").call[2] == {"size": 10**9, "save": True}
    assert run("device", "bench", "nvme0", "--no-save").call[2]["save"] is False
    assert run("device", "bench").code == 2
    refused = run("device", "bench", "nvme0", "--size", "big")
    assert (refused.code, refused.doors.locations) == (2, [])


def test_device_bench_shows_rates_latency_readers_and_what_became_of_them(run: Run) -> None:
    def row(**changes: Any) -> list[str]:
        out = run("device", "bench", "nvme0", devices__bench=dataclasses.replace(BENCH, **changes)).out
        (line,) = [line for line in out.splitlines() if line.startswith("nvme0")]
        return [cell for cell in re.split(" {2,}", line.strip()) if cell]

    measured = ["nvme0", "900 MB/s", "0.09 ms", "1.50 GB/s", "2.50 GB/s", "2"]
    assert row() == [*measured, "2.50 GB/s", "saved"]
    given = row(saved=False, given=True, bandwidth=3_000_000_000)
    assert given == [*measured, "3.00 GB/s", "the given bandwidth stays: --save replaces it"]
    assert row(saved=False, bandwidth=None, rate_limit=200_000_000) == [*measured, "limited to 200 MB/s"]


def test_device_bench_shows_what_it_measured_before_a_device_failed(run: Run) -> None:
    answers: dict[str, Any] = {
        "devices__bench": BENCH,
        "devices__bench hdd0": Unavailable("hdd0 does not answer"),
    }
    ran = run("device", "bench", "nvme0", "hdd0", "s3", **answers)
    assert ran.code == 7
    assert "900 MB/s" in ran.out
    assert ran.err == "error: hdd0 does not answer\n"
    assert [args for _, args, _ in ran.doors.store.calls] == [("nvme0",), ("hdd0",)]
    alone = run("device", "bench", "hdd0", **answers)
    assert (alone.code, alone.out) == (7, "")


def test_device_ls_in_full_shows_what_a_bench_found(run: Run) -> None:
    assert FACTS.conformance
    found = msgspec.structs.replace(FACTS.conformance, best_rate=2_500_000_000, best_readers=8)
    status = dataclasses.replace(DEVICE, facts=msgspec.structs.replace(FACTS, conformance=found))
    assert "2.50 GB/s with 8 readers" in run("device", "ls", "-v", devices__list=[status]).out
    assert "readers" not in run("device", "ls", "-v").out


def test_log_names_removed_versions(run: Run) -> None:
    lines = run("log", MODEL).out.splitlines()
    assert "second weights" in lines[1]
    assert OLD_ID[:12] in lines[2]
    assert "(removed)" in lines[2]


def test_diff_shows_changes_and_counts_and_exits_with_0(run: Run) -> None:
    ran = run("diff", f"{MODEL}@v1", f"{MODEL}@v2")
    assert ran.call == ("diff", (f"{MODEL}@v1", f"{MODEL}@v2"), {"stats": False, "include": None})
    assert "v -> w" in ran.out
    assert "files: 1 changed; tensors: 1 changed, 1 renamed" in ran.out
    assert "MAX CHANGE" not in ran.out
    assert ran.code == 0


def test_diff_with_stats_shows_how_far_values_moved_and_what_was_left_out(run: Run) -> None:
    ran = run("diff", MODEL, MODEL, "--stats", "--include", "x*", "--include", "w")
    assert ran.call[2] == {"stats": True, "include": ["x*", "w"]}
    assert "MAX CHANGE  L2 OF CHANGE  CHANGED  NOTE" in ran.out
    (changed,) = [line for line in ran.out.splitlines() if line.startswith("~  x")]
    assert changed.split("  ")[-1].strip() == (
        "BF16 and F32 compared as float64; 1 element NaN or infinite, left out of the first two"
    )
    assert changed.split("16 B")[1].split()[:4] == ["0.25", "0.25", "25.00", "%"]


@pytest.mark.parametrize(
    ("changed", "compared", "shown"),
    [(0, 7, "0 %"), (7, 7, "100 %"), (1, 10**6, "< 0.01 %"), (10**6 - 1, 10**6, "> 99.99 %"), (0, 0, "-")],
)
def test_a_share_is_0_or_100_percent_only_of_none_or_all(run: Run, changed: int, compared: int, shown: str) -> None:
    stats = TensorStats("elements", compared, changed, None if not compared else 10**12, None, 0, "why")
    change = TensorChange("changed", "x", "I64", (7,), "I64", (7,), 56, stats=stats)
    ran = run("diff", MODEL, MODEL, "--stats", diff=Diff(OLD_ID, NEW_ID, (), (change,)))
    (line,) = [line for line in ran.out.splitlines() if line.startswith("~  x")]
    cells = line.split("56 B")[1].split()
    assert cells == ["1e+12" if compared else "-", "-", *shown.split(), "why"]


def test_diff_of_equal_versions_says_so(run: Run) -> None:
    assert run("diff", MODEL, MODEL, diff=Diff(NEW_ID, NEW_ID, (), ())).out == "no differences\n"


def test_tag_sets_lists_and_deletes(run: Run) -> None:
    assert run("tag", MODEL, "v2").call == ("tag", (MODEL, "v2", "main"), {})
    assert run("tag", MODEL, "v2", "v1").call == ("tag", (MODEL, "v2", "v1"), {})
    assert run("tag", MODEL, "v2", "--delete").call == ("delete_tag", (MODEL, "v2"), {})
    assert [line.split()[0] for line in run("tag", MODEL).out.splitlines()] == ["TAG", "v1", "v2"]


def test_branch_moves_lists_and_deletes(run: Run) -> None:
    assert run("branch", MODEL, "prod", "--to", "v1").call == ("branch", (MODEL, "prod"), {"to": "v1"})
    assert run("branch", MODEL, "prod").call == ("branch", (MODEL, "prod"), {"to": "main"})
    assert run("branch", MODEL, "prod", "--delete").call == ("delete_branch", (MODEL, "prod"), {})
    assert [line.split()[0] for line in run("branch", MODEL).out.splitlines()] == ["BRANCH", "main"]


@pytest.mark.parametrize(
    "words",
    [
        ("tag", MODEL, "--delete"),
        ("tag", MODEL, "v1", "main", "--delete"),
        ("branch", MODEL, "--to", "v1"),
        ("branch", MODEL, "--delete"),
        ("branch", MODEL, "prod", "--to", "v1", "--delete"),
        ("rm", MODEL),
        ("rm", f"{MODEL}@v1", "--all", "--yes"),
        ("init", "a", "--store", "b"),
    ],
)
def test_words_that_contradict_each_other_are_refused_before_the_store_is_opened(
    run: Run, words: tuple[str, ...]
) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert ran.doors.locations == []


def test_rm_removes_one_version_without_asking(run: Run) -> None:
    ran = run("rm", f"{MODEL}@v1")
    assert ran.call == ("rm", (f"{MODEL}@v1",), {})
    assert f"removed {MODEL}@{OLD_ID[:12]}" in ran.out


@pytest.mark.parametrize("words", [("rm", MODEL, "--all"), ("device", "lost", "nvme0")])
def test_what_can_not_be_undone_is_refused_without_a_terminal_unless_yes(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert "add --yes" in ran.err
    assert ran.doors.store.calls == []
    ran = run(*words, "--yes")
    assert ran.code == 0
    assert ran.call[0] in {"rm_model", "devices.lost"}


@pytest.mark.parametrize(
    ("answer", "removed"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
@pytest.mark.parametrize("words", [("rm", MODEL, "--all"), ("device", "lost", "nvme0")])
def test_a_terminal_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], answer: str, removed: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: answer)
    ran = run(*words)
    assert "[y/N]" in ran.err
    assert bool(ran.doors.store.calls) is removed
    assert ran.code == (0 if removed else 1)


def test_verify_exits_with_0_when_all_is_good_and_with_6_when_not(run: Run) -> None:
    good = run("verify", MODEL)
    assert good.call == ("verify", (MODEL,), {})
    assert (good.code, "all good" in good.out) == (0, True)
    bad = run("verify", verify=problem_report())
    assert bad.code == 6
    assert "LOST: no good copy; digest differs" in bad.out
    assert "1 problem found" in bad.out


def test_gc_reads_the_grace_with_its_unit(run: Run) -> None:
    ran = run("gc", "--dry-run", "--grace", "90m", gc=GcReport(True, 4, 400, 3, 300, 1, 100, 2, ("hdd0",)))
    assert ran.call == ("gc", (), {"dry_run": True, "grace_s": 5400.0, "max_fraction": 0.5})
    assert "would be deleted" in ran.out
    assert "device hdd0 could not be reached" in ran.err
    assert run("gc").call == ("gc", (), {"dry_run": False, "grace_s": 86400.0, "max_fraction": 0.5})
    assert run("gc", "--max-fraction", "0.2").call[2]["max_fraction"] == 0.2
    assert run("gc", "--yes").call[2]["max_fraction"] is None


def test_policy_lists_what_models_owe_and_changes_it(run: Run) -> None:
    listed = run("policy")
    assert listed.call == ("policies", (), {})
    assert "replicas=1 (the store's)" in listed.out
    assert "2 of ec=4+2, 1 of replicas=2" in listed.out
    assert run("policy", "none/such").code == 3
    changed = run("policy", MODEL, "--ec", "4+2", "--rate-limit", "2MB/s")
    words = {"replicas": None, "ec": "4+2", "dry_run": False, "rate_limit": 2_000_000}
    assert (changed.code, changed.call) == (0, ("set_policy", (MODEL,), words))
    assert "replicas=2 → ec=4+2" in changed.out
    failing = dataclasses.replace(POLICY_REPORT, failed=("part ab: no room",))
    assert run("policy", MODEL, "--replicas", "1", set_policy=failing).code == 8
    assert run("policy", MODEL, "--dry-run").code == 2


def test_scrub_names_what_is_wrong_and_exits_with_6_then(run: Run) -> None:
    good = run("scrub", "--deep", "--device", "nvme0", "--rate-limit", "2MB/s", "--restart")
    words = {"deep": True, "devices": ["nvme0"], "rate_limit": 2_000_000, "restart": True}
    assert (good.code, good.call) == (0, ("scrub", (), words))
    assert "all good" in good.out
    [device] = SCRUB_REPORT.devices
    bad = run(
        "scrub",
        scrub=dataclasses.replace(
            SCRUB_REPORT, devices=(dataclasses.replace(device, problems=problem_report().problems),)
        ),
    )
    assert bad.code == 6
    assert "digest differs" in bad.out


def test_repair_says_what_is_lost_and_exits_with_8_then(run: Run) -> None:
    good = run("repair", "--without", "hdd0", "--rate-limit", "1GB/s")
    assert (good.code, good.call[2]) == (0, {"without": ["hdd0"], "dry_run": False, "rate_limit": 1_000_000_000})
    bad = run("repair", repair=dataclasses.replace(REPAIR_REPORT, left=(SHORT, LEFT), unreachable=("hdd0",)))
    assert bad.code == 8
    lost, short = [line for line in bad.out.splitlines() if line.startswith("part ")]
    assert "LOST" in lost
    assert "1 of 2" in short
    assert "2 objects short of copies, 1 of them LOST" in bad.out
    assert "device hdd0 can't be reached: its copies count as there" in bad.err


def test_rebalance_shows_what_each_device_holds(run: Run) -> None:
    ran = run("rebalance", "--dry-run")
    assert ran.call == ("rebalance", (), {"dry_run": True, "rate_limit": None})
    assert "25% of all" in ran.out
    assert run("rebalance", rebalance=dataclasses.replace(REBALANCE_REPORT, failed=("part ab: no room",))).code == 8


def test_drain_says_how_far_the_device_is(run: Run) -> None:
    ran = run("device", "drain", "nvme0", "--grace", "2h")
    assert ran.call == ("devices.drain", ("nvme0",), {"grace_s": 7200.0, "rate_limit": None})
    assert "empty: it can be removed" in ran.out
    for words, said in (
        ({"waiting": 3}, "run it again after the grace"),
        ({"waiting": 3, "reachable": False}, "it can't be reached"),
        ({"held": 3}, "gc frees what no version uses"),
        ({"held": 3, "left": (SHORT,)}, "copies that could not be made elsewhere"),
    ):
        other = run("device", "drain", "nvme0", **{"devices.drain": dataclasses.replace(DRAIN_REPORT, **words)})
        assert said in other.out
        assert other.code == (8 if "left" in words else 0)
    assert run("device", "drain", "nvme0", "--cancel").call == ("devices.undrain", ("nvme0",), {})
    assert run("device", "remove", "nvme0").call == ("devices.remove", ("nvme0",), {})


def test_du_shows_versions_devices_and_sums(run: Run) -> None:
    ran = run("du", MODEL)
    assert ran.call == ("du", (MODEL,), {})
    assert [MODEL, OLD_ID[:12], "10", "B", "9", "B", "8", "B", "1", "B"] in [
        line.split() for line in ran.out.splitlines()
    ]
    assert "36 B" in ran.out


def test_status_names_what_is_wrong_and_exits_with_0(run: Run) -> None:
    ran = run("status")
    assert ran.code == 0
    assert "needs attention" in ran.out
    line = next(line for line in ran.out.splitlines() if line.startswith("hdd0"))
    for text in ("DOWN", "its folder is empty", "2 damaged", "journal 4 behind", "soft"):
        assert text in line
    assert ran.err == "warning: device hdd0 does not answer\n"


def test_device_add_reads_sizes_and_rates_with_units(run: Run) -> None:
    ran = run(
        *(
            "device",
            "add",
            "nvme0",
            "file:///mnt/nvme0",
            "--zone",
            "rack1",
            "--capacity",
            "2TB",
            "--bandwidth",
            "3GB/s",
        ),
        *("--rate-limit", "200MB/s", "--untrusted"),
    )
    options = {
        "zone": "rack1",
        "capacity": 2 * 10**12,
        "bandwidth": 3 * 10**9,
        "rate_limit": 2 * 10**8,
        "untrusted": True,
    }
    assert ran.call == ("devices.add", ("nvme0", "file:///mnt/nvme0"), options)
    assert "3.00 GB/s" in ran.out


@pytest.mark.parametrize("text", ["disk0", "./disk0"])
def test_a_folder_given_as_a_device_is_made_absolute(run: Run, text: str) -> None:
    folder = str(Path.cwd() / "disk0")
    assert run("device", "add", "disk0", text).call[1] == ("disk0", folder)
    assert run("rebuild-catalog", "--from", text, "--from", "memory://x").doors.options["sources"] == [
        folder,
        "memory://x",
    ]


def test_device_ls_shows_urls_only_when_asked(run: Run) -> None:
    assert "file:///mnt/nvme0" not in run("device", "ls").out
    assert "file:///mnt/nvme0" in run("device", "ls", "-v").out


def test_device_ls_shows_what_checks_found_when_asked(run: Run) -> None:
    assert "ext4" not in run("device", "ls").out
    shown = run("device", "ls", "-v").out
    for text in (
        "2026-01-02T03:04:05Z, short form: accepted",
        "ext4",
        "exact",
        "read 0.09 ms (p99 0.20 ms), durable write 1.90 ms",
    ):
        assert text in shown


def test_a_device_that_its_last_check_refused_is_marked_so(run: Run) -> None:
    refused = dataclasses.replace(DEVICE, facts=msgspec.structs.replace(FACTS, conformance=REFUSED.conformance))
    ran = run("device", "ls", devices__list=[refused])
    assert "refused by its last check (http_ranges: it ignores ranges)" in ran.out


def test_device_check_shows_every_probe_and_exits_with_0_where_all_is_well(run: Run) -> None:
    ran = run("device", "check", "nvme0")
    assert ran.code == 0
    assert ran.call == ("devices.check", ("nvme0",), {})
    for text in ("files and folders can be synced", "not applicable", "may be a device, durable", "file:///mnt/nvme0"):
        assert text in ran.out


def test_device_check_of_a_refused_place_says_why_and_exits_with_the_code_of_the_first_failure(run: Run) -> None:
    ran = run("device", "check", "s3://weights", devices__check=REFUSED)
    assert ran.code == 2
    assert "REFUSED: http_ranges: it ignores ranges" in ran.out
    ran = run("device", "check", "s3://weights", "--json", devices__check=REFUSED)
    assert (ran.code, ran.document["ok"]) == (2, False)


def test_a_folder_to_check_is_made_absolute_and_a_name_is_not(run: Run) -> None:
    assert run("device", "check", "./disk0").call[1] == (str(Path.cwd() / "disk0"),)
    assert run("device", "check", "disk0").call[1] == ("disk0",)


def test_init_takes_its_place_and_policy(run: Run) -> None:
    ran = run("init", "./store", "--replicas", "2")
    assert ran.doors.locations == ["./store"]
    assert ran.doors.options == {"replicas": 2, "ec": None}
    assert "replicas=2" in ran.out


def test_rebuild_catalog_takes_devices_and_warns_of_what_was_not_found(run: Run) -> None:
    ran = run("rebuild-catalog", "--from", "file:///a", "--from", "file:///b", "--force", "--store", "/s")
    assert ran.doors.locations == ["/s"]
    assert ran.doors.options == {"sources": ["file:///a", "file:///b"], "force": True}
    assert "1 model, 2 versions, 3 branches and tags" in ran.out
    assert "no device had a manifest of version 99e0d1c" in ran.err
    assert "device hdd0 could not be read" in ran.err


def test_the_store_is_closed_after_a_command(run: Run) -> None:
    assert run("ls").doors.store.closed


def test_control_characters_in_names_do_not_reach_the_terminal(run: Run) -> None:
    version = Version(
        **{f.name: getattr(VERSION, f.name) for f in dataclasses.fields(VERSION) if f.name != "message"},
        message="\x1b[31mred\u202e",
    )
    ran = run("push", "x", MODEL, push=dataclasses.replace(version, model="a\x1b]0;b", report=PUSH_REPORT))
    assert "\x1b" not in ran.out
    assert "\\x1b]0;b" in ran.out


def test_split_and_join_pass_every_option_on_and_open_no_store(run: Run) -> None:
    ran = run("split", "model.bin", "--parts", "2", "--to", "/mnt/a", "--to", "/mnt/b", "--force")
    assert ran.call == ("split_file", ("model.bin",), {"parts": 2, "to": ["/mnt/a", "/mnt/b"], "force": True})
    assert ran.doors.locations == []
    ran = run("join", "model.bin.parts.json", "again.bin", "--from", "/mnt/c", "--force")
    assert ran.call == ("join_file", ("model.bin.parts.json", "again.bin"), {"sources": ["/mnt/c"], "force": True})
    assert ran.doors.locations == []


def test_split_and_join_leave_what_was_not_said_to_the_defaults(run: Run) -> None:
    assert run("split", "m", "--parts", "1").call[2] == {"parts": 1, "to": None, "force": False}
    assert run("join", "m.parts.json").call[1:] == (("m.parts.json", None), {"sources": None, "force": False})


def test_split_shows_the_index_its_copies_and_every_part(run: Run) -> None:
    ran = run("split", "model.bin", "--parts", "2")
    for text in ("2.00 MB, into 2 parts", "/data/model.bin.parts.json", "/mnt/a/model.bin.parts.json", "45" * 32):
        assert text in ran.out
    assert ["2", "1.00", "MB", "efefefefefef", "/mnt/b/model.bin.part-2-of-2"] in [
        line.split() for line in ran.out.splitlines()
    ]
    assert "500 ms, 4.00 MB/s" in ran.out


def test_join_shows_what_it_made_and_warns_of_copies_that_it_passed_over(run: Run) -> None:
    ran = run("join", "model.bin.parts.json")
    assert "/data/again.bin, 2.00 MB, from 2 parts" in ran.out
    assert ran.err.startswith("warning: part 2 is damaged")
    assert ran.code == 0


def test_retain_shows_what_stays_and_changes_it(run: Run) -> None:
    shown = run("retain", MODEL)
    assert shown.call == ("retention", (MODEL,), {})
    assert "last=3" in shown.out
    assert "1 version of 2" in shown.out
    changed = run("retain", MODEL, "--last", "3", "--days", "30", "--protect", "v*", "--dry-run")
    words = {"last": 3, "days": 30, "protect": ["v*"], "dry_run": True}
    assert (changed.code, changed.call) == (0, ("retain", (MODEL,), words))
    assert "every version → last=3 days=30" in changed.out
    assert run("retain", MODEL, "--all").call[2]["last"] is None
    assert run("retain", MODEL, "--all", "--days", "3").code == 2
    assert "1 removed by retention" in run("gc").out
