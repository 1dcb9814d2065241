"""Reads the original CIFAR-10 files where a user keeps them.

Binary or Python batches, in a folder or inside a .tar.gz. Archives are read in memory and only
for the expected names: nothing is unpacked to disk, and links are refused.
"""

import gzip
import io
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from resnet_jax import restricted_pickle
from resnet_jax.data import cifar10
from resnet_jax.data.cifar10 import Batches
from resnet_jax.data.download import Unavailable, reading
from resnet_jax.errors import UserError

_PLACES = ["cifar-10-batches-bin", "cifar-10-batches-py"]
_PLACES += ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]
_WANTED = frozenset(cifar10.NAMES) | {f"{name}.bin" for name in cifar10.NAMES}
_MEMBER_LIMIT = 1000
_ARCHIVE_LIMIT = 2**28  # bytes unpacked; the real ones hold 184 MB


def find(path: Path) -> Path | None:
    """Returns what holds the batches at `path`: a folder, an archive, or None if nothing does.

    Args:
      path: an archive, or a folder that holds the batches, one of the two original archives or one
        of the folders that these unpack to. Binary batches come before Python ones.

    Raises:
      UserError: `path` can't be looked into.
    """
    try:
        for place in (path, *(path / name for name in _PLACES)):
            if place.is_file() or any((place / name).is_file() for name in _WANTED):
                return place
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return None


def read(path: Path) -> Batches:
    """Returns the verified batches that a folder or archive holds.

    Args:
      path: what `find` returned.

    Raises:
      Unavailable: a batch is missing, truncated, altered, a link, or not readable.
    """
    found = members(path, _WANTED)
    is_binary = any(name.endswith(".bin") for name in found)
    result = {}
    for name in cifar10.NAMES:
        where = path / (f"{name}.bin" if is_binary else name)
        if where.name not in found:
            md5 = cifar10.MD5[name]
            raise Unavailable(f"{where} is missing (its binary version has MD5 {md5})")
        content = found[where.name]
        result[name] = cifar10.check(
            name, content if is_binary else unpickle(content, where), where
        )
    return result


def members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Returns the content of those files in a folder or archive whose base names are wanted.

    Raises:
      Unavailable: the archive is damaged or far too large, or a file is a link, too long or twice
        there.
    """
    limit = 2 * cifar10.batch_bytes()  # a pickle adds 1 % to the binary layout
    found: dict[str, bytes] = {}
    with reading(path):
        for name, stream in _streams(path, wanted):
            content = stream.read(limit + 1)
            if len(content) > limit:
                raise Unavailable(f"{path / name} is too long for CIFAR-10: over {limit} bytes")
            if name in found:
                raise Unavailable(f"{path} holds {name} twice")
            found[name] = content
    return found


def _streams(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    if path.is_dir():
        for file in map(path.joinpath, sorted(wanted)):
            if file.is_file():
                with file.open("rb") as content:
                    yield file.name, content
        return
    too_much = Unavailable(f"{path} is not CIFAR-10: it holds far more than that")
    with gzip.open(path) as packed:
        unpacked = packed.read(_ARCHIVE_LIMIT + 1)
    if len(unpacked) > _ARCHIVE_LIMIT:
        raise too_much
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
        for count, member in enumerate(archive):
            if count > _MEMBER_LIMIT:
                raise too_much
            name = member.name.rpartition("/")[2]
            if name in wanted:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise Unavailable(f"{path / name} is a link or a special file; refused")
                yield name, stream


class _Array(restricted_pickle.Ignored):
    """Stands for `numpy.ndarray`; its content is turned into numbers only if it is asked for."""

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
    "_codecs.encode": _text,  # Python 3 has no opcode for bytes in protocol 2
}


def unpickle(content: bytes, where: Path, labels: str = "labels") -> bytes:
    """Returns the binary layout of one Python batch.

    Args:
      content: the pickle: a dictionary with `data` (uint8 [N, 3072]) and the labels (N integers).
      where: the file it came from, for messages.
      labels: the key of the labels.

    Raises:
      Unavailable: it is no such pickle, or asks for anything beyond a uint8 array.
    """
    with reading(f"{where}, which is not a CIFAR-10 Python batch"):
        batch = restricted_pickle.load(io.BytesIO(content), _ALLOWED)
        fields = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        pixels = fields["data"].values().reshape(-1, 3 * cifar10.PIXELS)
        numbers = np.frombuffer(bytes(iter(fields[labels])), np.uint8)  # no lists inside of lists
        return np.concatenate([numbers[:, None], pixels], axis=1).tobytes()
