"""The folder where downloads are kept, filled by one process at a time and in atomic steps."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from resnet_jax.errors import UserError
from resnet_jax.files import write_atomically

_FOUND = "found"


def default_cache_dir() -> Path:
    """Returns the platform's user cache folder for this package.

    Raises:
      UserError: if the user has no home.
    """
    try:
        return Path(platformdirs.user_cache_dir("resnet_jax", appauthor=False))
    except RuntimeError:
        raise UserError("there is no home for the cache; set HOME or XDG_CACHE_HOME") from None


@contextlib.contextmanager
def using(folder: Path) -> Iterator[None]:
    """Turns a failure to read or write below a folder into one line for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot use the cache {folder}: {reason}; name another (--config.data.dir for data, "
            "XDG_CACHE_HOME for all)"
        ) from error


def prepare(folder: Path) -> Path:
    """Returns a folder for downloads, made.

    Raises:
      UserError: it can't be made.
    """
    with using(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def lock(folder: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Holds a folder's lock, so that of several processes one fills it and the others wait.

    The system releases it when its holder ends, however that happens.

    Args:
      folder: the folder, which is made.
      notify: told if another process holds the lock.

    Raises:
      UserError: the folder can't be written or its file system knows no locks.
    """
    with using(prepare(folder)):
        file = (folder / ".lock").open("w")
    with file:
        with using(folder):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notify(f"another process is filling {folder}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; of what matters the caller holds the folder's lock.

    What a process leaves that is killed meanwhile is overwritten by the next.

    Raises:
      UserError: the file can't be written or the disk is full; no temporary file is left.
    """
    with using(prepare(path.parent)):
        write_atomically(path, content)


def remembered(key: str, find: Callable[[], Any]) -> Any:
    """Returns what `find` found when it was first called for a key.

    Where the cache can't be written, it is called each time.

    Args:
      key: identifies the result, with the state of the files that it was found in.
      find: returns a value that JSON holds; tuples come back as lists.
    """
    try:
        file = default_cache_dir() / _FOUND / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    except UserError:  # there is no home
        return find()
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text())
    found = find()
    with contextlib.suppress(UserError):
        write(file, json.dumps(found).encode())
    return found
