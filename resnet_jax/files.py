"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from resnet_jax.errors import UserError


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns the system's refusal to write something into one line.

    Args:
      what: the place, as the user would say it.

    Raises:
      UserError: if it can't be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} can't be written: {error.strerror or error}") from error


def is_within(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Returns whether a path is that of a folder or below it, links followed."""
    return pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file by a new one, which is on disk when this returns.

    Whenever the process is killed or the power fails, the old content or the new one is there.

    Args:
      path: the file, which need not exist; its folder must.
      content: what it is to hold.

    Raises:
      OSError: if it can't be written; then the old file is there as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a link would lead elsewhere
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # until the folder is on disk too, the new name may be lost


def sync(folder: pathlib.Path) -> None:
    """Returns when a folder, all that is in it, and its own name are on disk.

    Raises:
      OSError: if they can't be written.
    """
    for at, _, names in os.walk(folder):
        for name in names:
            _sync(os.path.join(at, name))
        _sync(at)
    _sync(folder.parent)


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)
