"""The folder of a run: its config, its lock, and a log of its starts."""

import contextlib
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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax.config import load as config_lib
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.errors import UserError, unwritable

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVENTS = "events"
STARTS = "starts.jsonl"
LOCK = "lock"

_MAX_CONFIG_BYTES = 1_000_000


@contextlib.contextmanager
def claim(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Makes or reopens the folder of a run, for this process alone.

    Args:
      path: the folder.

    Yields:
      The folder.

    Raises:
      UserError: if the folder can't be written, now or later, or is in use.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_kinds(folder)
        with (folder / LOCK).open("a+") as lock:
            _lock(lock, folder)
            yield folder
    except OSError as error:
        if unwritable(error) is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"--workdir {folder} can't be written: {error.strerror}{where}; "
            "once it can, the same command goes on from the last checkpoint"
        ) from error


def begin(
    folder: pathlib.Path,
    config: ConfigDict,
    saved: Mapping[str, Any] | None,
    notify: Callable[[str], None] = print,
) -> None:
    """Writes the config of a run into its folder, and logs this start.

    Args:
      folder: the folder, which this process has claimed.
      config: the checked config.
      saved: the config that the newest checkpoint holds; None: there is no such checkpoint.
      notify: is told if the config in the folder was damaged.

    Raises:
      UserError: if there are checkpoints of another config.
    """
    # Until the first checkpoint nothing would be lost, and a slip in the config can be mended.
    if saved is not None or any(folder.glob(f"{CHECKPOINTS}/*")):
        before = _stored(folder, saved, notify)
        if changed := config_lib.differences(before, config):
            raise UserError(
                f"--workdir {folder} holds a run of another config: {'; '.join(changed)}; "
                "name another --workdir"
            )
    _replace(folder / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
    _log_start(folder)


def read_config(path: str | os.PathLike[str]) -> ConfigDict:
    """Returns the checked config of the run in a folder.

    Args:
      path: the folder.

    Raises:
      UserError: if there is no run, or its config can't be read.
    """
    folder = pathlib.Path(path)
    saved = None
    if os.path.isdir(folder / CHECKPOINTS):
        with contextlib.closing(Checkpoints(folder / CHECKPOINTS, 1, read_only=True)) as found:
            saved = found.config()
    if saved is None and not os.path.exists(folder / CONFIG):
        raise UserError(f"--workdir {path} holds no run: there is no {CONFIG} in it")
    return config_lib.validate(_stored(folder, saved, print))


def _check_kinds(folder: pathlib.Path) -> None:
    """Refuses to write to a pipe, or into a file that a link in the folder of a run points at."""
    for name in (LOCK, CONFIG, METRICS, STARTS, CHECKPOINTS, EVENTS):
        path = folder / name
        is_folder = name in (CHECKPOINTS, EVENTS)
        is_fine = path.is_dir() if is_folder else path.is_file() and not path.is_symlink()
        if os.path.lexists(path) and not is_fine:
            kind = "folder" if is_folder else "plain file"
            raise UserError(f"{path} is no {kind}; remove it, or name another --workdir")


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


def _stored(
    folder: pathlib.Path, saved: Mapping[str, Any] | None, notify: Callable[[str], None]
) -> Mapping[str, Any]:
    """Returns the config in a folder, or the one of the checkpoint if that was damaged."""
    file = folder / CONFIG
    try:
        stored = _read_json(file)
    except UserError:
        if saved is None:
            raise
    else:
        if saved is None or not config_lib.differences(saved, stored):
            return stored
    notify(f"{file} was damaged or altered: the config comes from the newest checkpoint")
    return saved


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        if not os.path.isfile(file):
            raise ValueError("it is no file")
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is too large for a config")
        value = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} can't be read: {error}; restore it or name another --workdir"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{file} does not hold a config; name another --workdir")
    return value


def provenance() -> dict[str, Any]:
    """Returns when, by which command, code and libraries, and on what this process runs."""
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
    log = folder / STARTS
    before = log.read_bytes() if log.exists() else b""
    separator = "\n" if before and not before.endswith(b"\n") else ""  # after a torn line
    with log.open("a") as file:
        file.write(f"{separator}{json.dumps(provenance())}\n")


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
