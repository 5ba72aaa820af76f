"""Pickles as data: dictionaries, numbers, strings and where tensors are. Nothing in one is run.

A pickle is a program for a small stack machine. This machine has the instructions that
torch.save writes, and knows the five kinds of names that weights need; it calls no function and
makes no object of any other class, so there is nothing for a malicious file to call.
"""

from __future__ import annotations

import pickletools
import warnings
from dataclasses import dataclass
from typing import Any

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
_ORDERED = ("collections", "OrderedDict")
_NAMES = {_REBUILD, _PARAMETER, _ORDERED, *_STORAGES}
_MARK = object()
_MOST_REMEMBERED = 2**20  # a network has some thousands of tensors
_MOST_DIMENSIONS = 32  # older NumPy's limit; weights have one or two

_PUSHED_AS_THEY_ARE = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
    """A pickle that holds more than weights, or is damaged."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the pickle refers to; never what it stands for."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The persistent id of a storage: a file in the zip archive, with `size` values."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where a tensor is: from value `offset` of `storage` on, in steps of `strides` values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(data: bytes) -> Any:
    """Return what a pickle holds. Raises PickleError naming what is refused."""
    machine = _Machine()
    try:
        with warnings.catch_warnings():  # of odd escapes in strings
            warnings.simplefilter("ignore")
            for instruction, argument, _ in pickletools.genops(data):
                if instruction.name == "STOP":
                    return machine.stack.pop()
                machine.step(instruction.name, argument)
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise PickleError(f"damaged pickle: {error}") from None
    raise PickleError("damaged pickle: no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> None:
        """Do one instruction. The three parts of the instruction set are tried in turn."""
        if instruction in ("PROTO", "FRAME"):
            return
        if not (
            self._push(instruction, argument)
            or self._collect(instruction)
            or self._refer(instruction, argument)
        ):
            raise PickleError(f"instruction {instruction} is refused, weights do not need it")

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
        if number >= _MOST_REMEMBERED:
            raise PickleError(f"it remembers more than {_MOST_REMEMBERED:,} objects")
        self.memo[number] = self.stack[-1]

    def _collect(self, instruction: str) -> bool:
        """Instructions that put what is on the stack into tuples, lists and dictionaries."""
        pop = self.stack.pop
        if instruction in _TUPLES:
            count = _TUPLES[instruction]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif instruction == "TUPLE":
            self.stack.append(tuple(self._from_mark()))
        elif instruction == "APPEND":
            self._target(list, 2).append(pop())
        elif instruction == "APPENDS":
            values = self._from_mark()
            self._target(list).extend(values)
        elif instruction == "SETITEM":
            key, value = self.stack[-2:]
            self._target(dict, 3)[_key(key)] = value
            del self.stack[-2:]
        elif instruction == "SETITEMS":
            values = self._from_mark()
            keys = map(_key, values[::2])
            self._target(dict).update(zip(keys, values[1::2], strict=True))
        else:
            return False
        return True

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
        elif instruction == "BUILD":  # a state_dict's notes on its modules
            pop()
            self._target(dict)
        elif instruction == "BINPERSID":
            push(_storage(pop()))
        else:
            return False
        return True

    def _from_mark(self) -> list[Any]:
        """Take what is above the last mark, and the mark, off the stack."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _target(self, kind: type, depth: int = 1) -> Any:
        """What lies `depth` from the top, which an instruction is about to fill."""
        target = self.stack[-depth]
        if type(target) is not kind:
            raise PickleError(f"damaged pickle: {type(target).__name__} where {kind.__name__} was")
        return target


def _key(key: Any) -> str | int:
    """A key: a string, or a number as optimizers have.

    Hashing nested tuples overflows the C stack, or never ends; of large numbers, and of floats, any
    count may have one hash, and a dictionary of them takes the square of their time.
    """
    if isinstance(key, str) or isinstance(key, int) and 0 <= key < 2**32:
        return key
    raise PickleError(f"a dictionary with a {type(key).__name__} for a key is refused")


def _known(module: Any, name: Any) -> Name:
    if type(module) is not str or type(name) is not str:
        raise PickleError("damaged pickle: a name that is no string")
    if (module, name) not in _NAMES:
        raise PickleError(
            f"its pickle names {module}.{name}, which weights do not need: refused, nothing was run"
        )
    return Name(module, name)


def _rebuilt(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What calling `function` would have given, for those that are known."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise PickleError(f"damaged pickle: it calls a {type(function).__name__}")
    name = (function.module, function.name)
    if name == _ORDERED and not arguments:  # what it holds comes after; a copy could be a bomb
        return {}
    if name == _PARAMETER:
        return arguments[0]
    if name == _REBUILD:
        return _tensor(*arguments[:4])
    raise PickleError(f"its pickle calls {function.module}.{function.name} like that: refused")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRecord:
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise PickleError("damaged pickle: a tensor without a storage, or without strides")
    if len(shape) > _MOST_DIMENSIONS:  # one list may serve any number of tensors
        raise PickleError(f"a tensor claims {len(shape):,} dimensions")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        claims = f"offset {brief(offset)}, shape {brief(shape)}, strides {brief(strides)}"
        raise PickleError(f"a tensor claims {claims}")
    return TensorRecord(storage, offset, tuple(shape), tuple(strides))


def _storage(persistent_id: Any) -> Storage:
    kind, name, key, _device, size = persistent_id
    dtype = _STORAGES.get((name.module, name.name)) if isinstance(name, Name) else None
    if kind != "storage" or dtype is None or type(key) is not str or type(size) is not int:
        raise PickleError("damaged pickle: a reference to something that is no storage")
    return Storage(dtype, key, size)
