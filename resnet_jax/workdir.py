"""The folder of a run: its config, its lock, and a log of its starts."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax import config as config_lib
from resnet_jax.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVENTS = "events"

# What the system says of a place that can't be written, such as a full disk.
_UNWRITABLE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
    }
)


@contextlib.contextmanager
def claim(path: str | os.PathLike[str], config: ConfigDict) -> Iterator[pathlib.Path]:
    """Makes or reopens the folder of a run, for this process alone.

    Args:
      path: the folder.
      config: the checked config of the run.

    Yields:
      The folder.

    Raises:
      UserError: if the folder can't be written, now or later, is in use, or holds a run of
        another config.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a+") as lock:
            _lock(lock, folder)
            _keep_config(folder, config)
            _log_start(folder)
            yield folder
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"--workdir {folder} can't be written: {error.strerror}{where}; "
            "once it can, the same command goes on from the last checkpoint"
        ) from error


def read_config(path: str | os.PathLike[str]) -> ConfigDict:
    """Returns the checked config of the run in a folder.

    Args:
      path: the folder.

    Raises:
      UserError: if there is no run, or its config can't be read.
    """
    file = pathlib.Path(path) / CONFIG
    if not file.exists():
        raise UserError(f"--workdir {path} holds no run: there is no {CONFIG} in it")
    return config_lib.upgraded(_read_json(file))


def _lock(lock: Any, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise UserError(f"--workdir {folder} is in use by {lock.read().strip()}") from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _keep_config(folder: pathlib.Path, config: ConfigDict) -> None:
    """Writes the config, unless there are checkpoints of another one."""
    file = folder / CONFIG
    # Until the first checkpoint nothing would be lost, and a slip in the config can be mended.
    begun = any(folder.glob(f"{CHECKPOINTS}/*"))
    if begun and (changed := config_lib.differences(_read_json(file), config)):
        raise UserError(
            f"--workdir {folder} holds a run of another config: {'; '.join(changed)}; "
            "name another --workdir"
        )
    _replace(file, json.dumps(config.to_dict(), indent=2) + "\n")


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} can't be read: {error}; restore it or name another --workdir"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{file} does not hold a config; name another --workdir")
    return value


def environment() -> dict[str, Any]:
    """Returns when, how, on what and from which commit this process runs."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "commit": _commit(),
        "version": resnet_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "cores": os.cpu_count(),
    }


def _log_start(folder: pathlib.Path) -> None:
    """Appends where and how this start of the run takes place."""
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps(environment()) + "\n")


def _commit() -> str | None:
    """Returns the commit of the checkout that this package runs from; None without one."""
    here = pathlib.Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _replace(file: pathlib.Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, file)
