"""The order of the images: which make up each training step, and padded evaluation batches."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.randomness import Purpose


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
    """Which images make up each training step: a function of (seed, step) alone.

    Attributes:
      seed: seed of the run.
      num_examples: number of training images.
      batch_size: images per step.
      shuffle: whether every epoch has an order of its own.
      drop_last: whether an epoch's incomplete last batch is left out.
    """

    seed: int
    num_examples: int
    batch_size: int
    shuffle: bool
    drop_last: bool

    def __post_init__(self) -> None:
        """Refuses a batch that no epoch can fill."""
        if self.steps_per_epoch == 0:
            raise UserError(
                f"config field batch_size is {self.batch_size} but there are only "
                f"{self.num_examples} training images; lower it, or set data.drop_last=False"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of training steps in an epoch."""
        if self.drop_last:
            return self.num_examples // self.batch_size
        return -(-self.num_examples // self.batch_size)

    @property
    def images_per_step(self) -> float:
        """Mean number of images in a training step, of which an epoch's last may have fewer."""
        return min(self.batch_size, self.num_examples / self.steps_per_epoch)

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the order of the images in an epoch, int32 `[num_examples]`, read-only."""
        return _order(self.seed, epoch, self.num_examples, self.shuffle)

    def __getitem__(self, step: int) -> tuple[np.ndarray, int]:
        """Returns the image indices of a step, int32 `[batch]`, and its epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return self.epoch(epoch)[start : start + self.batch_size], epoch

    def dispatches(self, start: int, stop: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields runs of steps that one call of the compiled function can take.

        Args:
          start: first global step.
          stop: the global step to end before.
          size: largest number of steps in a run.

        Yields:
          Pairs of the first step of the run and its image indices, int32 `[steps, batch]`. A run
          stays inside one epoch, and its batches have one size.
        """
        while start < stop:
            epoch, first = divmod(start, self.steps_per_epoch)
            order = self.epoch(epoch)
            last = min(self.steps_per_epoch, first + stop - start)
            full = self.num_examples // self.batch_size
            while first < last:
                end = min(first + size, last, full if first < full else last)
                indices = order[first * self.batch_size : end * self.batch_size]
                yield start, indices.reshape(end - first, -1)
                start, first = start + end - first, end


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_examples: int, shuffle: bool) -> np.ndarray:
    order = np.arange(num_examples)
    if shuffle:
        # Sorted random words give one permutation everywhere; Generator.permutation may change.
        words = np.random.Philox(key=[seed, Purpose.ORDER << 32 | epoch]).random_raw(num_examples)
        order = np.argsort(words, kind="stable")
    order = order.astype(np.int32)
    order.flags.writeable = False
    return order


def padded_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every index once, in batches of one size.

    Args:
      num_examples: number of images.
      batch_size: images per batch.

    Yields:
      Pairs of indices, int32 `[batch_size]`, and a mask, float32 `[batch_size]`, that is 0 for
      the padding of the last batch.
    """
    for start in range(0, num_examples, batch_size):
        positions = np.arange(start, start + batch_size)
        mask = positions < num_examples
        yield np.where(mask, positions, 0).astype(np.int32), mask.astype(np.float32)
