"""Files of PyTorch weights, read and written without PyTorch and without running what they hold.

Read: `.pth`, `.pt`, `.th` in the zip format and in that of before 2020, and `.safetensors`; the
format is found from the content. Written: the zip format and `.safetensors`.
"""

import contextlib
import hashlib
import io
import json
import math
import mmap
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from resnet_jax import restricted_pickle
from resnet_jax.errors import UserError, unknown
from resnet_jax.weights import torch_pickle

SUFFIXES = (".pth", ".pt", ".th", ".safetensors")

# The pickled magic number, in any of the pickle protocols 2 to 5.
_LEGACY_START = re.compile(
    rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL
)
_SAFETENSORS: dict[str, np.dtype] = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_MAX_WRAPPERS = 10
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.\w+")
_ALIGNMENT = 64  # bytes
_CHUNK = 2**26  # bytes that are read at once


class _Unusable(Exception):
    """What is wrong with a file."""


class TorchFile:
    """The tensors of a file, which are read from disk when they are touched.

    Attributes:
      path: the file.
      tensors: read-only arrays by name; names of wrappers, such as `module.`, are removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a file and checks all that can be checked of it.

        Args:
          path: the file.

        Raises:
          UserError: if the file can't be read, is damaged, holds no state dict, asks for code to be
            run, or its SHA-256 is not the one in its name.
        """
        self.path = pathlib.Path(path)
        self._bytes = _map(self.path)
        try:
            self._check_digest()
            self.tensors = _without_prefix(self._read())
        except restricted_pickle.Refused as error:
            raise UserError(
                f"{path} asks for {error}, which is no tensor: refused, nothing was executed; "
                "of a module that was saved whole, save the state_dict() instead"
            ) from None
        except (restricted_pickle.Damaged, _Unusable) as error:
            raise UserError(f"{path} can't be used: {error}") from None

    def release(self) -> None:
        """Gives back the memory of what was read so far; it is read again if need be."""
        self._bytes.madvise(mmap.MADV_DONTNEED)

    def _check_digest(self) -> None:
        named = _DIGEST.search(self.path.name)
        if not named:
            return
        digest = hashlib.sha256()
        for chunk in self._chunks(memoryview(self._bytes)):
            digest.update(chunk)
        if not digest.hexdigest().startswith(named[1]):
            raise _Unusable(
                f"its SHA-256 starts with {digest.hexdigest()[:8]}, not with {named[1]} as its "
                "name says; fetch it again, or rename it if it was changed on purpose"
            )

    def _chunks(self, data: memoryview) -> Iterator[memoryview]:
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]
            self.release()

    def _read(self) -> dict[str, np.ndarray]:
        start = self._bytes[:32]
        if start.startswith(b"PK"):
            return self._read_zip()
        if _LEGACY_START.match(start):
            return self._read_legacy()
        if start[8:9] == b"{":
            return self._read_safetensors()
        raise _Unusable("it is no file of PyTorch weights, neither .pth nor .safetensors")

    def _read_zip(self) -> dict[str, np.ndarray]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise _Unusable("it is truncated or damaged (no end of the zip archive)") from error
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
            raise _Unusable("it is a zip archive, but not of a state dict")
        root = roots[0]
        if f"{root}byteorder" in entries and self._record(entries, f"{root}byteorder") != b"little":
            raise _Unusable("its numbers are big-endian; save it again on a common machine")
        value, storages = torch_pickle.load(io.BytesIO(self._record(entries, f"{root}data.pkl")))
        data: dict[str, memoryview] = {}
        for key, storage in storages.items():
            data[key] = self._record(entries, f"{root}data/{key}")
            if len(data[key]) != storage.size * storage.dtype.itemsize:
                raise _Unusable(f"its record data/{key} is of another length than declared")
        return _arrays(_state_dict(value), data)

    def _record(self, entries: Mapping[str, zipfile.ZipInfo], name: str) -> memoryview:
        """Returns the bytes of a zip archive's entry, checked."""
        if name not in entries:
            raise _Unusable(f"its record {name} is missing")
        entry = entries[name]
        header = self._bytes[entry.header_offset : entry.header_offset + 30]
        if entry.compress_type != zipfile.ZIP_STORED or not header.startswith(b"PK\x03\x04"):
            raise _Unusable(f"its record {name} is damaged or compressed")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        data = memoryview(self._bytes)[start : start + entry.file_size]
        if len(data) != entry.file_size:
            raise _Unusable(f"its record {name} is truncated")
        checksum = 0
        for chunk in self._chunks(data) if entry.CRC else ():  # 0: PyTorch was told to write none
            checksum = zlib.crc32(chunk, checksum)
        if checksum != entry.CRC:
            raise _Unusable(f"its record {name} was altered: the checksum differs")
        return data

    def _read_legacy(self) -> dict[str, np.ndarray]:
        file = self._bytes
        file.seek(0)
        _, _, system = (torch_pickle.load(file)[0] for _ in range(3))
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _Unusable("its numbers are big-endian; save it again on a common machine")
        value, storages = torch_pickle.load(file)
        keys, _ = torch_pickle.load(file)
        data: dict[str, memoryview] = {}
        position = file.tell()
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in storages or len(file) < position + 8:
                raise _Unusable("it is truncated or damaged (storages)")
            storage = storages[key]
            start, stop = position + 8, position + 8 + storage.size * storage.dtype.itemsize
            if int.from_bytes(file[position:start], "little") != storage.size or stop > len(file):
                raise _Unusable(f"it is truncated or damaged (storage {key})")
            data[key] = memoryview(file)[start:stop]
            position = stop
        if position != len(file):
            raise _Unusable(f"{len(file) - position:,} bytes follow its end")
        return _arrays(_state_dict(value), data)

    def _read_safetensors(self) -> dict[str, np.ndarray]:
        length = int.from_bytes(self._bytes[:8], "little")
        if length > len(self._bytes) - 8:
            raise _Unusable("it is truncated or damaged (safetensors header)")
        try:
            header = json.loads(self._bytes[8 : 8 + length])
            header.pop("__metadata__", None)
            entries = {
                name: (_SAFETENSORS[entry["dtype"]], *entry["data_offsets"], tuple(entry["shape"]))
                for name, entry in header.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _Unusable("its safetensors header can't be read, or names no dtype") from error
        data = memoryview(self._bytes)[8 + length :]
        arrays: dict[str, np.ndarray] = {}
        position = 0
        for name, (dtype, start, stop, shape) in sorted(entries.items(), key=lambda e: e[1][1:3]):
            whole = all(type(n) is int and n >= 0 for n in (start, stop, *shape))
            if not whole or start != position or stop > len(data):
                raise _Unusable(f"it is truncated or damaged (tensor {name})")
            if stop - start != math.prod(shape) * dtype.itemsize:
                raise _Unusable(f"tensor {name} is of another length than its shape says")
            arrays[name] = np.ndarray(shape, dtype, data, start)
            position = stop
        if position != len(data):
            raise _Unusable(f"{len(data) - position:,} bytes follow its end")
        return arrays


def _map(path: pathlib.Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError(f"{path} is empty; fetch it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def _state_dict(value: Any) -> dict[str, torch_pickle.Tensor]:
    """Returns the dict of tensors in what a file holds, out of its wrappers."""
    for _ in range(_MAX_WRAPPERS):  # a dict may hold itself
        if not isinstance(value, dict):
            break
        inner = [value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)]
        if not inner:
            break
        value = inner[0]
    if not isinstance(value, dict) or not value:
        raise _Unusable(f"it holds no state dict but {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch_pickle.Tensor):
            raise _Unusable(f"it holds no state dict: {str(name)[:60]!r} is no tensor")
    return value


def _arrays(
    tensors: Mapping[str, torch_pickle.Tensor], data: Mapping[str, memoryview]
) -> dict[str, np.ndarray]:
    """Returns the tensors as views of their storages."""
    arrays = {}
    for name, (storage, offset, shape, strides) in tensors.items():
        if storage.key not in data:
            raise _Unusable(f"the storage of {name} is missing")
        count: int = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if count > storage.size or (count and last >= storage.size):
            raise _Unusable(f"tensor {name} is larger than its storage")
        itemsize = storage.dtype.itemsize
        try:
            arrays[name] = np.ndarray(
                shape,
                storage.dtype,
                data[storage.key],
                offset * itemsize,
                tuple(step * itemsize for step in strides),
            )
        except (ValueError, TypeError, OverflowError):
            raise _Unusable(f"tensor {name} is larger than its storage") from None
    return arrays


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors without the prefixes that wrapping modules gave to all names."""
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_prefix({name[len(prefix) :]: a for name, a in tensors.items()})
    return tensors


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict; the file appears whole or not at all.

    Args:
      path: the file, of a suffix in `SUFFIXES`, which says the format.
      tensors: arrays by name.

    Raises:
      UserError: if the suffix is unknown, or the file can't be written.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise unknown(f"suffix of {path}:", path.suffix, SUFFIXES)
    write_to = _write_safetensors if path.suffix == ".safetensors" else _write_zip
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        with temporary.open("wb") as file:
            write_to(file, contiguous)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_zip(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    records = {"data.pkl": torch_pickle.dump(tensors), "byteorder": b"little"}
    with zipfile.ZipFile(file, "w") as archive:

        def add(name: str, data: Any) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            # An extra field fills the header up, so that the numbers can be mapped into memory.
            header = file.tell() + 30 + len(entry.filename) + 4
            padding = -header % _ALIGNMENT
            entry.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
            archive.writestr(entry, data)

        for name, data in records.items():
            add(name, data)
        for index, array in enumerate(tensors.values()):
            add(f"data/{index}", _raw(array))
        add("version", b"3\n")


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    names = {dtype: name for name, dtype in _SAFETENSORS.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        offsets = [position, position + array.nbytes]
        shape = list(array.shape)
        header[name] = {"dtype": names[array.dtype], "shape": shape, "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in tensors.values():
        file.write(_raw(array))


def _raw(array: np.ndarray) -> memoryview:
    """Returns the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
