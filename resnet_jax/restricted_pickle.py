"""The pickles inside PyTorch files, read as data.

A pickle is a program for a stack machine, and Python's own machine runs whatever functions it
names. The machine here has no means to import or call anything: it builds lists, dicts, tuples and
descriptions of tensors, and refuses a file that asks for more.
"""

import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "Float": np.dtype("float32"),
    "Half": np.dtype("float16"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Double": np.dtype("float64"),
    "Long": np.dtype("int64"),
    "Int": np.dtype("int32"),
    "Short": np.dtype("int16"),
    "Char": np.dtype("int8"),
    "Byte": np.dtype("uint8"),
    "Bool": np.dtype("bool"),
}


class Refused(Exception):
    """A pickle that asks for more than tensors; the message says for what."""


class Damaged(Exception):
    """A pickle that can't be read; the message says why."""


class Storage(NamedTuple):
    """A run of numbers that tensors are views of.

    Attributes:
      key: its name in the file.
      dtype: type of the numbers.
      size: how many they are.
      start: index of the first one that belongs to the storage; not 0 only in very old files.
    """

    key: str
    dtype: np.dtype
    size: int
    start: int


class Tensor(NamedTuple):
    """A tensor as a pickle describes it; shape, offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    """What stands on the stack for a function or class that the pickle names."""

    name: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    whole_numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise Damaged("it describes a tensor wrongly")
    if any(type(number) is not int or number < 0 for number in whole_numbers):
        raise Damaged("a tensor's shape or strides are no whole numbers")
    return Tensor(storage, storage.start + offset, tuple(shape), tuple(strides))


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    built: dict[Any, Any] = {}
    for key, value in pairs:
        _set(built, key, value)
    return built


def _nothing(*_: Any) -> None:
    """Stands for harmless objects beside the tensors, such as a NumPy number."""


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": tuple,
    "torch.device": _nothing,
    "argparse.Namespace": _nothing,
    "numpy.dtype": _nothing,
    "numpy.core.multiarray.scalar": _nothing,
    "numpy._core.multiarray.scalar": _nothing,
    "_codecs.encode": _nothing,
}
_STORAGE = re.compile(r"torch\.(\w+)Storage")
_PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_ARGUMENTS = re.compile(
    r"INT|BININT[12]?|LONG[14]?|FLOAT|BINFLOAT|(SHORT_)?(BIN)?STRING|UNICODE"
    r"|(SHORT_)?BINUNICODE8?|(SHORT_)?BINBYTES8?"
)


def load(file: Any) -> tuple[Any, dict[str, Storage]]:
    """Returns what a pickle describes, and all storages that it mentions, by key.

    Args:
      file: a binary file or memory map; it is left behind the pickle.

    Raises:
      Refused: if the pickle asks for anything but plain data and tensors.
      Damaged: if it can't be read.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop(), machine.storages
            machine.run(opcode.name, argument)
    except (ArithmeticError, AttributeError, LookupError, MemoryError) as error:
        raise Damaged(f"it is no pickle of tensors ({type(error).__name__})") from error
    except (TypeError, ValueError, struct.error) as error:
        raise Damaged(f"it is no pickle of tensors ({str(error)[:80]})") from error
    raise Damaged("it ends too early")


class _Machine:
    """The stack machine; `run` takes one opcode.

    Attributes:
      stack: values since the last mark.
      storages: all storages mentioned so far.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Takes one opcode and its argument."""
        if _ARGUMENTS.fullmatch(name):
            self.stack.append(argument)
        elif name in _PLAIN:
            self.stack.append(_PLAIN[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "MARK":
                self._outer.append(stack)
                self.stack = []
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "LIST" | "DICT" | "APPENDS" | "SETITEMS" | "ADDITEMS" | "POP_MARK":
                self._close_mark(name)
            case "APPEND":
                value = stack.pop()
                _extend(stack[-1], [value])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], key, value)
            case _:
                self._build_object(name, argument)

    def _close_mark(self, name: str) -> None:
        values, self.stack = self.stack, self._outer.pop()
        match name:
            case "TUPLE":
                self.stack.append(tuple(values))
            case "LIST":
                self.stack.append(values)
            case "DICT":
                self.stack.append(_dict(_pairs(values)))
            case "APPENDS":
                _extend(self.stack[-1], values)
            case "SETITEMS":
                for key, value in _pairs(values):
                    _set(self.stack[-1], key, value)

    def _build_object(self, name: str, argument: Any) -> None:
        match name:
            case "GLOBAL":
                self.stack.append(_known(argument.replace(" ", ".")))
            case "INST":
                raise Refused(argument.replace(" ", "."))
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                self.stack.append(_known(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.stack.pop(), self.stack.pop()
                if not isinstance(function, _Global) or function.name not in _BUILDERS:
                    raise Refused(f"a call of {function!r:.60}")
                self.stack.append(_BUILDERS[function.name](*arguments))
            case "BUILD":  # attributes, such as a state dict's versions
                self.stack.pop()
            case "BINPERSID":
                self.stack.append(self._storage(self.stack.pop()))
            case _:
                raise Refused(f"a pickle opcode {name}")

    def _storage(self, record: Any) -> Storage:
        kind, cls, key, _, size, *view = record
        start = 0
        if view and view[0] is not None:
            _, start, _ = view[0]
        found = _STORAGE.fullmatch(cls.name)
        if kind != "storage" or not found or type(size) is not int or type(start) is not int:
            raise Damaged("it describes a storage wrongly")
        if size < 0 or start < 0:
            raise Damaged("it describes a storage wrongly")
        storage = Storage(str(key), DTYPES[found[1]], size, start)
        return self.storages.setdefault(storage.key, storage)._replace(start=start)


def _known(name: str) -> _Global:
    storage = _STORAGE.fullmatch(name)
    if name in _BUILDERS or (storage and storage[1] in DTYPES) or name in _TORCH_DTYPES:
        return _Global(name)
    raise Refused(name)


_TORCH_DTYPES = frozenset(f"torch.{dtype.name}" for dtype in DTYPES.values())


def _extend(target: Any, values: list[Any]) -> None:
    if not isinstance(target, list):
        raise Damaged("it appends to what is no list")
    target.extend(values)


def _set(target: Any, key: Any, value: Any) -> None:
    # Python hashes nested tuples recursively, without a limit: none of them is a key here.
    if not isinstance(target, dict) or not isinstance(key, str | int | float | None):
        raise Damaged("it fills what is no dict of names")
    target[key] = value


def _pairs(values: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)


def dump(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Returns the pickle of a state dict whose i-th tensor is the whole of storage `i`.

    Args:
      tensors: arrays by name, each to be stored in C order.
    """
    ordered_dict = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO + b"\x02", ordered_dict, pickle.MARK]
    storages = {dtype: f"{name}Storage" for name, dtype in DTYPES.items()}
    for index, (name, array) in enumerate(tensors.items()):
        storage = [
            _text("storage"),
            _global("torch", storages[array.dtype]),
            _text(str(index)) + _text("cpu") + _integer(array.size),
        ]
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        arguments = [
            pickle.MARK + b"".join(storage) + pickle.TUPLE + pickle.BINPERSID,
            _integer(0) + _integers(array.shape) + _integers(strides),
            pickle.NEWFALSE + ordered_dict,
        ]
        parts += [_text(name), _global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        parts += [*arguments, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    encoded = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def _integers(numbers: Sequence[int]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, numbers)) + pickle.TUPLE
