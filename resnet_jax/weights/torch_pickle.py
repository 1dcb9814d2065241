"""The pickles inside PyTorch files, read as descriptions of tensors; nothing of PyTorch is run."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from resnet_jax import restricted_pickle
from resnet_jax.restricted_pickle import Damaged, Ignored

_DTYPES = {"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": ml_dtypes.bfloat16}
_DTYPES |= {"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
_MAX_AXES = 64


class Storage(NamedTuple):
    """A run of numbers that tensors are views of.

    Attributes:
      key: its name in the file.
      dtype: type of the numbers.
      size: how many they are.
    """

    key: str
    dtype: np.dtype
    size: int


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
        if not isinstance(record, tuple):
            raise Damaged("it describes a storage wrongly")
        kind, dtype, key, _, size, *view = record
        is_known = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str)
        if not is_known or not _are_whole(size) or any(part is not None for part in view):
            raise Damaged("it describes a storage wrongly")
        return storages.setdefault(key, Storage(key, dtype, size))

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
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= _MAX_AXES:
        raise Damaged("it describes a tensor wrongly")
    if not _are_whole(offset, *shape, *strides):
        raise Damaged("a tensor's shape or strides are no whole numbers")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


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
    **{f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()},
    **{f"torch.{np.dtype(dtype).name}": None for dtype in _DTYPES.values()},
    **dict.fromkeys(["torch.Size", "torch.device", "argparse.Namespace", "numpy.dtype"], Ignored),
    **dict.fromkeys([f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")], Ignored),
    **dict.fromkeys(["_codecs.encode", "collections.Counter"], Ignored),  # the latter of schedules
}
