"""Reads the Python version of a CIFAR-10 batch, a pickle, without letting it run anything.

The whitelist maps every global that such a file needs to a stand-in of ours, so that not even numpy
is called on the file's behalf.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from resnet_jax.data import batches

_MEMO_LIMIT = 1_000_000  # a forged memo index would make the unpickler allocate that many slots


class _Dtype:
    """Stands in for `numpy.dtype`; whatever it says, the bytes are taken as uint8."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands in for `numpy.ndarray`; `values` is the array once the pickle has set its state."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, is_fortran, content = state
        values = np.frombuffer(content, np.uint8)
        self.values = values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def to_binary(content: bytes, where: str) -> bytes:
    """Returns the binary layout of one pickled batch.

    Args:
      content: the pickle: a dictionary with `data` (uint8 [N, 3072]) and `labels` (N integers).
      where: the file it came from, for messages.

    Raises:
      Unavailable: it is no such pickle, or asks for anything beyond a uint8 array.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if "PUT" in opcode.name and argument is not None and int(argument) > _MEMO_LIMIT:
                raise pickle.UnpicklingError("a memo index out of range")
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        pixels = fields["data"].values.reshape(-1, 3 * batches.PIXELS)
        labels = np.array(fields["labels"], np.uint8).reshape(-1, 1)
        return np.concatenate([labels, pixels], axis=1).tobytes()
    except Exception as error:  # a forged pickle can raise anything; nothing of it is used
        reason = batches.describe(error)
        raise batches.Unavailable(f"{where} is not a CIFAR-10 Python batch ({reason})") from error
