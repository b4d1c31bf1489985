"""Parameters in all, by dtype and by layer; tied tensors count once."""

from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.store.parameters import count_parameters
from tensorkeep.store.reports import DtypeSummary, LayerSummary, ParameterSummary, TensorInfo


def tensor(name: str, dtype: str, shape: tuple[int, ...], size: int, start: int, file: str = "f") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape, size_bytes=size, file=file, start=start, digest="")


def test_parameters_are_counted_in_all_by_dtype_and_by_layer() -> None:
    summary = count_parameters(
        [
            tensor("embed.w", "F32", (10, 4), 160, 0),
            tensor("h.10.w", "GGUF:Q4_K", (2, 256), 288, 160),
            tensor("h.2.w", "F32", (4,), 16, 448),
            tensor("h.2.b", "F32", (), 4, 464),
            tensor("lm_head.w", "F32", (10, 4), 160, 0),
        ]
    )
    assert summary == ParameterSummary(
        tensors=5,
        tied=1,
        parameters=40 + 512 + 4 + 1,
        bytes=160 + 288 + 16 + 4,
        dtypes=(DtypeSummary("F32", 4, 45, 180), DtypeSummary("GGUF:Q4_K", 1, 512, 288)),
        layers=(
            LayerSummary("h.2", 2, 5, 20),
            LayerSummary("h.10", 1, 512, 288),
            LayerSummary(None, 2, 40, 160),
        ),
    )


def test_only_the_same_bytes_of_the_same_file_are_tied() -> None:
    same = tensor("a", "F32", (4,), 16, 0)
    others = [
        tensor("b", "F32", (4,), 16, 0, "g"),
        tensor("c", "F32", (4,), 16, 8),
        tensor("d", "F32", (2,), 8, 0),
        tensor("e", "F32", (0,), 0, 0),
        tensor("e2", "F32", (0, 3), 0, 0),
    ]
    assert count_parameters([same, *others]).tied == 0
    assert count_parameters([same, tensor("t", "F32", (2, 2), 16, 0)]).tied == 1


PLACES = st.tuples(st.sampled_from("fg"), st.integers(0, 2), st.integers(0, 3))
NAMES = st.sampled_from(["h.0.w", "h.1.w", "g.0", "w", "x"])
ROWS = st.lists(st.tuples(NAMES, PLACES, st.sampled_from(["F32", "BF16"])), max_size=12)


@given(rows=ROWS)
def test_every_group_sums_up_to_the_whole_and_each_range_counts_once(
    rows: list[tuple[str, tuple[str, int, int], str]],
) -> None:
    tensors = [tensor(name, dtype, (size,), size, start, file) for name, (file, start, size), dtype in rows]
    summary = count_parameters(tensors)
    ranges = {place for _, place, _ in rows}
    assert summary.parameters == summary.bytes == sum(size for _, _, size in ranges)
    assert summary.tensors == len(rows)
    assert summary.tied == len([row for row in rows if row[1][2]]) - len([place for place in ranges if place[2]])
    for groups in (summary.dtypes, summary.layers):
        assert sum(group.tensors for group in groups) == summary.tensors
        assert sum(group.parameters for group in groups) == summary.parameters
        assert sum(group.bytes for group in groups) == summary.bytes


def test_nothing_has_no_parameters() -> None:
    assert count_parameters([]) == ParameterSummary(0, 0, 0, 0, (), ())
