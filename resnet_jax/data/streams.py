"""Images that are read when they are needed: grain's processes decode them ahead of the step.

What and in which order is our own: a function of (seed, step). So a stream begins at any step.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.data.image_files import Crop
from resnet_jax.data.order import padded_batches
from resnet_jax.data.parts import Encoded
from resnet_jax.errors import UserError
from resnet_jax.platform import machine_memory, num_threads
from resnet_jax.randomness import Purpose

_PIECE = 64  # images that a process decodes and hands over at once
_BATCHES_AHEAD = 2
_CPU_BYTES = 2_000_000_000


def is_resident(info: DatasetInfo, config: ConfigDict) -> bool:
    """Returns whether all images of a dataset are kept on the device, as bytes.

    They are if they fit `data.resident_bytes`, by default a third of the device's memory, at most
    2 GB on a CPU.

    Args:
      info: the dataset.
      config: the group `data` of a config.
    """
    count = sum(map(sum, (info.train_counts, info.val_counts, info.test_counts)))
    limit = config.resident_bytes
    if limit < 0:
        memory = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
        limit = memory.get("bytes_limit", min(3 * _CPU_BYTES, machine_memory())) // 3
    return count * math.prod(info.image_shape) <= limit


class ExampleBatch(Examples):
    """The examples of one batch; on the host the images are those that its process reads."""

    def at(self, indices: jax.Array | np.ndarray) -> Examples:
        """Returns all of them: those of the indices are what a stream has brought."""
        return self


jax.tree_util.register_dataclass(ExampleBatch, ["images", "labels"], [])


class Plan(Protocol):
    """The image indices of each batch, int32 `[batch]`, and its epoch; the first is the largest."""

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]: ...


class Share(NamedTuple):
    """What one of many processes reads of a batch: that of its own devices, if they divide it.

    Attributes:
      process: which one it is.
      processes: how many there are.
      devices: how many devices they have together.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1

    def of(self, indices: np.ndarray) -> np.ndarray:
        """Returns those of a batch's indices that this process reads."""
        if len(indices) % self.devices:
            return indices
        size = len(indices) // self.processes
        return indices[self.process * size : (self.process + 1) * size]


_ALL = Share()


class Stream:
    """The examples of a split, on the host, which are read batch by batch.

    Attributes:
      labels: int32 `[examples]`.
      crops: whether image files are cut at random here, as `augment.resized_crop` says, so that
        nobody does it later.
    """

    def __init__(
        self,
        examples: Examples,
        config: ConfigDict,
        is_training: bool = False,
        share: Share = _ALL,
    ) -> None:
        """Binds what is read; nothing is, yet.

        Args:
          examples: the images, arrays or `Encoded`, and their labels.
          config: the whole config.
          is_training: whether they are augmented.
          share: what this process reads of a batch.
        """
        self._share = share
        self.labels = np.asarray(examples.labels)
        smallest = config.augment.resized_crop if is_training else 0.0
        is_encoded = isinstance(examples.images, Encoded)
        self.crops = bool(smallest) and is_encoded
        self._read = _Reader(examples.images, config.seed, smallest)
        workers = config.data.workers if config.data.workers >= 0 else num_threads() - 1
        self._workers = workers if is_encoded else 0  # of arrays each would have a copy

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, epoch: int) -> ExampleBatch:
        """Returns the batch of some indices, int32 `[batch]`, as the epoch has it."""
        return ExampleBatch(self._read(self._share.of(indices), epoch), self.labels[indices])

    def batches(self, plan: Plan, start: int, stop: int) -> Generator[ExampleBatch]:
        """Yields batches of a plan, read ahead by `data.workers` processes; arrays by a thread.

        They begin with the first batch, and end when the generator or this process does.

        Raises:
          UserError: if a file can't be read, or a process ends unasked.
        """
        import grain  # takes long, and most runs are resident

        parts = -(-len(self._share.of(plan[0][0])) // _PIECE)
        piece = functools.partial(_piece, self._read, plan, self._share, parts)
        pieces = grain.MapDataset.range(start * parts, stop * parts).map(piece)
        ahead = _BATCHES_AHEAD * parts
        threads = (0, 0) if self._workers else (1, ahead)
        options = grain.MultiprocessingOptions(self._workers, -(-ahead // max(self._workers, 1)))
        read = pieces.to_iter_dataset(grain.ReadOptions(*threads))
        iterator = iter(read.mp_prefetch(options, worker_init_fn=_end_with_parent))
        try:
            with _signals_kept_from_children():
                found = itertools.chain([next(iterator)], iterator)
            for batch in range(start, stop):
                # A copy, since the pieces are in memory that is shared with the processes.
                images = np.concatenate([*itertools.islice(found, parts)])
                yield ExampleBatch(np.asarray(images), self.labels[plan[batch][0]])
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "a process that decodes images ended unasked; memory or /dev/shm may be short "
                "(docker run --ipc=host, or data.workers=0); a script that trains needs "
                "`if __name__ == '__main__':`"
            ) from error
        finally:
            iterator.close()


def feed(examples: Examples | Stream, plan: Plan, start: int, stop: int) -> Generator[Examples]:
    """Yields what each step of a plan takes its images from: a stream's batch, or all of them."""
    if isinstance(examples, Stream):
        yield from examples.batches(plan, start, stop)
    else:
        yield from itertools.repeat(examples, stop - start)


def read_now(examples: Examples | Stream, indices: np.ndarray, epoch: int) -> Examples:
    """Returns what the images of some indices, int32 `[batch]`, are taken from, read at once."""
    return examples.read(indices, epoch) if isinstance(examples, Stream) else examples


def padded_reads(
    examples: Examples | Stream, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Examples]]:
    """Yields what `padded_batches` does, and what each batch takes its images from."""
    batches = list(padded_batches(len(examples), batch_size))
    reads = feed(examples, [(indices, 0) for indices, _ in batches], 0, len(batches))
    with contextlib.closing(reads):
        for (indices, mask), read in zip(batches, reads, strict=True):
            yield indices, mask, read


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads images; all of it is sent to the processes."""

    images: Any
    seed: int
    smallest_crop: float

    def __call__(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        if not isinstance(self.images, Encoded):
            return np.asarray(self.images[indices])
        return self.images[indices].read([self._crop(int(i), epoch) for i in indices])

    def _crop(self, index: int, epoch: int) -> Crop | None:
        """Returns the rectangle of an image, drawn as `augment.random_resized_crop` does."""
        if not self.smallest_crop:
            return None
        key, counter = [self.seed, Purpose.CROP << 32 | epoch], [0, 0, 0, index]
        words = np.random.Philox(key=key, counter=counter).random_raw(4)
        area, ratio, left, top = (words >> 11) * 2.0**-53
        area = self.smallest_crop + (1 - self.smallest_crop) * area
        return Crop(area, (4 / 3) ** (2 * ratio - 1), left, top)


def _piece(read: _Reader, plan: Plan, share: Share, parts: int, index: int) -> np.ndarray:
    """Returns one of the pieces of a plan's batches that many processes can share."""
    batch, part = divmod(index, parts)
    indices, epoch = plan[batch]
    return read(np.array_split(share.of(indices), parts)[part], epoch)


def _end_with_parent(index: int, count: int) -> None:
    """Makes a worker process end when its parent does, however that happens."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """Starts processes that Ctrl-C does not reach: what they are to do is for this one to say."""
    # Python's process that frees what a killed one shared would tell of it; and its start would let
    # the signals through again.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    resource_tracker.ensure_running()
    sys.warnoptions.pop()
    stopping = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
