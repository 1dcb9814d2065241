"""Checkpoints with orbax: the newest and the best, each leaf with a digest, restored strictly.

A checkpoint is a folder named by its step, of three items: "state", the arrays; "run", the config
and the records so far; and "digests", the SHA-256 of each array and of "run". So whatever else in
the folder of a run is damaged can be checked against it, and written anew from it.
"""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_jax.errors import UserError, unwritable
from resnet_jax.runs.records import is_whole
from resnet_jax.trees import mismatch, named_leaves

Tree = TypeVar("Tree")
Arrays = dict[str, np.ndarray]
Run = Mapping[str, Any]

_RUN = "run"
_SPARE_BYTES = 2**20  # for what surrounds the arrays of a checkpoint


class DamagedError(Exception):
    """A checkpoint that can't be trusted; the message says why."""


class _NewestAndBest(preservation_policy.PreservationPolicy):
    """Keeps the newest checkpoints, and the best one however old it is."""

    def __init__(self, keep: int) -> None:
        self.best: int | None = None
        self._keep = keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether each checkpoint, oldest first, is kept."""
        newest = len(checkpoints) - self._keep
        return [i >= newest or info.step == self.best for i, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      directory: the folder that holds one folder per checkpoint, named by its step.
      notify: is told of every checkpoint that is passed over.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int,
        notify: Callable[[str], None] = print,
        read_only: bool = False,
    ) -> None:
        """Opens or creates the folder, and clears away what an interrupted save left there.

        Args:
          directory: the folder of the checkpoints.
          keep: number of newest checkpoints kept; the best is kept beside them.
          notify: is told of every checkpoint that is passed over.
          read_only: whether to leave the folder as it is; a run may be writing to it.
        """
        _quieten_orbax()
        self.directory = directory.absolute()
        self.notify = notify
        self._policy = _NewestAndBest(keep)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._writing: concurrent.futures.Future[None] | None = None
        if not read_only:
            self._clear_unfinished()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                read_only=read_only,
                enable_async_checkpointing=False,  # all of a save has a thread of its own here
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of which there is a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any, run: Run, best: int | None = None) -> None:
        """Starts to save a state; what was being saved before is completed first.

        Args:
          step: number of steps taken.
          state: a tree of arrays.
          run: what is saved beside it: "config", a dict, and "records", those of the run so far.
          best: step of the best checkpoint, which is kept; None: there is none.

        Raises:
          UserError: if the disk is full or can't be written.
        """
        self.wait()
        # Running out of space in mid-save, orbax fills the screen from its threads.
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        if shutil.disk_usage(self.directory).free < needed:
            raise _no_space(self.directory)
        # The next step may overwrite the arrays. A copy on the device does not wait for this one.
        copy = jax.tree.map(jnp.copy, state)
        self._writing = self._writer.submit(self._write, step, copy, run, best)

    def _write(self, step: int, state: Any, run: Run, best: int | None) -> None:
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(state)}
        digests = {name: _digest(array) for name, array in arrays.items()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            run=ocp.args.JsonSave(dict(run)),
            digests=ocp.args.JsonSave(digests | {_RUN: _run_digest(run)}),
        )
        self._policy.best = best
        with _disk_errors(self.directory, self._clear_unfinished):
            self._manager.save(step, args=items)

    def poll(self) -> None:
        """Raises the error of a save that has failed, if one has; never waits."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all that was to be saved is on disk.

        Raises:
          UserError: if the disk is full or can't be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def restore(self, template: Tree, step: int) -> Tree:
        """Returns the state saved at a step.

        Args:
          template: a tree of arrays of the right names, shapes and dtypes.
          step: one of `steps()`.

        Raises:
          DamagedError: if the checkpoint can't be read, was altered, or is of another model.
        """
        # Read first, a few bytes could become any number of gigabytes.
        if problem := mismatch(template, self._declared(step)):
            raise DamagedError(problem)
        arrays = self.read(step)
        if problem := mismatch(template, arrays):
            raise DamagedError(problem)
        return jax.tree.unflatten(
            jax.tree.structure(template), [arrays[name] for name, _ in named_leaves(template)]
        )

    def _declared(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of the arrays saved at a step, of which none is read."""
        try:
            found = ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / "state")
            for leaf in found.tree.values():
                if any(
                    c > max(n, 1) for c, n in zip(leaf.storage.chunk_shape, leaf.shape, strict=True)
                ):
                    raise ValueError("a chunk is larger than its array")
            return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in found.tree.items()}
        except Exception as error:  # see _load
            raise DamagedError(f"it can't be read ({_first_line(error)})") from error

    def read(self, step: int) -> Arrays:
        """Returns the arrays saved at a step, by their paths; see `restore`."""
        arrays, digests = self._load(step, "state", ocp.args.StandardRestore())
        for name, array in arrays.items():
            if digests.get(name) != _digest(np.asarray(array)):
                raise DamagedError(f"the digest of {name} differs")
        self._run(step)  # a checkpoint that lacks it is not whole
        return arrays

    def config(self) -> dict[str, Any] | None:
        """Returns the config in the newest checkpoint that has one; None: there is none."""
        run = self._newest_run()
        return run["config"] if run else None

    def records(self, step: int | None = None) -> list[dict[str, Any]] | None:
        """Returns the records of the run up to a step; None if an older version saved it.

        Args:
          step: one of `steps()`; None: the newest of which they can be read.

        Raises:
          DamagedError: if those of `step` can't be read or were altered.
        """
        run = self._newest_run() if step is None else self._run(step)
        return run["records"] if run else None

    def _newest_run(self) -> Run | None:
        for step in self.steps():
            with contextlib.suppress(DamagedError):
                if run := self._run(step):
                    return run
        return None

    def _run(self, step: int) -> Run | None:
        """Returns what was saved beside a state; None if an older version saved it."""
        args = ocp.args.JsonRestore()
        if not (self.directory / str(step) / _RUN).exists():
            _, digests = self._load(step, "digests", args)
            if _RUN in digests:
                raise DamagedError(f"{_RUN} is missing")
            return None
        run, digests = self._load(step, _RUN, args)
        if digests.get(_RUN) != _run_digest(run):
            raise DamagedError(f"the digest of {_RUN} differs")
        config, records = run.get("config"), run.get("records")
        is_list = isinstance(records, list) and all(map(is_whole, records))
        if not isinstance(config, dict) or not is_list:
            raise DamagedError(f"{_RUN} holds no config and records")
        return run

    def _load(self, step: int, item: str, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns an item of a checkpoint, and its digests."""
        items = {item: args, "digests": ocp.args.JsonRestore()}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            return dict(found[item]), dict(found["digests"])
        except Exception as error:  # orbax raises whatever its many backends raise
            raise DamagedError(f"it can't be read ({_first_line(error)})") from error

    def restore_newest(self, template: Tree) -> Tree | None:
        """Returns the newest state that is whole; None if nothing was ever saved.

        Checkpoints that are damaged are passed over with a notice and removed.

        Args:
          template: a tree of arrays of the right names, shapes and dtypes.

        Raises:
          UserError: if there are checkpoints but none of them can be used.
        """
        steps = self.steps()
        for step in steps:
            try:
                state = self.restore(template, step)
            except DamagedError as error:
                self.notify(f"checkpoint {step} is damaged: {error}; trying the next older one")
                continue
            for damaged in (s for s in steps if s > step):
                self._manager.delete(damaged)
            return state
        if steps:
            raise UserError(
                f"no checkpoint in {self.directory} can be used; "
                "name another --workdir, or remove that folder to start anew"
            )
        return None

    def close(self) -> None:
        """Completes what is being saved and releases the folder."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def _clear_unfinished(self) -> None:
        """Removes the temporary, empty and half-deleted folders of interrupted saves."""
        for folder in self.directory.glob("*"):
            items = all((folder / item).is_dir() for item in ("state", "digests"))
            whole = folder.name.isdigit() and items
            if folder.is_dir() and not (whole or folder.is_symlink()):
                if folder.name.isdigit():
                    self.notify(f"checkpoint {folder.name} is incomplete: removed")
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(directory: pathlib.Path, clear: Callable[[], None]) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into one line, after clearing up."""
    try:
        yield
    except Exception as error:
        number = unwritable(error)
        if number is None:
            raise
        clear()
        if number == errno.ENOSPC:
            raise _no_space(directory) from error
        raise UserError(
            f"can't write to {directory}: {os.strerror(number)}; "
            "once it can be written, the same command goes on from the last checkpoint"
        ) from error


@functools.cache
def _quieten_orbax() -> None:
    """Keeps off the screen what orbax and its threads say of errors that they raise too."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # Threads report to an event loop that the error has ended already.
    unraisablehook, excepthook = sys.unraisablehook, sys.excepthook

    def on_unraisable(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            unraisablehook(unraisable)

    def on_exception(kind: Any, error: BaseException, trace: Any) -> None:
        if str(error) != "Event loop is closed":
            excepthook(kind, error, trace)

    sys.unraisablehook, sys.excepthook = on_unraisable, on_exception


def _no_space(directory: pathlib.Path) -> UserError:
    return UserError(
        f"no space left for a checkpoint on the disk of {directory}; "
        "make some, then the same command goes on from the last checkpoint"
    )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _run_digest(run: Run) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
