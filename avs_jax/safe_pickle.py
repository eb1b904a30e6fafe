"""Reading a pickle as data: a small machine that can build values but has no way to import or call anything."""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from avs_jax.errors import InputError

# Opcodes that push the value pickletools decodes for them.
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}  # sets become lists
_COLLECT = {"LIST": list, "TUPLE": tuple, "FROZENSET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALARS = (str, bytes, int, float, type(None))
_MARK = object()
_ENTRY = 64  # bytes, about, of an entry of a container that a call copies


@dataclasses.dataclass
class Budget:
    """How much the pickles of one file may still ask for, those nested within it included.

    A few bytes of pickle can name one long string a million times as an argument; what functions are given is
    therefore counted, and may come to a small multiple of the file.

    Attributes:
      opcodes: steps; each costs about 2 us and at most a hundred bytes.
      given: bytes in the arguments of calls. `of_file` allows for a file in which every tensor is a nested file.
    """

    opcodes: int = 1 << 22
    given: int = 1 << 26

    @classmethod
    def of_file(cls, size: int) -> "Budget":
        return cls(given=cls.given + 2 * size)

    def step(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise ValueError(f"more than {Budget.opcodes} steps in a pickle")

    def give(self, args: tuple) -> None:
        for value in args:
            if isinstance(value, (str, bytes)):
                self.given -= len(value)
            elif isinstance(value, (list, tuple, dict)):
                self.given -= _ENTRY * len(value)
        if self.given < 0:
            raise ValueError("calls whose arguments are many times as large as the file")


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that the pickle mentions, as its dotted name and nothing more."""

    text: str


@dataclasses.dataclass
class Bag:
    """An object we have no use for (an argument namespace, a NumPy scalar): its name, arguments and state, inert."""

    name: str
    args: tuple = ()
    state: Any = None


def load(
    stream: BinaryIO,
    where: object,
    *,
    makers: Mapping[str, Callable] | None = None,
    names: frozenset[str] = frozenset(),
    persistent: Callable[[Any], Any] | None = None,
    budget: Budget | None = None,
) -> Any:
    """Reads one pickle of any protocol from `stream`, up to its end marker.

    Numbers, strings, bytes, None, lists, tuples and dicts come back as themselves, sets as lists. Everything else must
    be listed by the caller; the first other name stops the reading. No name is ever looked up or imported. Time and
    memory stay within a fixed multiple of the bytes read. What comes back may nest deeper than Python's recursion goes
    and hold one value in many places: print or compare parts of it only by `shown`.

    Args:
      stream: binary, with `read`, `readline` and `tell`, whose `read(n)` does not allocate more than it holds.
      where: the file, for errors.
      makers: dotted name -> our own function that stands in for it, called with the pickled arguments. It raises
        ValueError or TypeError when they make no sense.
      names: further names that may be mentioned but not called; they come back as `Name`.
      persistent: makes the value of a persistent id (torch's reference to a storage).
      budget: shared by the pickles of one file.
    Raises:
      InputError: the pickle names something not listed, uses another opcode, is damaged, or asks for too much.
    """
    machine = _Machine(where, makers or {}, names, persistent, budget or Budget())
    try:
        return machine.run(stream)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, RecursionError) as error:
        raise InputError(where, expected="an undamaged pickle", found=f"{error or type(error).__name__}") from None


def shown(value: Any) -> str:
    """A value that a pickle made, for a message: containers, which may be endless when printed, by their type alone."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    return repr(value) if isinstance(value, _SCALARS) else f"a {type(value).__name__}"


class _Machine:
    """The stack, the memo, and one method for each family of opcodes."""

    def __init__(self, where, makers, names, persistent, budget):
        self.where, self.makers, self.names, self.persistent = where, makers, names, persistent
        self.budget = budget
        self.stack: list = []
        self.memo: dict[int, Any] = {}

    def run(self, stream):
        for opcode, arg, _ in pickletools.genops(stream):
            op = opcode.name
            self.budget.step()
            if op in _VALUES:
                self.stack.append(arg)
            elif op in _CONSTANTS:
                self.stack.append(_CONSTANTS[op])
            elif op in _EMPTY:
                self.stack.append(_EMPTY[op]())
            elif op == "STOP":
                return self.stack.pop()
            elif op not in ("PROTO", "FRAME"):
                self.step(op, arg)
        raise ValueError("no end marker")

    def step(self, op: str, arg: Any) -> None:
        stack = self.stack
        if op == "MARK":
            stack.append(_MARK)
        elif op in _COLLECT:
            stack.append(_COLLECT[op](self.pop_to_mark()))
        elif op in _TUPLES:
            n = _TUPLES[op]
            items = tuple(stack[-n:])
            if len(items) < n or any(item is _MARK for item in items):
                raise ValueError("a tuple of more than there is")
            stack[-n:] = [items]
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif op in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if op == "APPEND" else self.pop_to_mark()
            self.container(list).extend(items)
        elif op in ("SETITEM", "SETITEMS", "DICT"):
            self.set_items(op)
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            self.pop_to_mark()
        elif op == "DUP":
            stack.append(stack[-1])
        else:
            self.make(op, arg)

    def make(self, op: str, arg: Any) -> None:
        """Opcodes with which a pickle names and calls things."""
        stack = self.stack
        if op == "GLOBAL":
            stack.append(self.name(arg.replace(" ", ".")))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise ValueError("a name that is no text")
            stack.append(self.name(f"{module}.{name}"))
        elif op in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            keywords = stack.pop() if op == "NEWOBJ_EX" else {}
            args, name = stack.pop(), stack.pop()
            if not isinstance(name, Name) or name.text not in self.makers or not isinstance(args, tuple) or keywords:
                self.refuse(f"a call of {name.text if isinstance(name, Name) else type(name).__name__}")
            self.budget.give(args)
            stack.append(self.makers[name.text](*args))
        elif op == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, Bag):
                target.state = state
            elif isinstance(target, (Name, *_SCALARS)):
                self.refuse(f"attributes set on {target.text if isinstance(target, Name) else shown(target)}")
            # Attributes set on a dict or a tensor (a state dict's `_metadata`) carry nothing we need.
        elif op == "BINPERSID" and self.persistent:
            stack.append(self.persistent(stack.pop()))
        else:
            self.refuse(f"the pickle opcode {op}")

    def name(self, text: str) -> Name:
        if text not in self.makers and text not in self.names:
            self.refuse(text)
        return Name(text)

    def refuse(self, what: str):
        raise InputError(
            self.where,
            expected="numbers, strings, containers and tensors only",
            found=f"a pickle that asks for {what}",
            hint="Nothing in it was executed. If you trust its origin, save its plain tensors again.",
        )

    def pop_to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def container(self, kind: type):
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"items for a {kind.__name__} given to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def set_items(self, op: str) -> None:
        pairs = self.pop_to_mark() if op != "SETITEM" else [self.stack.pop(), self.stack.pop()][::-1]
        if op == "DICT":
            self.stack.append({})
        target = self.container(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            parts = key if isinstance(key, tuple) else (key,)
            flat = len(parts) <= 16 and all(isinstance(part, _SCALARS) for part in parts)
            if not flat and not isinstance(key, Name):  # hashing a deep tuple could exhaust the C stack
                raise ValueError(f"a {type(key).__name__} as the key of a dict")
            target[key] = value
