"""The pickles inside PyTorch files, read as descriptions of tensors; nothing of PyTorch is run."""

import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from resnet_jax import restricted_pickle
from resnet_jax.restricted_pickle import Damaged, Ignored

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
_MAX_AXES = 64


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


def load(file: Any) -> tuple[Any, dict[str, Storage]]:
    """Returns what a pickle describes, and all storages that it mentions, by key.

    Args:
      file: a binary file or memory map; it is left behind the pickle.

    Raises:
      restricted_pickle.Refused: if the pickle asks for anything but plain data and tensors.
      restricted_pickle.Damaged: if it can't be read.
    """
    storages: dict[str, Storage] = {}

    def storage(record: Any) -> Storage:
        kind, dtype, key, _, size, *view = record
        start = view[0][1] if view and view[0] is not None else 0
        is_known = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str)
        if not is_known or not _are_whole(size, start):
            raise Damaged("it describes a storage wrongly")
        return storages.setdefault(key, Storage(key, dtype, size, start))._replace(start=start)

    return restricted_pickle.load(file, _ALLOWED, storage), storages


class _OrderedDict(dict):
    """Stands for a dict whose attributes, such as a state dict's versions, do not matter.

    Python 2 gave the entries as a list, which is emptied, so that no pickle can multiply them.
    """

    def __init__(self, pairs: Any = None) -> None:
        for key, value in pairs or ():
            if not isinstance(key, str):
                raise Damaged("a key of a dict is no plain value")
            self[key] = value
        if pairs:
            pairs.clear()

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > _MAX_AXES:
        raise Damaged("it describes a tensor wrongly")
    if not _are_whole(offset, *shape, *strides):
        raise Damaged("a tensor's shape or strides are no whole numbers")
    return Tensor(storage, storage.start + offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Damaged("it describes a tensor wrongly")
    return tensor


def _are_whole(*numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": _OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()},
    **{f"torch.{dtype.name}": None for dtype in DTYPES.values()},
    **dict.fromkeys(
        [
            *("torch.Size", "torch.device", "argparse.Namespace", "numpy.dtype"),
            *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode"),
        ],
        Ignored,
    ),
}


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
