"""Downloads files of known digests; an interrupted download goes on where it stopped."""

import contextlib
import functools
import hashlib
import http.client
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from resnet_jax.data import cache
from resnet_jax.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called often with what is downloaded, the bytes so far and the bytes in all."""

TIMEOUT = 20  # seconds without a byte
_CHUNK = 2**18


class Unavailable(UserError):
    """A source cannot serve the data, but another may: `auto` passes over it, saying why."""


class Remote(NamedTuple):
    """A file to download.

    Attributes:
      url: its address.
      size: bytes; 0: its host tells.
      digest: the digest of its content, or how it begins, in hexadecimal.
      algorithm: "md5" or "sha256".
    """

    url: str
    size: int
    digest: str
    algorithm: str = "md5"


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Turns whatever a forged or damaged file makes a library raise into `Unavailable`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unavailable(f"cannot read {what}: {reason}") from error


def complete(remote: Remote, part: Path, progress: Progress) -> None:
    """Downloads what `part` still lacks of a file, then checks the whole.

    Args:
      remote: the file.
      part: where it is downloaded to; what is there is kept if the download fails.
      progress: told about every piece that arrives.

    Raises:
      Unavailable: the host is out of reach, or what it sent is not the file.
      UserError: the disk is full; nothing is left then.
    """
    if not remote.size:
        remote = remote._replace(size=_remote_size(remote.url))
    size = _size(part, remote)
    while size != remote.size:
        try:
            _append(remote, part, progress)
            reason = "the connection was closed early"
        except (http.client.HTTPException, OSError) as error:
            reason = str(error) or type(error).__name__
        before, size = size, _size(part, remote)
        if size <= before:  # no headway: give up, but keep what there is
            kept = f"; {size // 10**6} MB are kept, run again to go on" if size else ""
            raise Unavailable(f"{remote.url}: {reason}{kept}")
    with part.open("rb") as file:
        new = functools.partial(hashlib.new, remote.algorithm, usedforsecurity=False)
        found = hashlib.file_digest(file, new).hexdigest()
    if not found.startswith(remote.digest):
        part.unlink()
        raise Unavailable(
            f"{remote.url} is altered: expected {remote.algorithm.upper()} {remote.digest}, "
            f"found {found}; it is deleted"
        )


def fetch(
    remote: Remote,
    file: Path,
    notify: Callable[[str], None],
    progress: Progress | None,
    instead: str,
) -> None:
    """Downloads a file unless it is there; of several processes one does, and the others wait.

    Args:
      remote: the file.
      file: where it is to lie.
      notify: told if another process fetches it, and of the download if `progress` is None.
      progress: told about every piece that arrives.
      instead: what the user can do if its host is out of reach.

    Raises:
      UserError: it can't be had, or the folder can't be written.
    """
    with cache.lock(file.parent, notify):
        if not file.is_file():  # another process may have fetched it meanwhile
            part = file.with_name(f"{file.name}.part")
            try:
                complete(remote, part, progress or PlainProgress(notify))
            except Unavailable as error:
                raise UserError(f"{error}; {instead}") from None
            with cache.using(file.parent):
                part.replace(file)


def _append(remote: Remote, part: Path, progress: Progress) -> None:
    """Asks the host for the bytes after those in `part` and appends them until it stops sending."""
    size, (url, total) = _size(part, remote), remote[:2]
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            size = 0  # the host sends it all again
        expected = response.headers.get("Content-Length")
        if expected is not None and size + int(expected) != total:
            raise Unavailable(f"{url} is not the file: {size + int(expected)} bytes, not {total}")
        with cache.using(part.parent):
            file = part.open("ab" if size else "wb")
        with file:
            while size < total and (chunk := response.read(_CHUNK)):
                _write(file, chunk, part)
                size += len(chunk)
                progress(url.rpartition("/")[2], size, total)


def _remote_size(url: str) -> int:
    request = urllib.request.Request(url, method="HEAD")
    with reading(url), urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return int(response.headers["Content-Length"])


def _write(file: IO[bytes], chunk: bytes, part: Path) -> None:
    with cache.using(part.parent):
        try:
            file.write(chunk)
            file.flush()
        except OSError:  # the disk is full: what is there would only keep it so
            part.unlink(missing_ok=True)
            raise


def _size(part: Path, remote: Remote) -> int:
    """Returns the bytes of `part` on disk; one that is too long is removed first."""
    size = part.stat().st_size if part.exists() else 0
    if size > remote.size:
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
