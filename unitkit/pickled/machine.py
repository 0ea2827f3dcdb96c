"""The stack machine that pickles are written for, over inert values: a name stays a name, a call goes by a table.

What a hostile file may cost is bounded: operations by MAX_OPERATIONS, copies by the size of the file, dictionary keys
to scalars and short tuples of them, whose hashes are cheap.
"""

import mmap
import pickletools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_OPERATIONS = 5_000_000
MAX_KEY, MAX_KEY_BITS, MAX_KEY_TEXT = 16, 64, 4096
FREE_BYTES, BYTES_PER_BYTE = 1 << 26, 16  # what reading may copy: so much, and so much per byte of the file
POINTER = 8
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

Buffer = bytes | mmap.mmap


class PickledError(ValueError):
    """A pickle that asks for more than data, or is damaged."""


class RefusedError(PickledError):
    """A pickle that names something that is neither data nor a known container."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"it asks for {name}, which is refused: reading must run no code. If you trust the file, open it with the "
            "program that wrote it and save its arrays alone (numpy.save, or torch.save of a dict of tensors)"
        )


@dataclass(frozen=True)
class Name:
    """A global that a pickle names, "module.name"; it is never imported."""

    text: str


@dataclass(eq=False, repr=False)
class Record:
    """An object as its pickle describes it: class name, arguments, state, and what was appended or set."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The name alone: what is inside may be large, or hold itself."""
        return f"<Record {self.name}>"

    @property
    def fields(self) -> dict[str, Any]:
        """The attributes, slots included; empty where the state is no dictionary."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}


class Source:
    """Bytes read front to back, as pickletools wants them, and arrays over them without a copy."""

    def __init__(self, data: Buffer, at: int = 0) -> None:
        self.data, self.at = data, at

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end."""
        piece = self.data[self.at : self.at + size] if size >= 0 else b""
        self.at += len(piece)
        return piece

    def readline(self) -> bytes:
        """Up to and with the next newline."""
        end = self.data.find(b"\n", self.at) + 1
        return self.read((end or len(self.data)) - self.at)

    def array(self, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """The next `count` numbers, read-only; raises ValueError where there are fewer."""
        if count < 0 or count * dtype.itemsize > len(self.data) - self.at:
            raise PickledError(f"it says that {count} numbers of {dtype} follow, but it ends before")
        if not count or not dtype.itemsize:
            return np.zeros(count if dtype.itemsize else 0, dtype)
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found


class Budget:
    """Operations and bytes that reading one file may still cost."""

    def __init__(self, size: int) -> None:
        self.operations, self.bytes = MAX_OPERATIONS, FREE_BYTES + BYTES_PER_BYTE * size

    def step(self) -> None:
        """Pay for one operation."""
        self.operations -= 1
        if self.operations < 0:
            raise PickledError(f"it has more than {MAX_OPERATIONS:,} operations, which no checkpoint needs")

    def copy(self, size: int) -> None:
        """Pay for a copy of `size` bytes."""
        self.bytes -= size
        if self.bytes < 0:
            raise PickledError("what it unpacks to is far larger than the file itself")


Call = Callable[["Machine", tuple[Any, ...]], Any]
Build = Callable[["Machine", Any, Any], Any]
Load = Callable[[Any], Any]


class Machine:
    """One run over one pickle.

    `find` turns a global's name into a value or refuses it, `call` makes the value of a call or refuses it, `build`
    gives an object its state and returns what stands for it from then on, and `load` resolves a persistent id.
    """

    def __init__(
        self,
        source: Source,
        budget: Budget,
        *,
        find: Callable[[str, str], Any],
        call: Callable[["Machine", Any, tuple[Any, ...]], Any],
        build: Build,
        load: Load,
        depth: int = 0,
    ) -> None:
        self.source, self.budget, self.depth = source, budget, depth
        self.find, self.call, self.build, self.load = find, call, build, load
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.fresh: dict[int, Any] = {}  # arrays by id that still wait for their state

    def run(self) -> Any:
        """The value of the pickle; the source then stands behind its STOP."""
        while True:
            self.budget.step()
            name, argument = self._next()
            if name == "STOP":
                return self.stack.pop()
            if name in VALUES:
                self.stack.append(argument)
            elif name in NEW:
                self.stack.append(NEW[name]())
            elif name in STEPS:
                STEPS[name](self, argument)
            else:
                raise RefusedError(f"the pickle operation {name}")

    def nested(self) -> Any:
        """The value of another pickle that follows here."""
        if self.depth > 4:
            raise PickledError("it holds pickles within pickles within pickles")
        find, call, build, load = self.find, self.call, self.build, self.load
        inner = Machine(self.source, self.budget, find=find, call=call, build=build, load=load, depth=self.depth + 1)
        return inner.run()

    def _next(self) -> tuple[str, Any]:
        code = self.source.read(1)
        if not code:
            raise PickledError("it ends in the middle of a pickle")
        opcode = OPCODES.get(code)
        if opcode is None:
            raise PickledError(f"byte {code!r} at {self.source.at - 1} is no pickle operation")
        reader = opcode.arg.reader if opcode.arg is not None else None
        stream: Any = self.source  # has what readers use of a file: read and readline
        return opcode.name, reader(stream) if reader is not None else None

    def marked(self) -> list[Any]:
        """What was pushed since the last MARK."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def taken(self, count: int) -> tuple[Any, ...]:
        """The `count` topmost values, taken off."""
        if count > len(self.stack):
            raise PickledError("it takes more from the stack than is there")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items


def checked_key(key: Any) -> Any:
    """A dictionary key whose hash is cheap to take; anything else is refused."""
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) > MAX_KEY:
        raise PickledError(f"a dictionary key is a tuple of {len(parts)}; known: up to {MAX_KEY}")
    for part in parts:
        if isinstance(part, int) and part.bit_length() > MAX_KEY_BITS:
            raise PickledError(f"a dictionary key is an integer of over {MAX_KEY_BITS} bits")
        if isinstance(part, str | bytes) and len(part) > MAX_KEY_TEXT:
            raise PickledError(f"a dictionary key has {len(part)} characters; known: up to {MAX_KEY_TEXT}")
        if not isinstance(part, str | bytes | int | float | complex | Record | Name | np.number | np.bool | None):
            raise PickledError(f"a dictionary key or set member is a {type(part).__name__}; known: scalars and strings")
    return key


def add_items(target: Any, items: Sequence[Any]) -> None:
    """Append to a list, or to the items of a record."""
    target = target.items if isinstance(target, Record) else target
    if not isinstance(target, list):
        raise PickledError(f"it appends to a {type(target).__name__}")
    target.extend(items)


def add_pairs(target: Any, flat: Sequence[Any]) -> None:
    """Set keys and values that follow one another in `flat`, in a dictionary or a record."""
    target = target.pairs if isinstance(target, Record) else target
    if not isinstance(target, dict):
        raise PickledError(f"it sets items of a {type(target).__name__}")
    if len(flat) % 2:
        raise PickledError("a key without a value")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        target[checked_key(key)] = value


def _add_members(target: Any, items: Sequence[Any]) -> None:
    if not isinstance(target, set):
        raise PickledError(f"it adds members to a {type(target).__name__}")
    target.update(checked_key(item) for item in items)


def _protocol(machine: Machine, version: int) -> None:
    if version > 5:
        raise PickledError(f"pickle protocol {version} is not known; known: 0 to 5")


def _mark(machine: Machine, _: None) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine, _: None) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _pop_mark(machine: Machine, _: None) -> None:
    machine.marked()


def _dup(machine: Machine, _: None) -> None:
    machine.stack.append(machine.stack[-1])


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _memoize(machine: Machine, _: None) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _tuple(count: int | None) -> Callable[[Machine, None], None]:
    def step(machine: Machine, _: None) -> None:
        items = tuple(machine.marked()) if count is None else machine.taken(count)
        machine.stack.append(items)

    return step


def _list(machine: Machine, _: None) -> None:
    items = machine.marked()
    machine.stack.append(items)


def _dict(machine: Machine, _: None) -> None:
    items, made = machine.marked(), dict[Any, Any]()
    add_pairs(made, items)
    machine.stack.append(made)


def _frozenset(machine: Machine, _: None) -> None:
    items = machine.marked()
    machine.stack.append(frozenset(checked_key(item) for item in items))


def _append(machine: Machine, _: None) -> None:
    items = machine.taken(1)
    add_items(machine.stack[-1], items)


def _appends(machine: Machine, _: None) -> None:
    items = machine.marked()
    add_items(machine.stack[-1], items)


def _setitem(machine: Machine, _: None) -> None:
    items = machine.taken(2)
    add_pairs(machine.stack[-1], items)


def _setitems(machine: Machine, _: None) -> None:
    items = machine.marked()
    add_pairs(machine.stack[-1], items)


def _additems(machine: Machine, _: None) -> None:
    items = machine.marked()
    _add_members(machine.stack[-1], items)


def _global(machine: Machine, text: str) -> None:
    module, _, name = text.partition(" ")
    machine.stack.append(machine.find(module, name))


def _stack_global(machine: Machine, _: None) -> None:
    module, name = machine.taken(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickledError("a global's name is not text")
    machine.stack.append(machine.find(module, name))


def _called(machine: Machine, target: Any, args: Any) -> None:
    if not isinstance(args, tuple):
        raise PickledError("the arguments of a call are no tuple")
    machine.stack.append(machine.call(machine, target, args))


def _reduce(machine: Machine, _: None) -> None:
    _called(machine, *machine.taken(2))


def _newobj_ex(machine: Machine, _: None) -> None:
    target, args, named = machine.taken(3)
    if named != {}:
        raise PickledError("an object is made with named arguments, which are not read")
    _called(machine, target, args)


def _obj(machine: Machine, _: None) -> None:
    target, *args = machine.marked()
    _called(machine, target, tuple(args))


def _inst(machine: Machine, text: str) -> None:
    args = tuple(machine.marked())
    module, _, name = text.partition(" ")
    _called(machine, machine.find(module, name), args)


def _build(machine: Machine, _: None) -> None:
    target, state = machine.taken(2)
    machine.stack.append(machine.build(machine, target, state))


def _persistent(machine: Machine, text: str) -> None:
    machine.stack.append(machine.load(text))


def _binary_persistent(machine: Machine, _: None) -> None:
    machine.stack.append(machine.load(*machine.taken(1)))


def _nothing(machine: Machine, _: Any) -> None:
    pass


VALUES = {  # operations that push their argument
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "FLOAT",
    "BINFLOAT",
}
NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": _nothing,
    "READONLY_BUFFER": _nothing,
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _dup,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "TUPLE": _tuple(None),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": _list,
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "ADDITEMS": _additems,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": _build,
    "PERSID": _persistent,
    "BINPERSID": _binary_persistent,
}
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError, struct.error)
