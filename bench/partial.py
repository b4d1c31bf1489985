"""Loads of a part of a model: how many bytes are read for each byte that was asked for.

Whole blocks of 256 KiB are read, because blocks are what is verified; a column slice is read as the rows that it crosses where
these are shorter than blocks. No time is measured.
"""

from collections.abc import Iterable, Iterator

from bench.figures import Figure
from bench.loading import MODEL
from bench.results import Options, Row, Table
from bench.work import get_model, new_store, remove
from tensorkeep.planning.layers import usual_role
from tensorkeep.planning.shards import Shard
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.store.model import Model
from tensorkeep.transfer.report import LoadReport

RANK, RANKS = 1, 4
ROWS = 100
LONG_BYTES = 2 << 20
"""Runs below it cost up to two blocks more, however few bytes they are."""
BY_COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
BY_ROWS = ("o_proj", "down_proj")


def partial_tables(options: Options) -> list[Table]:
    """Return the table ``partial``: one row for each kind of part, of the model and of one with many small tensors."""
    rows = []
    for name in dict.fromkeys([options.model, "moe"]):
        with new_store("partial") as store:
            store.push(get_model(name), MODEL)
            opened = store.model(MODEL)
            rows += [_row(f"{name}: {what}", report) for what, report in _reports(opened)]
    remove("partial")
    return [Table("partial", "Bytes read for a part of a model", "scripts/bench.sh run partial", rows)]


def _reports(model: Model) -> Iterable[tuple[str, LoadReport]]:
    matrices = [name for name, info in model.tensors.items() if len(info.shape) == 2]
    middle = matrices[len(matrices) // 2]
    yield "one tensor", _load(model, [middle])
    assert model[middle][:ROWS].size
    assert model.report is not None
    yield f"{ROWS} rows of a tensor", model.report
    layer = usual_role(middle).layer
    yield "one layer", _load(model, [name for name in model.tensors if usual_role(name).layer == layer])
    parallel, rank = Shard(tensor_parallel=(RANK, RANKS)), f"rank {RANK} of {RANKS}"
    yield f"tensor parallel, {rank}, what is cut by columns", _load(model, _named(model, BY_COLUMNS), parallel)
    yield f"tensor parallel, {rank}, what is cut by rows", _load(model, _named(model, BY_ROWS), parallel)
    yield f"tensor parallel, {rank}, all", _load(model, None, parallel)
    yield f"FSDP, {rank}, all", _load(model, None, Shard(fsdp=(RANK, RANKS)))


def _named(model: Model, kinds: Iterable[str]) -> list[str]:
    wanted = {f"{kind}.weight" for kind in kinds}
    return [name for name in model.tensors if ".".join(name.rsplit(".", 2)[-2:]) in wanted]


def _load(model: Model, names: list[str] | None, shard: Shard | None = None) -> LoadReport:
    model.load(include=names, shard=shard, mode="read")
    assert model.report is not None
    return model.report


def _row(name: str, report: LoadReport) -> Row:
    figures = {
        "needed_bytes": [float(report.bytes_needed)],
        "read_over_needed": [report.bytes_read / report.bytes_needed],
    }
    return Row(name, "ours", figures)


def partial_figures(name: str) -> Iterator[Figure]:
    """Yield bytes read for each byte needed, the worst rank's, as plans foresee them: tests hold loads to their plans."""
    with new_store("partial") as store:
        store.push(get_model(name), MODEL)
        model = store.model(MODEL)
        longest = max(model.tensors.values(), key=lambda info: info.size_bytes)
        assert longest.size_bytes >= 16e6
        yield _whole(model, f"one tensor of {longest.size_bytes / 1e6:.0f} MB", [longest.name])
        layer = [each for each in model.tensors if (found := usual_role(each).layer) is not None and found.number == 1]
        yield _whole(model, "one layer", layer)
        for ranks in (2, 4, 8):
            columns = [Shard(tensor_parallel=(rank, ranks)) for rank in range(ranks)]
            chunks = [Shard(fsdp=(rank, ranks)) for rank in range(ranks)]
            yield from _dim_0(model, f"FSDP of {ranks}", chunks, list(model.tensors))
            yield from _dim_0(model, f"column-parallel of {ranks}", columns, _named(model, BY_COLUMNS))
            rows = _named(model, BY_ROWS)
            size = sum(model.tensors[each].size_bytes for each in rows)
            read = max(model.plan_load(include=rows, shard=shard).bytes_read for shard in columns)
            yield Figure(f"row-parallel of {ranks}: bytes read / bytes of what is cut", read / size, 1.0, "")
    remove("partial")


def _whole(model: Model, what: str, names: list[str]) -> Figure:
    plan = model.plan_load(include=names)
    return Figure(f"{what}: bytes read / needed", plan.bytes_read / plan.bytes_needed, 1.02, "")


def _dim_0(model: Model, what: str, shards: list[Shard], names: list[str]) -> Iterator[Figure]:
    worst_all, worst_long, worst_short = 0.0, 0.0, 0.0
    for shard in shards:
        plan = model.plan_load(include=names, shard=shard)
        worst_all = max(worst_all, plan.bytes_read / plan.bytes_needed)
        long = [each.name for each in plan.tensors if each.size_bytes >= LONG_BYTES]
        plan_of_long = model.plan_load(include=long, shard=shard)
        worst_long = max(worst_long, plan_of_long.bytes_read / plan_of_long.bytes_needed)
        for run in plan.tensors:
            if 0 < run.size_bytes < LONG_BYTES:
                read = model.plan_load(include=[run.name], shard=shard).bytes_read
                worst_short = max(worst_short, (read - run.size_bytes) / BLOCK_BYTES)
    yield Figure(f"{what}, runs of 2 MiB and more: bytes read / needed", worst_long, 1.02, "")
    yield Figure(f"{what}, a run below 2 MiB alone: blocks read beyond it", worst_short, 2.0, "blocks")
    yield Figure(f"{what}, all together: bytes read / needed", worst_all, None, "")
