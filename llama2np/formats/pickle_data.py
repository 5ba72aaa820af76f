"""Pickles as data: dictionaries, numbers, strings, and where tensors are. Nothing is executed.

A pickle is a program for a small stack machine. This machine has the instructions that
torch.save writes. It imports nothing and calls nothing that a pickle names: it has its own code for
the names that weights need, and any other object becomes a Placeholder without contents. Names that
attacks use (inert.py) are rejected nevertheless.
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from dataclasses import dataclass
from typing import Any

from llama2np.formats.inert import Name, is_data
from llama2np.output import brief

_STORAGES = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Double": "float64",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
    }.items()
}
_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_WITH_STATE = ("torch._utils", "_rebuild_parameter_with_state")
_FROM_TYPE = ("torch._tensor", "_rebuild_from_type_v2")  # a tensor that has attributes
_ORDERED = ("collections", "OrderedDict")
_DICTIONARIES = (_ORDERED, ("collections", "defaultdict"))
_ENCODE = ("_codecs", "encode")  # how Python 3 writes bytes that Python 2 could read
_DTYPE = ("numpy", "dtype")
_SCALARS = [(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")]
_NUMBERS = dict(zip("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split(), "?bhiqBHIQefd", strict=True))
_LONGEST_NUMBER = 16  # bytes: more are no number, and may be shared any number of times
_MARK = object()
_MAX_REMEMBERED = 2**20  # a network has some thousands of tensors
_MAX_DIMENSIONS = 32  # the limit of older NumPy; weights have one or two

_PUSHED_AS_THEY_ARE = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 "
    "BYTEARRAY8 STRING BINSTRING SHORT_BINSTRING".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
    """A pickle that holds more than weights, or is damaged."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """An object that weights do not need, without its contents."""

    kind: Name  # its class, or the function that would have made it

    def __repr__(self) -> str:
        return f"a {self.kind.module}.{self.kind.name}"


@dataclass(slots=True)
class _Dtype:
    """NumPy's type of a number, as a format character of the module struct."""

    letter: str
    order: str = "<"


@dataclass(frozen=True, slots=True)
class Storage:
    """The persistent id of a storage: a file in the zip archive, with `size` values."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where a tensor is: it starts at value `offset` of `storage`; strides count values, too."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_ERRORS = (
    *(ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error),
)
_TENSORS = (Name("torch", "Tensor"), Name("torch.nn.parameter", "Parameter"))
_SET = Placeholder(Name("builtins", "set"))


def load(data: bytes) -> Any:
    """Return the object in a pickle. Raises PickleError, which names what is rejected."""
    machine = _Machine()
    try:
        with warnings.catch_warnings():  # about invalid escapes in strings
            warnings.simplefilter("ignore")
            for instruction, argument, _ in pickletools.genops(data):
                if instruction.name == "STOP":
                    return machine.stack.pop()
                machine.step(instruction.name, argument)
    except PickleError:
        raise
    except _ERRORS as error:
        raise PickleError(f"damaged pickle: {error}") from None
    raise PickleError("damaged pickle: it has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> None:
        """Execute one instruction. Each part of the instruction set is tried in turn."""
        if instruction in ("PROTO", "FRAME"):
            return
        if not (
            self._push(instruction, argument)
            or self._collect(instruction)
            or self._refer(instruction, argument)
        ):
            raise PickleError(f"instruction {instruction} is refused: weights do not need it")

    def _push(self, instruction: str, argument: Any) -> bool:
        push = self.stack.append
        if instruction in _PUSHED_AS_THEY_ARE:
            push(argument)
        elif instruction in _CONSTANTS:
            push(_CONSTANTS[instruction])
        elif instruction == "MARK":
            push(_MARK)
        elif instruction == "EMPTY_DICT":
            push({})
        elif instruction == "EMPTY_LIST":
            push([])
        elif instruction == "EMPTY_SET":
            push(_SET)
        elif instruction in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._remember(argument)
        elif instruction == "MEMOIZE":
            self._remember(len(self.memo))
        elif instruction in ("BINGET", "LONG_BINGET", "GET"):
            push(self.memo[argument])
        else:
            return False
        return True

    def _remember(self, number: int) -> None:
        if number >= _MAX_REMEMBERED:
            raise PickleError(f"it remembers more than {_MAX_REMEMBERED:,} objects")
        self.memo[number] = self.stack[-1]

    def _collect(self, instruction: str) -> bool:
        """Instructions that put values of the stack into tuples, lists and dictionaries."""
        pop = self.stack.pop
        if instruction in _TUPLES:
            count = _TUPLES[instruction]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif instruction == "TUPLE":
            self.stack.append(tuple(self._from_mark()))
        elif instruction in ("LIST", "DICT", "FROZENSET"):
            values = self._from_mark()
            self.stack.append({"LIST": [], "DICT": {}, "FROZENSET": _SET}[instruction])
            self._fill({"LIST": list, "DICT": dict}.get(instruction, Placeholder), values)
        elif instruction == "APPEND":
            value = pop()
            self._fill(list, [value])
        elif instruction == "APPENDS":
            self._fill(list, self._from_mark())
        elif instruction == "SETITEM":
            value, key = pop(), pop()
            self._fill(dict, [key, value])
        elif instruction == "SETITEMS":
            self._fill(dict, self._from_mark())
        elif instruction == "ADDITEMS":
            self._from_mark()
            self._target(Placeholder)
        else:
            return False
        return True

    def _fill(self, kind: type, values: list[Any]) -> None:
        """Put `values` into the list or the dictionary on the stack, but not into a Placeholder."""
        target = self._target(kind, Placeholder)
        if type(target) is list:
            target.extend(values)
        elif type(target) is dict:
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if _is_key(key))

    def _refer(self, instruction: str, argument: Any) -> bool:
        """Instructions that would import, call or change objects."""
        pop, push = self.stack.pop, self.stack.append
        if instruction == "GLOBAL":
            push(_known(*argument.split(" ", 1)))
        elif instruction == "STACK_GLOBAL":
            name, module = pop(), pop()
            push(_known(module, name))
        elif instruction == "INST":
            _known(*argument.split(" ", 1))
            return False
        elif instruction == "REDUCE":
            arguments, function = pop(), pop()
            push(_rebuilt(function, arguments))
        elif instruction in ("NEWOBJ", "NEWOBJ_EX"):
            del self.stack[-1 if instruction == "NEWOBJ" else -2 :]  # the arguments
            push(_made(pop()))
        elif instruction == "BUILD":  # the metadata of a state_dict, or the attributes of an object
            state = pop()
            target = self._target(dict, Placeholder, TensorRecord, _Dtype)
            if isinstance(target, _Dtype):
                target.order = ">" if state[1] == ">" else "<"
        elif instruction == "BINPERSID":
            push(_storage(pop()))
        else:
            return False
        return True

    def _from_mark(self) -> list[Any]:
        """Remove the last mark and the values above it from the stack; return the values."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _target(self, *kinds: type) -> Any:
        """The object on top of the stack, which an instruction is about to fill."""
        target = self.stack[-1]
        if type(target) not in kinds:
            raise PickleError(
                f"damaged pickle: {type(target).__name__} where {kinds[0].__name__} was"
            )
        return target


def _is_key(key: Any) -> bool:
    """Whether a key is kept: a string, or a small number as in the state of an optimizer.

    Other keys of a dictionary are skipped with their values. Hashing nested tuples can overflow the
    C stack, or never end. Any number of large integers, or of floats, can have the same hash, and a
    dictionary of n such keys takes O(n²) time.
    """
    return isinstance(key, str) or isinstance(key, int) and 0 <= key < 2**32


def _known(module: Any, name: Any) -> Name:
    if type(module) is not str or type(name) is not str:
        raise PickleError("damaged pickle: a name that is not a string")
    if not is_data(module, name):
        raise PickleError(
            f"its pickle names {module}.{name}, which weights do not need: refused, no code was run"
        )
    return Name(module, name)


def _rebuilt(function: Any, arguments: tuple[Any, ...]) -> Any:
    """The result that a call of `function` would have, for functions that are known here."""
    if not isinstance(function, Name | Placeholder) or not isinstance(arguments, tuple):
        raise PickleError(f"damaged pickle: it calls a {type(function).__name__}")
    if isinstance(function, Placeholder):
        return function
    name = (function.module, function.name)
    if name in _STORAGES or (name == _ORDERED and arguments):  # a copy could be a bomb
        raise PickleError(
            f"its pickle calls {function.module}.{function.name} with other arguments than "
            "torch.save: refused"
        )
    if name in (_PARAMETER, _WITH_STATE):
        return arguments[0]
    if name == _REBUILD:
        return _tensor(*arguments[:4])
    first = arguments[0] if arguments else None
    if name == _FROM_TYPE and first == Name(*_REBUILD) and arguments[1] in _TENSORS:
        return _tensor(*arguments[2][:4])
    if name == _DTYPE and isinstance(first, str) and first in _NUMBERS:
        return _Dtype(_NUMBERS[first])
    if name == _ENCODE and isinstance(first, str) and len(first) <= _LONGEST_NUMBER:
        return first.encode("latin-1")
    if name in _SCALARS and (number := _number(*arguments)) is not None:
        return number
    return _made(function)


def _made(kind: Any) -> Any:
    """An object of a class: an empty dictionary, which is filled later, or a Placeholder."""
    if not isinstance(kind, Name | Placeholder):
        raise PickleError(f"damaged pickle: an object of a {type(kind).__name__}")
    if isinstance(kind, Placeholder):
        return kind
    return {} if (kind.module, kind.name) in _DICTIONARIES else Placeholder(kind)


def _number(dtype: Any, data: Any) -> bool | int | float | None:
    """The Python number of a NumPy number; None if it is something else, such as a date."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        return None
    number: bool | int | float = struct.unpack(dtype.order + dtype.letter, data)[0]
    return number


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRecord:
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise PickleError("damaged pickle: a tensor without a storage, or without strides")
    if len(shape) > _MAX_DIMENSIONS:  # one list may serve any number of tensors
        raise PickleError(f"a tensor claims {len(shape):,} dimensions")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        claims = f"offset {brief(offset)}, shape {brief(shape)}, strides {brief(strides)}"
        raise PickleError(f"a tensor claims {claims}")
    return TensorRecord(storage, offset, tuple(shape), tuple(strides))


def _storage(persistent_id: Any) -> Storage:
    kind, name, key, _device, size = persistent_id
    dtype = None
    if isinstance(name, Name):  # a type that weights cannot have; other tensors may have it
        dtype = _STORAGES.get((name.module, name.name), f"{name.module}.{name.name}")
    if kind != "storage" or dtype is None or type(key) is not str or type(size) is not int:
        raise PickleError("damaged pickle: a reference to something that is not a storage")
    return Storage(dtype, key, size)
