"""Downloads the original archive of CIFAR-10; an interrupted download goes on where it stopped."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from resnet_jax.data import cache, originals
from resnet_jax.data.batches import Batches, Unavailable
from resnet_jax.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called often with what is downloaded, the bytes so far and the bytes in all."""

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FILE_NAME = URL.rpartition("/")[2]
BYTES = 170_052_171
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_TIMEOUT = 20  # seconds without a byte
_CHUNK = 2**18


def read_archive(root: Path, progress: Progress) -> Batches:
    """Downloads the original archive to the cache folder `root` and reads it.

    Args:
      root: the cache folder; the unfinished part of the archive stays there between calls.
      progress: told about every piece that arrives.

    Raises:
      Unavailable: the host is out of reach, or what it sent is not the archive.
      UserError: the cache can't be written or its disk is full; no partial file is left then.
    """
    part = cache.prepare(root) / f"{FILE_NAME}.part"
    archive = part.with_suffix("")
    if not archive.exists():
        _complete(part, progress)
        with cache.using(root):
            part.replace(archive)
    try:
        return originals.read(archive)
    finally:
        archive.unlink(missing_ok=True)  # read, it is cached unpacked; unreadable, it is no use


def _complete(part: Path, progress: Progress) -> None:
    """Downloads what `part` still lacks, then checks the whole."""
    size = _size(part)
    while size != BYTES:
        try:
            _append(part, progress)
            reason = "the connection was closed early"
        except Unavailable:
            raise
        except UserError:  # the disk is full: what is there would only keep it so
            part.unlink(missing_ok=True)
            raise
        except urllib.error.HTTPError as error:
            reason = str(error)
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (http.client.HTTPException, OSError) as error:
            reason = str(error) or type(error).__name__
        if _size(part) <= size:  # no headway: give up, but keep what there is
            kept = f"; {size // 10**6} MB are kept, run again to go on" if size else ""
            raise Unavailable(f"{URL}: {reason}{kept}")
        size = _size(part)
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != MD5:
        part.unlink()
        raise Unavailable(f"{URL} is altered: expected MD5 {MD5}, found {found}; it is deleted")


def _append(part: Path, progress: Progress) -> None:
    """Asks the host for the bytes after those in `part` and appends them until it stops sending."""
    size = _size(part)
    request = urllib.request.Request(URL, headers={"Range": f"bytes={size}-"} if size else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            size = 0  # the host sends it all again
        expected = response.headers.get("Content-Length")
        if expected is not None and size + int(expected) != BYTES:
            raise Unavailable(f"{URL} is not the archive: {size + int(expected)} bytes")
        with cache.using(part.parent):
            file = part.open("ab" if size else "wb")
        with file:
            while size < BYTES and (chunk := response.read(_CHUNK)):
                with cache.using(part.parent):
                    file.write(chunk)
                    file.flush()
                size += len(chunk)
                progress(FILE_NAME, size, BYTES)


def _size(part: Path) -> int:
    """Returns the bytes of `part` on disk; one that is too long is removed first."""
    size = part.stat().st_size if part.exists() else 0
    if size > BYTES:
        part.unlink()
        return 0
    return size


class PlainProgress:
    """Tells about a download in plain lines, one every quarter of the way and every 15 seconds."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._told = (-1, 0.0)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Notes that `done` of `total` bytes of `what` have arrived."""
        quarter, now = 4 * done // total, time.monotonic()
        if quarter != self._told[0] or now - self._told[1] > 15:
            self._told = quarter, now
            self._notify(f"downloading {what}: {done // 10**6} of {total // 10**6} MB")
