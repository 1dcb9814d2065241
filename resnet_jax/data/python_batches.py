"""Reads the Python version of a CIFAR-10 batch, a pickle, without letting it run anything."""

import io
from typing import Any

import numpy as np

from resnet_jax import restricted_pickle
from resnet_jax.data import batches


class _Array:
    """Stands for `numpy.ndarray`; its content is turned into numbers only if it is asked for."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def values(self) -> np.ndarray:
        """Returns the array, of uint8 whatever the pickle says."""
        _, shape, _, is_fortran, content = self._state
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        values = np.frombuffer(content, np.uint8)
        return values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape)


def _text(text: str, *_: Any) -> str:
    return text if isinstance(text, str) else ""


_ALLOWED: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": restricted_pickle.Ignored,
    "_codecs.encode": _text,  # Python 3 has no other opcodes for bytes in protocol 2
}


def to_binary(content: bytes, where: str) -> bytes:
    """Returns the binary layout of one pickled batch.

    Args:
      content: the pickle: a dictionary with `data` (uint8 [N, 3072]) and `labels` (N integers).
      where: the file it came from, for messages.

    Raises:
      Unavailable: it is no such pickle, or asks for anything beyond a uint8 array.
    """
    try:
        batch = restricted_pickle.load(io.BytesIO(content), _ALLOWED)
        fields = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        pixels = fields["data"].values().reshape(-1, 3 * batches.PIXELS)
        labels = np.frombuffer(bytes(iter(fields["labels"])), np.uint8)  # no lists inside of lists
        return np.concatenate([labels[:, None], pixels], axis=1).tobytes()
    except restricted_pickle.Refused as error:
        raise batches.Unavailable(
            f"{where} is not a CIFAR-10 Python batch (it asks for {error})"
        ) from error
    except Exception as error:  # a forged pickle can raise anything; nothing of it is used
        reason = batches.describe(error)
        raise batches.Unavailable(f"{where} is not a CIFAR-10 Python batch ({reason})") from error
