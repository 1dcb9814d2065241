"""Reads the original CIFAR-10 files where a user keeps them.

Binary or Python batches, in a folder or inside a .tar.gz or .zip. Archives are read in memory and
only for the expected names: nothing is unpacked to disk, and links are refused.
"""

import hashlib
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from resnet_jax.data import batches, python_batches
from resnet_jax.data.batches import Batches, Unavailable
from resnet_jax.errors import UserError

_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
_ARCHIVE = re.compile(r"cifar-?10(?!0).*\.(zip|tar|tgz|tar\.gz)$", re.IGNORECASE)
_WANTED = frozenset(batches.NAMES) | {f"{name}.bin" for name in batches.NAMES}
_MEMBER_LIMIT = 1000
_ARCHIVE_LIMIT = 2**30  # bytes unpacked; the real ones hold 184 MB


def find(path: Path) -> Path | None:
    """Returns what holds the batches at `path`: a folder, an archive, or None if nothing does.

    Args:
      path: an archive, or a folder that holds the batches, one of the two folders the original
        archives unpack to, or such an archive. Binary batches come before Python ones.

    Raises:
      UserError: `path` can't be looked into.
    """
    try:
        if path.is_file():
            return path
        for folder in (path, *(path / name for name in _FOLDERS)):
            if any((folder / name).is_file() for name in _WANTED):
                return folder
        files = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return next((file for file in files if _ARCHIVE.fullmatch(file.name)), None)


def is_binary_folder(path: Path) -> bool:
    """Returns whether `path` holds plain binary batches, which need no unpacking."""
    return any((path / f"{name}.bin").is_file() for name in batches.NAMES)


def stamp(path: Path) -> str:
    """Returns a word that changes when the archive or folder gets other files, sizes or times.

    Raises:
      UserError: `path` can't be looked into.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return hashlib.md5(repr(states).encode(), usedforsecurity=False).hexdigest()[:12]


def read(path: Path) -> Batches:
    """Returns the verified batches that a folder or archive holds.

    Args:
      path: what `find` returned.

    Raises:
      Unavailable: a batch is missing, truncated, altered, a link, or not readable.
    """
    try:
        found = dict(_members(path))
    except Unavailable:
        raise
    except Exception as error:  # a forged archive can raise anything; nothing of it is used
        raise Unavailable(f"cannot read {path}: {batches.describe(error)}") from error
    result = {}
    is_binary = any(name.endswith(".bin") for name in found)
    for name in batches.NAMES:
        file_name = f"{name}.bin" if is_binary else name
        where = str(path / file_name)
        if file_name not in found:
            raise Unavailable(
                f"{where} is missing (its binary version has MD5 {batches.MD5[name]})"
            )
        content = found[file_name]
        if not is_binary:
            content = python_batches.to_binary(content, where)
        result[name] = batches.check(name, content, where)
    return result


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file of `_WANTED` at `path`."""
    if path.is_dir():
        yield from _folder_members(path)
    elif zipfile.is_zipfile(path):
        yield from _zip_members(path)
    else:
        yield from _tar_members(path)


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    for name in sorted(_WANTED):
        if (path / name).is_file():
            _check_size(path / name, (path / name).stat().st_size)
            yield name, (path / name).read_bytes()


def _zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.rpartition("/")[2]
            if name in _WANTED:
                _check_size(path / name, member.file_size)
                with archive.open(member) as stream:
                    yield name, stream.read(_size_limit())


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    unpacked = 0
    with tarfile.open(path) as archive:
        for count, member in enumerate(archive):
            unpacked += member.size
            if count > _MEMBER_LIMIT or unpacked > _ARCHIVE_LIMIT:
                raise Unavailable(f"{path} is not CIFAR-10: it holds far more than that")
            name = member.name.rpartition("/")[2]
            if name not in _WANTED:
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                raise Unavailable(f"{path / name} is a link or a special file; refused")
            _check_size(path / name, member.size)
            yield name, stream.read(_size_limit())


def _size_limit() -> int:
    """Returns the most bytes that a batch may have; a pickle adds 1 % to the binary layout."""
    return 2 * batches.batch_bytes()


def _check_size(where: Path, size: int) -> None:
    if size > _size_limit():
        raise Unavailable(f"{where} is too long for a CIFAR-10 batch: {size} bytes")
