"""Reads dictionaries of plain values and NumPy arrays out of pickles, and executes nothing.

A pickle is a program for a stack machine whose instructions import and call anything.  This is
another such machine, with those instructions alone that plain values and arrays are written
with (`pickletools` splits the bytes, and runs nothing).  Where a pickle names a function to
call, the name is compared with the few below and one of this module's own constructors builds
the value; every other name, and every other instruction, is refused.  Python's own unpickler
with a guarded `find_class` would still call what the file says on what the file gives; here
no object of the file's choosing exists.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import DataError

_DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"}
_ARRAY, _DTYPE, _REBUILD, _FROM_BUFFER, _ENCODE, _BYTES = range(6)
_NAMES = {
    "numpy ndarray": _ARRAY,
    "numpy dtype": _DTYPE,
    "numpy.core.multiarray _reconstruct": _REBUILD,
    "numpy._core.multiarray _reconstruct": _REBUILD,
    "numpy.core.numeric _frombuffer": _FROM_BUFFER,
    "numpy._core.numeric _frombuffer": _FROM_BUFFER,
    "_codecs encode": _ENCODE,  # how protocol 2 of Python 3 writes bytes
    "__builtin__ bytes": _BYTES,  # and no bytes at all
}


def read_pickle(raw: bytes, name: str) -> dict[str, Any]:
    """The dictionary that a pickle holds, its keys as text; arrays are read-only.

    Values are None, truth values, whole numbers, floats, text (Python 2's strings as Latin-1), bytes, lists,
    tuples, dictionaries and NumPy arrays of whole numbers.  Raises DataError by `name` for anything else.
    """
    try:
        found = _Machine().run(raw)
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
        return {_text(key): _finished(value) for key, value in found.items()}
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error) as error:
        raise DataError(
            f"{name} is refused as a pickle ({error})",
            "a dictionary of plain values and arrays, and nothing to execute",
            "fetch it anew from its publisher, or take a binary version",
        ) from None


@dataclass(frozen=True)
class _Name:
    """One of the known names; only `_called` gives it a meaning."""

    which: int


@dataclass
class _Dtype:
    """A data type under construction."""

    code: str
    order: str = "="

    def set(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError("a byte order that is none")
        self.order = state[1]

    def build(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array under construction: the machine may refer to it before its content is known."""

    array: NDArray[Any] | None = None

    def set(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, _Dtype) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array whose type or shape is none")
        if not isinstance(raw, str | bytes | bytearray):
            raise ValueError("an array whose content is no bytes")
        flat = np.frombuffer(raw.encode("latin-1") if isinstance(raw, str) else bytes(raw), dtype.build())
        self.array = flat.reshape(shape, order="F" if order == "F" else "C")


def _text(key: Any) -> str:
    if not isinstance(key, str | bytes):
        raise ValueError("a key that is no text")
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _finished(value: Any) -> Any:
    """A value of the dictionary; an array that was announced has to have come."""
    if isinstance(value, _Name | _Dtype) or (isinstance(value, _Array) and value.array is None):
        raise ValueError("a value that is none")
    return value.array if isinstance(value, _Array) else value


def _called(name: Any, given: Any) -> Any:
    """What a known name makes of its arguments, by this module's own hands."""
    which = name.which if isinstance(name, _Name) else None
    if which == _REBUILD and isinstance(given[0], _Name) and given[0].which == _ARRAY:
        return _Array()
    if which == _DTYPE and given[0] in _DTYPES:
        return _Dtype(given[0])
    if which == _ENCODE and isinstance(given[0], str) and given[1] in ("latin1", "latin-1"):
        return given[0].encode("latin-1")
    if which == _BYTES and given == ():
        return b""
    if which == _FROM_BUFFER:
        made = _Array()
        made.fill(*given)
        return made
    raise ValueError("a call of something else than an array's constructors")


class _Machine:
    """The stack, the memo, and one method an instruction that is served."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, raw: bytes) -> Any:
        """Value of the pickle.  Raises ValueError and its like for what is not served."""
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name in _PUSHED:
                self.stack.append(argument)
            elif opcode.name == "STOP":
                return self.stack.pop()
            elif opcode.name in ("PROTO", "FRAME"):
                continue
            elif opcode.name in _SERVED:
                _SERVED[opcode.name](self, argument)
            else:
                raise ValueError(f"instruction {opcode.name}")
        raise ValueError("no end")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def remember(self, place: Any) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: Any) -> None:
        self.stack.append(self.memo[place])

    def name(self, text: Any) -> None:
        if text not in _NAMES:
            raise ValueError(f"it names {text[:80].replace(' ', '.')!r}")
        self.stack.append(_Name(_NAMES[text]))

    def stack_name(self, _: Any) -> None:
        second, first = self.stack.pop(), self.stack.pop()
        self.name(f"{first} {second}")

    def call(self, _: Any) -> None:
        given, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(name, given))

    def build(self, _: Any) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, _Dtype | _Array):
            raise ValueError("a state for something else than an array")
        made.set(state)

    def tuple_of(self, count: int) -> None:
        start = len(self.stack) - count
        if start < 0:
            raise ValueError("a tuple of more than there is")
        self.stack[start:] = [tuple(self.stack[start:])]

    def tuple_since_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("items for something else than a list")
        target.extend(items)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("entries for something else than a dictionary")
        target.update({_text(key): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)})

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])


# Instructions whose decoded argument is the value.
_PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip

_SERVED: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.tuple_of(0),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_since_mark,
    "MARK": _Machine.mark,
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
