"""Files of PyTorch weights, read without PyTorch and without running what they hold.

Read: `.pth`, `.pt`, `.th` in the zip format and in that of before 2020, and `.safetensors`; the
format is found from the content. Written: `.safetensors`, which PyTorch reads.
"""

import hashlib
import io
import math
import mmap
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from resnet_jax.errors import UserError
from resnet_jax.files import write_atomically, writing
from resnet_jax.restricted_pickle import Damaged, Refused
from resnet_jax.weights import torch_pickle
from resnet_jax.weights.torch_pickle import Tensor

# The pickled magic number, in any of the pickle protocols 2 to 5.
_LEGACY_START = re.compile(
    rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL
)
_SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "BOOL": "?"}
_SAFETENSORS |= {"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1"}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_MAX_WRAPPERS = 10
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
# With a letter among them, since dates and numbers of steps have eight digits too.
_DIGEST = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8}|[0-9a-f]{64})\.\w+$")


class TorchFile:
    """The tensors of a file, which are read from disk when they are touched.

    Attributes:
      path: the file.
      tensors: read-only arrays by name; names of wrappers, such as `module.`, are removed.
      metadata: texts by name, which `.safetensors` may hold beside the tensors.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a file and checks all that can be checked of it.

        Args:
          path: the file.

        Raises:
          UserError: if the file can't be read, is damaged, holds no state dict, asks for code to be
            run, or its SHA-256 is not the one in its name, of 8 or 64 hexadecimal digits.
        """
        self.path, self.metadata = pathlib.Path(path), dict[str, str]()
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise Damaged("it is empty; fetch it again")
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                if named := _DIGEST.search(self.path.name):
                    _check_digest(hashlib.file_digest(file, "sha256").hexdigest(), named[1])
            self.tensors = _without_prefix(self._read())
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}") from None
        except Refused as error:
            raise UserError(
                f"{path} asks for {error}, which is no tensor: refused, nothing was executed; "
                "of a module that was saved whole, save the state_dict() instead"
            ) from None
        except Damaged as error:
            raise UserError(f"{path} can't be used: {error}") from None

    def release(self) -> None:
        """Gives back the memory of what was read so far; it is read again if need be."""
        self._bytes.madvise(mmap.MADV_DONTNEED)

    def _read(self) -> dict[str, np.ndarray]:
        start = self._bytes[:32]
        if start.startswith(b"PK"):
            return self._read_zip()
        if _LEGACY_START.match(start):
            return self._read_legacy()
        if start[8:9] == b"{":
            return self._read_safetensors()
        raise Damaged("it is no file of PyTorch weights, neither .pth nor .safetensors")

    def _read_zip(self) -> dict[str, np.ndarray]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise Damaged("it is truncated or damaged (no end of the zip archive)") from error
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
            raise Damaged("it is a zip archive, but not of a state dict")
        root = roots[0]
        if f"{root}byteorder" in entries and self._record(entries, f"{root}byteorder") != b"little":
            raise Damaged("its numbers are big-endian; save it again on a common machine")
        value, storages = torch_pickle.load(io.BytesIO(self._record(entries, f"{root}data.pkl")))
        data = {key: self._record(entries, f"{root}data/{key}") for key in storages}
        return _arrays(_state_dict(value), data)

    def _record(self, entries: Mapping[str, zipfile.ZipInfo], name: str) -> memoryview:
        """Returns the bytes of a zip archive's entry, checked."""
        if name not in entries:
            raise Damaged(f"its record {name} is missing")
        entry = entries[name]
        header = self._bytes[entry.header_offset : entry.header_offset + 30]
        is_stored = entry.compress_type == zipfile.ZIP_STORED and len(header) == 30
        if not is_stored or not header.startswith(b"PK\x03\x04"):
            raise Damaged(f"its record {name} is damaged or compressed")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        data = memoryview(self._bytes)[start : start + entry.file_size]
        if len(data) != entry.file_size:
            raise Damaged(f"its record {name} is truncated")
        if entry.CRC and zlib.crc32(data) != entry.CRC:  # 0: PyTorch was told to write none
            raise Damaged(f"its record {name} was altered: the checksum differs")
        self.release()
        return data

    def _read_legacy(self) -> dict[str, np.ndarray]:
        file = self._bytes
        _, _, system = (torch_pickle.load(file)[0] for _ in range(3))
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Damaged("its numbers are big-endian; save it again on a common machine")
        value, storages = torch_pickle.load(file)
        keys, _ = torch_pickle.load(file)
        data: dict[str, memoryview] = {}
        position = file.tell()
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in storages:
                raise Damaged("it is truncated or damaged (storages)")
            size, start = storages[key].size, position + 8
            position = start + size * storages[key].dtype.itemsize
            if int.from_bytes(file[start - 8 : start], "little") != size or position > len(file):
                raise Damaged(f"it is truncated or damaged (storage {key})")
            data[key] = memoryview(file)[start:position]
        if position != len(file):
            raise Damaged(f"{len(file) - position:,} bytes follow its end")
        return _arrays(_state_dict(value), data)

    def _read_safetensors(self) -> dict[str, np.ndarray]:
        try:
            arrays = {}
            with safe_open(self.path, framework="np") as file:
                self.metadata = file.metadata() or {}
                # The library has checked that the tensors lie in this order and without gaps.
                position = 8 + int.from_bytes(self._bytes[:8], "little")
                for name in file.offset_keys():
                    entry = file.get_slice(name)
                    dtype, shape = np.dtype(_SAFETENSORS[entry.get_dtype()]), entry.get_shape()
                    arrays[name] = np.ndarray(shape, dtype, self._bytes, position)
                    position += arrays[name].nbytes
            return arrays
        except SafetensorError as error:
            raise Damaged(f"it is truncated or damaged: {str(error)[:120]!r}") from None
        except LookupError as error:
            raise Damaged(f"it holds numbers of the type {error}") from None


def _check_digest(found: str, named: str) -> None:
    if not found.startswith(named):
        raise Damaged(
            f"its SHA-256 starts with {found[: len(named)]}, not with {named} as its name says; "
            "fetch it again, or rename it if it was changed on purpose"
        )


def _state_dict(value: Any) -> dict[str, Tensor]:
    """Returns the dict of tensors in what a file holds, out of its wrappers."""
    for _ in range(_MAX_WRAPPERS if isinstance(value, dict) else 0):  # a dict may hold itself
        value = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)), value)
    if not isinstance(value, dict) or not value:
        raise Damaged(f"it holds no state dict but {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Damaged(f"it holds no state dict: {str(name)[:60]!r} is no tensor")
    return value


def _arrays(tensors: Mapping[str, Tensor], data: Mapping[str, memoryview]) -> dict[str, np.ndarray]:
    """Returns the tensors as views of their storages."""
    arrays = {}
    for name, (storage, offset, shape, strides) in tensors.items():
        dtype, memory = storage.dtype, data.get(storage.key, memoryview(b""))
        steps = tuple(step * dtype.itemsize for step in strides)
        try:
            if len(memory) != storage.size * dtype.itemsize or math.prod(shape) > storage.size:
                raise ValueError
            arrays[name] = np.ndarray(shape, dtype, memory, offset * dtype.itemsize, steps)
        except (ValueError, TypeError, OverflowError):
            raise Damaged(f"tensor {name} is larger than its storage, or that is cut") from None
    return arrays


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors without the prefixes that wrapping modules gave to all names."""
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_prefix({name[len(prefix) :]: a for name, a in tensors.items()})
    return tensors


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dict; the file appears whole or not at all.

    Args:
      path: the file, whose suffix is `.safetensors`.
      tensors: arrays by name.
      metadata: texts by name, for the header.

    Raises:
      UserError: if the suffix is another, or the file can't be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors only; PyTorch reads it too")
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with writing(path):
        write_atomically(path, save(contiguous, {"format": "pt", **(metadata or {})}))
