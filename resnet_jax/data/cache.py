"""The data cache: the six verified batches, in the binary layout, each written in one atomic step.

Every load checks the MD5s again, which takes a quarter of a second: an altered file is noticed
whatever its size and time of change say, and nothing needs to be trusted.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import platformdirs

from resnet_jax.data import originals
from resnet_jax.data.batches import Batches, Unavailable
from resnet_jax.errors import UserError

try:
    import fcntl
except ImportError:  # not a Unix system: writes stay atomic, two downloads may both happen
    fcntl = None  # type: ignore[assignment]

SPACE_NEEDED = 500_000_000  # bytes, while fetching: a download, its client's copy, the batches


def default_cache_dir() -> Path:
    """Returns the platform's user cache folder for this package."""
    return Path(platformdirs.user_cache_dir("resnet_jax", appauthor=False))


def batches_dir(root: Path) -> Path:
    """Returns the folder of the verified batches inside the cache folder `root`."""
    return root / "cifar10"


def downloads_dir(root: Path) -> Path:
    """Returns the folder for unfinished downloads inside the cache folder `root`."""
    return root / "downloads"


def load(root: Path) -> Batches:
    """Returns the cached batches, verified.

    Raises:
      Unavailable: the cache is empty, incomplete or altered.
    """
    with using(root):
        if not batches_dir(root).is_dir():
            raise Unavailable(f"{root} holds no CIFAR-10 yet")
    return originals.read(batches_dir(root))


def origins(root: Path) -> dict[str, str]:
    """Returns the sources that the cached bytes were read from, each with a phrase to show."""
    try:
        found = json.loads((batches_dir(root) / "origins.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {source: text for source, text in found.items() if isinstance(text, str)}


def store(root: Path, batches: Batches, source: str, phrase: str) -> None:
    """Writes verified batches to the cache and records that `source` gave them.

    Raises:
      UserError: the folder can't be written or the disk is full; no temporary file is left.
    """
    folder = batches_dir(root)
    known = {**origins(root), source: phrase}
    with using(root):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in batches.items():
            _write(folder / f"{name}.bin", content)
        _write(folder / "origins.json", json.dumps(known, indent=1).encode())


def prepare(root: Path) -> Path:
    """Returns the downloads folder, made, after a check that there is room to fetch the data.

    Raises:
      UserError: the cache can't be written or the disk is too full.
    """
    with using(root):
        downloads_dir(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=downloads_dir(root)):
            pass  # only a file really made tells that the folder can be written
        free = shutil.disk_usage(root).free
    if free < SPACE_NEEDED:
        raise UserError(
            f"not enough disk space in {root}: {free // 10**6} MB free, "
            f"{SPACE_NEEDED // 10**6} MB needed; name another folder (--config.data.dir)"
        )
    return downloads_dir(root)


@contextlib.contextmanager
def using(root: Path) -> Iterator[None]:
    """Turns a failure to read or write below `root` into one line for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot use the data cache {root}: {reason}; name another (--config.data.dir)"
        ) from error


@contextlib.contextmanager
def lock(root: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Holds the cache's lock, so that of several processes one fetches and the others wait.

    The system releases it when its holder ends, however that happens. What a killed process left
    behind is removed on entry, and finished or useless downloads on success; an unfinished one
    that can go on is kept. Where files can't be locked (some network file systems) the processes
    work side by side and remove nothing, which is safe but wasteful.
    """
    with using(root):
        root.mkdir(parents=True, exist_ok=True)
        file = (root / "cifar10.lock").open("w")
    with file:
        is_held = _take(file, root, notify)
        if is_held:
            for temporary in batches_dir(root).glob("*.tmp"):
                temporary.unlink(missing_ok=True)
            for folder in downloads_dir(root).glob("npm-*"):
                shutil.rmtree(folder, ignore_errors=True)
        yield
        if is_held:
            shutil.rmtree(downloads_dir(root), ignore_errors=True)


def _take(file: IO[str], root: Path, notify: Callable[[str], None]) -> bool:
    """Waits for the lock on `file`; returns whether such locks exist here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        notify(f"another process is filling {root}; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, even if the process is killed or the disk fills up."""
    handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared cache from others
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
