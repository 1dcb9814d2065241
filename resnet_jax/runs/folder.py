"""The folder of a run: its config and data set, its lock, and a log of its starts."""

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
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

from resnet_jax.config import load as config_lib
from resnet_jax.errors import FULL, UserError, shown, unwritable, without_secrets
from resnet_jax.files import is_within, write_atomically
from resnet_jax.platform import num_threads
from resnet_jax.runs.checkpoints import Checkpoints, Run

CONFIG = "config.json"
DATASET = "dataset.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVENTS = "events"
STARTS = "starts.jsonl"
LOCK = "lock"
SEARCH = "search.json"  # of the folder of a search, which is no run's

# What a full or read-only disk says of an open file, whose name it does not say.
_DISK = (*FULL, errno.EROFS)


@contextlib.contextmanager
def claim(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Makes or reopens the folder of a run, for this process alone.

    Args:
      path: the folder.

    Yields:
      The folder.

    Raises:
      UserError: if the folder can't be written, now or later, is in use, or holds a search.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_kinds(folder)
        with (folder / LOCK).open("a+") as lock:
            _lock(lock, folder)
            yield folder
    except OSError as error:
        if not _is_of(folder, error):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"--workdir {folder} can't be written: {error.strerror}{where}; "
            "once it can, the same command goes on from the last checkpoint"
        ) from error


def begin(
    folder: pathlib.Path,
    config: ConfigDict,
    info: Mapping[str, Any],
    saved: Run | None,
    notify: Callable[[str], None] = print,
    images: str = "resident",
) -> None:
    """Refuses to go on with another run, writes what this one is, and logs this start.

    What a run was trained with is in its checkpoints; the files are there to be read by people.

    Args:
      folder: the folder, which this process has claimed.
      config: the checked config.
      info: what is known of the data set, as JSON has it, "name" and "digest" among others.
      saved: what the newest checkpoint holds; None: there is no checkpoint, and nothing to lose.
      notify: called with a line if a file was not what the checkpoint holds.
      images: where they are while this start trains: "resident" or "streamed".

    Raises:
      UserError: if the checkpoint is of another config or of other data.
    """
    if saved is not None:
        if saved["dataset"].get("digest") != info["digest"]:
            raise UserError(
                f"--workdir {folder} holds a run on other data: {_data(saved['dataset'])}, not "
                f"{_data(info)}; name another --workdir"
            )
        # Whether a run may become longer is for the training to say.
        extended = {**saved["config"], "num_epochs": config.num_epochs}
        if changed := config_lib.differences(extended, config):
            raise UserError(
                f"--workdir {folder} holds a run of another config: {'; '.join(changed)}; "
                "name another --workdir"
            )
    views = {CONFIG: ("config", config.to_dict()), DATASET: ("dataset", info)}
    for name, (key, content) in views.items():
        file = folder / name
        known = [_text(saved[key]), _text(content)] if saved else []  # resumed twice without a step
        if saved and (not file.exists() or file.read_bytes() not in known):
            notify(f"{file} was not what the newest checkpoint holds: written anew")
        write_atomically(file, _text(content))
    before = [start.get("images") for start in starts(folder)[-1:]]
    if saved and config.augment.resized_crop and before not in ([], [images]):
        notify(f"images are {images} and were not before: files of images are cropped otherwise")
    _log_start(folder, images)


def read_run(path: str | os.PathLike[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns the checked config of a run and what is known of its data set, as JSON has it.

    Args:
      path: the folder of the run, which another process may be training.

    Raises:
      UserError: if there is no checkpoint that holds them, or the config is of another version.
    """
    saved = None
    if os.path.isdir(os.path.join(path, CHECKPOINTS)):
        directory = pathlib.Path(path) / CHECKPOINTS
        with contextlib.closing(Checkpoints(directory)) as checkpoints:
            saved = checkpoints.newest_run()
    if saved is None:
        raise UserError(f"--workdir {path} {_lack(path)}")
    return config_lib.validate(saved["config"]), saved["dataset"]


def dtype(path: str | os.PathLike[str]) -> str:
    """Returns the dtype that a run began in, and goes on in on any device; empty: it has not."""
    with contextlib.suppress(UserError, OSError):  # of which `claim` tells
        return str(read_run(path)[0].model.dtype)
    return ""


def _lack(path: str | os.PathLike[str]) -> str:
    """Returns what is wrong with a folder that holds no checkpoint."""
    if not os.path.isdir(path):
        return "is no folder" if os.path.exists(path) else "does not exist"
    if os.path.exists(os.path.join(path, SEARCH)):
        return "holds a search, whose runs are in trials/; ranking.md has their numbers"
    return f"holds no checkpoint of a run{' yet' * os.path.exists(os.path.join(path, CONFIG))}"


def _is_of(folder: pathlib.Path, error: OSError) -> bool:
    """Returns whether an error says that the folder of a run can't be written."""
    if not isinstance(error.filename, str | os.PathLike):
        return error.errno in _DISK
    inside = pathlib.Path(os.path.abspath(error.filename)).is_relative_to(os.path.abspath(folder))
    return (inside or not os.path.isdir(folder)) and unwritable(error) is not None


def check_apart(path: str | os.PathLike[str], data_name: str) -> None:
    """Refuses a run in the folder of its images, of whose classes it would be one."""
    kind, _, place = data_name.partition(":")
    root = os.path.expanduser(place)
    if kind != "folder" or not os.path.isdir(root) or os.path.isdir(os.path.join(root, "train")):
        return  # of a folder that is none another check tells
    if is_within(path, root):
        raise UserError(f"--workdir {path} is in {place}, whose folders are classes; name another")


def _check_kinds(folder: pathlib.Path) -> None:
    """Refuses to write to a pipe, or into a file that a link in the folder of a run points at."""
    if (folder / SEARCH).exists():
        raise UserError(f"--workdir {folder} holds a search; name another one for a run")
    for name in (LOCK, CONFIG, DATASET, METRICS, STARTS, CHECKPOINTS, EVENTS):
        path = folder / name
        is_folder = name in (CHECKPOINTS, EVENTS)
        is_fine = path.is_dir() if is_folder else path.is_file() and not path.is_symlink()
        if os.path.lexists(path) and not is_fine:
            kind = "folder" if is_folder else "plain file"
            raise UserError(f"{path} is no {kind}; remove it, or name another --workdir")
    if not (folder / LOCK).exists() and not (folder / CHECKPOINTS).exists():  # no run began here
        for name in (CONFIG, DATASET, METRICS):
            if (folder / name).exists():
                raise UserError(f"{folder / name} is of no run; move it, or name another --workdir")


def _lock(lock: Any, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise UserError(f"--workdir {folder} is in use by {lock.read().strip()}") from None
    except OSError as error:
        raise UserError(
            f"--workdir {folder} can't be locked ({error.strerror}); name a folder elsewhere"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def provenance() -> dict[str, Any]:
    """Returns when, by which command, code and libraries, and on what this process runs."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": without_secrets(shlex.join(sys.argv)),
        "commit": _commit(),
        "version": _version(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "cores": num_threads(),  # that it keeps busy
        "processes": jax.process_count(),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("resnet-flax-cifar")
    except importlib.metadata.PackageNotFoundError:  # run from a copy of the repository
        return "not installed"


def _log_start(folder: pathlib.Path, images: str) -> None:
    """Appends where and how this start of the run takes place."""
    log = folder / STARTS
    before = log.read_bytes() if log.exists() else b""
    separator = "\n" if before and not before.endswith(b"\n") else ""  # after a torn line
    with log.open("a") as file:
        file.write(f"{separator}{json.dumps(provenance() | {'images': images})}\n")


def told(start: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a start of a run is told outside of its folder: no command, no places.

    Args:
      start: one of `starts`.
    """
    names = ("time", "commit", "version", "python", "jax", "devices", "cores", "processes")
    return {name: start.get(name) for name in names}


def starts(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what the log tells of the starts of a run, oldest first; see `provenance`.

    Lines without a time and a commit are left out; else nothing is checked.
    """
    found, log = [], folder / STARTS
    for line in log.read_bytes().splitlines() if log.is_file() else []:
        try:
            start = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(start, dict) and {"time", "commit"} <= start.keys():
            found.append(start)
    return found


@functools.cache
def _commit() -> str | None:
    """Returns the commit of the checkout that this package was imported from; None without one."""
    here = pathlib.Path(__file__)
    git = ["git", "-C", str(here.parent)]
    ours = [*git, "ls-files", "--error-unmatch", here.name]  # it may be installed in another's
    describe = [*git, "describe", "--always", "--abbrev=40"]
    # Records and prose, which a series of runs writes on its way, change nothing of what runs.
    diff = [*git, "diff", "--quiet", "HEAD", "--", ":/"]
    diff += [":(exclude,top)results", ":(exclude,top)*.md"]
    try:
        subprocess.run(ours, capture_output=True, timeout=10, check=True)
        found = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
        is_dirty = subprocess.run(diff, capture_output=True, timeout=10).returncode == 1
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() + "-dirty" * is_dirty


def _data(info: Mapping[str, Any]) -> str:
    return f"{shown(info.get('name'), str)} (digest {shown(info.get('digest'), str)})"


def _text(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=2)}\n".encode()
