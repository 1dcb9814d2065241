"""Checkpoints with orbax: the newest and the best, each array with a digest, restored strictly.

A checkpoint is a folder named by its step, of three items: "state", the arrays; "run", the config,
the data set and the scores so far; and "digests", the SHA-256 of each array and of "run".
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.errors import UserError, is_passing, unwritable
from resnet_jax.files import sync
from resnet_jax.runs.records import is_number
from resnet_jax.trees import mismatch, named_leaves, with_leaves

Tree = TypeVar("Tree")
Run = Mapping[str, Any]

FORMAT = 1

_RUN = "run"
_ITEMS = frozenset({"state", _RUN, "digests"})
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of what orbax has not finished
_FILES = frozenset({"_CHECKPOINT_METADATA", "commit_success.txt"})  # orbax's own
_SPARE_BYTES = 2**20  # for what surrounds the arrays of a checkpoint


class DamagedError(Exception):
    """A checkpoint that can't be trusted; the message says why."""


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      directory: the folder that holds one folder per checkpoint, named by its step.
      notify: called with a line for every checkpoint that is passed over.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = 0,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Opens the folder; of a run that writes it, makes it and clears away unfinished saves.

        Args:
          directory: the folder of the checkpoints.
          keep: number of newest checkpoints kept, and the best one beside them; 0: the folder is
            left as it is, a run may be writing to it.
          notify: called with a line for every checkpoint that is passed over.

        Raises:
          UserError: if something else in the folder has the name of a checkpoint.
        """
        self.directory = directory.absolute()
        self.notify = notify
        self._keep = keep
        if keep:
            self.directory.mkdir(exist_ok=True)
            self._clear_unfinished()
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._writing: concurrent.futures.Future[None] | None = None
        # Of many processes only the one that calls it takes part.
        this = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
        )
        # All of a save has a thread of its own here.
        options = ocp.CheckpointManagerOptions(
            read_only=not keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=alone,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of which there is a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any, run: Run, best: int | None = None) -> None:
        """Starts to save a state; what was being saved before is completed first.

        Args:
          step: number of steps taken.
          state: a tree of arrays.
          run: what is saved beside it: "config" and "dataset", dicts; "scores", pairs of a step and
            an accuracy; and "num_records", the number of records so far.
          best: step of the best checkpoint, which is kept; None: there is none.

        Raises:
          UserError: if the disk is full or can't be written.
        """
        self.wait()
        # Running out of space in mid-save, orbax fills the screen from its threads.
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        if shutil.disk_usage(self.directory).free < needed:
            raise self._unwritable(errno.ENOSPC)
        # The next step may overwrite the arrays. A copy on a device does not wait for this one.
        copy = jax.tree.map(lambda leaf: jnp.copy(jnp.asarray(leaf).addressable_data(0)), state)
        self._writing = self._writer.submit(self._write, step, copy, run, best)

    def _write(self, step: int, state: Any, run: Run, best: int | None) -> None:
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(state)}
        digests = {name: _digest(array) for name, array in arrays.items()}
        run = {"format": FORMAT, **run}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            run=ocp.args.JsonSave(run),
            digests=ocp.args.JsonSave(digests | {_RUN: _run_digest(run)}),
        )
        try:
            self._manager.save(step, args=items)
            sync(self.directory / str(step))  # before older ones go; orbax leaves it to the system
            for old in self.steps()[self._keep :]:
                if old != best:
                    with contextlib.suppress(OSError):  # a reader has it, on NFS: the next save's
                        self._manager.delete(old)
        except Exception as error:  # orbax raises whatever its many backends raise
            number = unwritable(error)
            if number is None:
                raise
            self._clear_unfinished()
            raise self._unwritable(number) from error

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

    def restore(self, template: Tree, step: int, without: str | None = None) -> Tree:
        """Returns the state saved at a step.

        Args:
          template: a tree of arrays of the right names, shapes and dtypes.
          step: one of `steps()`.
          without: part of the state that is not read: the template's stands in its place.

        Raises:
          DamagedError: if the checkpoint can't be read, was altered, or is of another model.
          UserError: if it has another format.
        """
        self.run(step)
        # Read first, a few bytes could become any number of gigabytes.
        if problem := mismatch(template, self._declared(step)):
            raise DamagedError(problem)
        leaves = dict(named_leaves(template))
        leaves |= self.read(step, [name for name in leaves if name.partition("/")[0] != without])
        if problem := mismatch(template, leaves):
            raise DamagedError(problem)
        return with_leaves(template, leaves)

    def restore_newest(self, template: Tree) -> Tree | None:
        """Returns the newest state that is whole; None if nothing was ever saved.

        Checkpoints that are damaged are passed over with a notice and removed.

        Args:
          template: a tree of arrays of the right names, shapes and dtypes.

        Raises:
          UserError: if there are checkpoints but none of them can be used.
        """
        steps = self.steps()
        for index, step in enumerate(steps):
            try:
                state = self.restore(template, step)
            except DamagedError as error:
                if is_passing(error.__cause__):
                    where = f"checkpoint {step} in {self.directory}"
                    raise UserError(f"{where}: {error}; the same command tries again") from error
                self.notify(f"checkpoint {step} is damaged: {error}; trying the next older one")
                continue
            for damaged in steps[:index]:
                self._manager.delete(damaged)
            return state
        self._refuse(steps)
        return None

    def read(self, step: int, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Returns arrays saved at a step by their paths, None: all; see `restore`."""
        kinds = dict.fromkeys(names or self._declared(step), ocp.RestoreArgs(np.ndarray))
        args = ocp.args.PyTreeRestore(dict(kinds), restore_args=kinds, partial_restore=True)
        arrays, digests = self._load(step, "state", args)
        for name, array in arrays.items():
            if digests.get(name) != _digest(np.asarray(array)):
                raise DamagedError(f"the digest of {name} differs")
        return arrays

    def newest_run(self) -> Run | None:
        """Returns what was saved beside the newest state of which it can be read; None: no state.

        Raises:
          UserError: if there are checkpoints but it can be read of none, or it has another format.
        """
        steps = self.steps()
        for step in steps:
            with contextlib.suppress(DamagedError):
                return self.run(step)
        self._refuse(steps)
        return None

    def run(self, step: int) -> Run:
        """Returns what was saved beside the state of a step; see `save`.

        Raises:
          DamagedError: if it can't be read or was altered.
          UserError: if it has another format.
        """
        run, digests = self._load(step, _RUN, ocp.args.JsonRestore())
        if digests.get(_RUN) != _run_digest(run):
            raise DamagedError(f"the digest of {_RUN} differs")
        if run.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {step} in {self.directory} has another format than {FORMAT}, the one "
                "of this version; name another --workdir"
            )
        try:
            numbers = [
                run["num_records"],
                *(n for step, score in run["scores"] for n in (step, score)),
            ]
            is_whole = all(isinstance(run[key], dict) for key in ("config", "dataset"))
            is_whole &= all(map(is_number, numbers))
        except (LookupError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise DamagedError(f"{_RUN} lacks what it should hold")
        return run

    def _declared(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of the arrays saved at a step, of which none is read."""
        try:
            found = ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / "state")
            for leaf in found.tree.values():
                limits = [max(size, 1) for size in leaf.shape]
                if any(np.greater(leaf.storage.chunk_shape, limits)):
                    raise ValueError("a chunk is larger than its array")
            return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in found.tree.items()}
        except Exception as error:  # see _load
            raise _unreadable(error) from error

    def _load(self, step: int, item: str, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns an item of a checkpoint, and its digests."""
        items = {item: args, "digests": ocp.args.JsonRestore()}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            return dict(found[item]), dict(found["digests"])
        except Exception as error:  # orbax raises whatever its many backends raise
            raise _unreadable(error) from error

    def close(self) -> None:
        """Completes what is being saved and releases the folder."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def _clear_unfinished(self) -> None:
        """Removes what interrupted saves and deletions left, and nothing that they can't leave."""
        for folder in self.directory.glob("*"):
            is_folder = folder.is_dir() and not folder.is_symlink()
            if folder.name.isdigit():
                parts = {path.name for path in folder.iterdir()} if is_folder else set()
                if parts >= _ITEMS:
                    continue
                foreign = {name for name in parts - _ITEMS - _FILES if _TEMPORARY not in name}
                if foreign or not is_folder:
                    raise UserError(f"{folder} is no checkpoint; move it to another place")
                self.notify(f"checkpoint {folder.name} is incomplete: removed")
            if is_folder and (folder.name.isdigit() or _TEMPORARY in folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _unwritable(self, number: int) -> UserError:
        return UserError(
            f"no checkpoint can be written to {self.directory}: {os.strerror(number)}; once it "
            "can, the same command goes on from the last checkpoint"
        )

    def _refuse(self, steps: Sequence[int]) -> None:
        """Raises if there are checkpoints, of which none can be used."""
        if steps:
            raise UserError(
                f"no checkpoint in {self.directory} can be used; "
                "name another --workdir, or remove that folder to start anew"
            )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _run_digest(run: Run) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _unreadable(error: Exception) -> DamagedError:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return DamagedError(f"it can't be read ({line[:120]})")
