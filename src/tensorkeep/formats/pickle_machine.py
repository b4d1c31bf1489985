"""Reads a pickle as data: a stack machine over its opcodes that builds records of our own and executes nothing.

A pickle is a program. What makes it dangerous is that it names functions and calls them. Here a name is looked up in a list
that the caller gives, whose entries build inert records; a name that is not on it ends the reading. Nothing is imported,
no class of the file is made, and no value is hashed or compared, so that neither their methods nor their numbers can be
turned against us. Time and memory are bounded by counts of opcodes and of objects, both of which the bytes pay for.

Known are the opcodes that ``torch.save`` writes, with protocols 2 to 5.

Source: ``pickletools.py`` of CPython 3.11; ``_weights_only_unpickler.py`` of torch 2.13.0.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pickletools import opcodes
from typing import NoReturn

from tensorkeep.errors import Format

MAX_OPCODES = 8_000_000
"""Most opcodes of a pickle: a tensor needs 32, so a quarter of a million tensors."""

MAX_OBJECTS = 2_000_000
"""Most containers that a pickle may make: a tensor needs 7. An empty list, of one byte, takes 80 bytes of memory."""

_MAX_NAME_BYTES = 256
_MAX_INTEGER_BYTES = 255

STATE = object()
"""The key, in `Pairs`, of what an object of a class holds besides its items."""


class Pairs(list[object]):
    """A dictionary: its keys and values in turn, as they were set. A list, because hostile keys can make a dict slow."""

    __slots__ = ()


class Plain(list[object]):
    """A value of another class on the list, or a set: what it was made from."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A function or class that is on the list. ``make`` returns the record of what it would return; None: never called."""

    name: str
    make: Callable[[tuple[object, ...]], object] | None = None


def read_pickle(
    data: bytes, find_global: Callable[[str, str], Known], find_persistent: Callable[[object], object]
) -> object:
    """Return what a pickle describes: None, numbers, texts, bytes, lists, tuples, `Pairs`, `Plain`, `Known` and what those make.

    Containers may hold themselves, or each other often: whoever walks them bounds the walk.

    Args:
        data: the pickle; what follows its end is left alone.
        find_global: returns the entry for (module, name), or raises Format.
        find_persistent: returns the record of a persistent id, or raises Format.

    Raises:
        Format: the pickle is broken, or needs more than is allowed; half a sentence that begins with "its pickle".
    """
    machine = _Machine(data, find_global, find_persistent)
    try:
        return machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise Format(f"its pickle is broken near byte {machine.position}") from error


class _Machine:
    """The stack, the memo, and one method for each opcode."""

    def __init__(
        self, data: bytes, find_global: Callable[[str, str], Known], find_persistent: Callable[[object], object]
    ) -> None:
        self.data = data
        self.position = 0
        self.stack: list[object] = []
        self.outer: list[list[object]] = []  # a mark puts the stack aside: nothing below it can be popped
        self.memo: dict[int, object] = {}
        self.objects = 0
        self.find_global = find_global
        self.find_persistent = find_persistent

    def run(self) -> object:
        data, handlers = self.data, _HANDLERS
        for _ in range(MAX_OPCODES):
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            handlers[code](self)
        raise Format(f"its pickle has more than {MAX_OPCODES} opcodes")

    # ------------------------------------------------------------------ what the methods share

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise IndexError
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def number4(self) -> int:
        value: int = _U32(self.data, self.position)[0]
        self.position += 4
        return value

    def count_object(self) -> None:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise Format(f"its pickle makes more than {MAX_OBJECTS} objects")

    def pop_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + _MAX_NAME_BYTES)
        if end < 0:
            raise IndexError
        text = self.data[self.position : end].decode()
        self.position = end + 1
        return text

    def target(self, kind: type[list[object]]) -> list[object]:
        found = self.stack[-1]
        if type(found) is not kind:
            raise Format(f"its pickle adds items to what takes none, near byte {self.position}")
        assert isinstance(found, list)
        return found

    # ------------------------------------------------------------------ values

    def unknown(self) -> NoReturn:
        name = _NAMES.get(self.data[self.position - 1])
        what = f"the opcode {name}" if name else f"an unknown opcode at byte {self.position - 1}"
        raise Format(f"its pickle has {what}, which torch.save does not write")

    def protocol(self) -> None:
        version = self.number(1)
        if version > 5:
            raise Format(f"its pickle has protocol {version}; known are those up to 5")

    def frame(self) -> None:
        self.take(8)  # a hint of how much to read at once

    def none(self) -> None:
        self.stack.append(None)

    def false(self) -> None:
        self.stack.append(False)

    def true(self) -> None:
        self.stack.append(True)

    def integer(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def byte(self) -> None:
        self.stack.append(self.data[self.position])
        self.position += 1

    def short(self) -> None:
        self.stack.append(self.number(2))

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(1)), "little", signed=True))

    def long4(self) -> None:
        length = self.number(4)
        if length > _MAX_INTEGER_BYTES:
            raise Format(f"its pickle has an integer of {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def float(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def text1(self) -> None:
        self.stack.append(self.take(self.number(1)).decode("utf-8", "surrogatepass"))

    def text4(self) -> None:
        self.stack.append(self.take(self.number4()).decode("utf-8", "surrogatepass"))

    def text8(self) -> None:
        self.stack.append(self.take(self.number(8)).decode("utf-8", "surrogatepass"))

    def bytes1(self) -> None:
        self.stack.append(self.take(self.number(1)))

    def bytes4(self) -> None:
        self.stack.append(self.take(self.number(4)))

    def bytes8(self) -> None:
        self.stack.append(self.take(self.number(8)))

    # ------------------------------------------------------------------ containers

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []
        self.count_object()

    def empty_list(self) -> None:
        self.count_object()
        self.stack.append([])

    def empty_dict(self) -> None:
        self.count_object()
        self.stack.append(Pairs())

    def empty_set(self) -> None:
        self.count_object()
        self.stack.append(Plain())

    def empty_tuple(self) -> None:
        self.stack.append(())

    def tuple(self) -> None:
        self.count_object()
        items = self.pop_mark()
        self.stack.append((*items,))

    def tuple1(self) -> None:
        self.count_object()
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        self.count_object()
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self) -> None:
        self.count_object()
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def frozen_set(self) -> None:
        self.count_object()
        items = self.pop_mark()
        self.stack.append(Plain(items))

    def append(self) -> None:
        item = self.stack.pop()
        self.target(list).append(item)

    def appends(self) -> None:
        items = self.pop_mark()
        self.target(list).extend(items)

    def add_items(self) -> None:
        items = self.pop_mark()
        self.target(Plain).extend(items)

    def set_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.target(Pairs).extend((key, value))

    def set_items(self) -> None:
        items = self.pop_mark()
        if len(items) % 2:
            raise IndexError
        self.target(Pairs).extend(items)

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    # ------------------------------------------------------------------ memo

    def put1(self) -> None:
        self.memo[self.data[self.position]] = self.stack[-1]
        self.position += 1

    def put4(self) -> None:
        self.memo[_U32(self.data, self.position)[0]] = self.stack[-1]  # one opcode in four
        self.position += 4

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get1(self) -> None:
        self.stack.append(self.memo[self.data[self.position]])
        self.position += 1

    def get4(self) -> None:
        self.stack.append(self.memo[self.number4()])

    # ------------------------------------------------------------------ names, and what they make

    def name(self) -> None:
        module = self.line()
        self.stack.append(self.find_global(module, self.line()))

    def name_on_stack(self) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        if type(module) is not str or type(name) is not str:
            raise IndexError
        self.stack.append(self.find_global(module, name))

    def inst(self) -> NoReturn:
        module = self.line()
        self.find_global(module, self.line())  # to name what it needs
        self.unknown()

    def reduce(self) -> None:
        self.count_object()
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Known) or function.make is None or type(arguments) is not tuple:
            what = function.name if isinstance(function, Known) else "what is no function"
            raise Format(f"its pickle calls {what} in a way that torch.save does not write")
        self.stack[-1] = function.make(arguments)

    def build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if type(made) is Pairs:
            made.extend((STATE, state))
        elif type(made) is Plain:
            made.append(state)
        else:
            raise Format(f"its pickle sets the state of what has none, near byte {self.position}")

    def persistent(self) -> None:
        self.count_object()
        self.stack.append(self.find_persistent(self.stack.pop()))


_STOP = ord(".")
_U32 = struct.Struct("<I").unpack_from
_NAMES = {ord(opcode.code): opcode.name for opcode in opcodes}

_METHODS: dict[str, Callable[[_Machine], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": _Machine.frame,
    "NONE": _Machine.none,
    "NEWFALSE": _Machine.false,
    "NEWTRUE": _Machine.true,
    "BININT": _Machine.integer,
    "BININT1": _Machine.byte,
    "BININT2": _Machine.short,
    "LONG1": _Machine.long,
    "LONG4": _Machine.long4,
    "BINFLOAT": _Machine.float,
    "SHORT_BINSTRING": _Machine.text1,
    "SHORT_BINUNICODE": _Machine.text1,
    "BINUNICODE": _Machine.text4,
    "BINUNICODE8": _Machine.text8,
    "SHORT_BINBYTES": _Machine.bytes1,
    "BINBYTES": _Machine.bytes4,
    "BINBYTES8": _Machine.bytes8,
    "BYTEARRAY8": _Machine.bytes8,
    "MARK": _Machine.mark,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_SET": _Machine.empty_set,
    "EMPTY_TUPLE": _Machine.empty_tuple,
    "TUPLE": _Machine.tuple,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "FROZENSET": _Machine.frozen_set,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,  # type: ignore[dict-item]
    "BINPUT": _Machine.put1,
    "LONG_BINPUT": _Machine.put4,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get1,
    "LONG_BINGET": _Machine.get4,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "INST": _Machine.inst,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}

_HANDLERS = [_METHODS.get(_NAMES.get(code, ""), _Machine.unknown) for code in range(256)]
