"""Scratch is used again, within its limit; images put scattered segments back in order."""

from tensorkeep.planning.read_plan import PartRead, Piece
from tensorkeep.transfer.boxes import DIRECT_BYTES
from tensorkeep.transfer.image import ScratchPool, lay_out

MIB = 1 << 20


def test_scratch_is_used_again() -> None:
    pool = ScratchPool(4 * MIB)
    buffer = pool.take(MIB)
    pool.give(buffer)
    assert pool.take(MIB // 2) is buffer
    assert pool.take(MIB // 2) is not buffer


def test_kept_scratch_makes_room_for_what_does_not_fit_it() -> None:
    pool = ScratchPool(4 * MIB)
    small = [pool.take(MIB) for _ in range(4)]
    for buffer in small:
        pool.give(buffer)
    large = pool.take(3 * MIB)
    assert pool.take(MIB) is small[-1]
    pool.give(large)
    assert pool.take(2 * MIB) is large


def test_scratch_over_the_limit_is_not_kept() -> None:
    pool = ScratchPool(MIB)
    buffer = pool.take(2 * MIB)
    pool.give(buffer)
    assert pool.take(2 * MIB) is not buffer


def test_long_pieces_lie_in_their_destination_and_all_else_in_scratch() -> None:
    memory = memoryview(bytearray(DIRECT_BYTES))
    long = Piece(0, 100, DIRECT_BYTES, 0, 0)
    short = Piece(0, 10, 20, 1, 0)
    again = Piece(0, 200, DIRECT_BYTES, 2, 0)
    end = 300 + DIRECT_BYTES
    image, copied, _ = lay_out(PartRead(0, 0, end, (short, long, again)), lambda _: memory, ScratchPool(MIB))
    assert copied == [short, again]
    views = image.views(0, end)
    assert [len(view) for view in views] == [100, DIRECT_BYTES, 200]
    views[1][5] = 9
    assert memory[5] == 9
    assert [len(view) for view in image.views(90, 110)] == [10, 10]
    assert image.views(50, 50) == []
