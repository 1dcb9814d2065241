"""Batches: splits of a dataset, the order of its images, and padded evaluation batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import randomness as keys
from resnet_jax.data.batches import CLASS_NAMES
from resnet_jax.data.sources import Dataset, load_dataset, train_val_split
from resnet_jax.errors import UserError

IMAGE_SHAPE, TRAIN_IMAGES = (32, 32, 3), 50_000  # of CIFAR-10


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images and their labels, on the host or on a device.

    Attributes:
      images: uint8 `[examples, height, width, channels]`.
      labels: int32 `[examples]`.
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array

    def __len__(self) -> int:
        return len(self.labels)

    def on_device(self, sharding: jax.sharding.Sharding) -> "Examples":
        """Returns the same examples in device memory."""
        return Examples(*jax.device_put((self.images, self.labels), sharding))


jax.tree_util.register_dataclass(Examples, ["images", "labels"], [])


def load(config: ConfigDict, notify: Callable[[str], None]) -> Dataset:
    """Returns the dataset that a config names.

    Args:
      config: the group `data` of a config.
      notify: is told what is passed over and fetched.

    Raises:
      UserError: if it can't be had, or a class is named twice.
    """
    dataset = load_dataset(config.source, config.dir or None, notify)
    return select_classes(dataset, config.classes)


def class_names(config: ConfigDict, num_classes: int) -> list[str]:
    """Returns a name for each logit of a model; those that no class of the data has are numbers.

    Args:
      config: the group `data` of a config.
      num_classes: number of logits.
    """
    names = [CLASS_NAMES[label] for label in config.classes or range(len(CLASS_NAMES))]
    return names + [f"class {label}" for label in range(len(names), num_classes)]


def input_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Returns the height, width and channels of what a model takes.

    Args:
      config: the group `data` of a config.
    """
    return (config.image_size, config.image_size, 3) if config.image_size else IMAGE_SHAPE


def select_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Returns the images of some classes, with labels renumbered in their order.

    Args:
      dataset: the whole dataset.
      classes: labels to keep; empty: all.

    Raises:
      UserError: if a class is named twice.
    """
    if not classes:
        return dataset
    if len(set(classes)) < len(classes):
        raise UserError(f"config field data.classes names a class twice: {tuple(classes)}")

    def select(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        renumbered = np.full(len(dataset.class_names), -1, np.int32)
        renumbered[list(classes)] = np.arange(len(classes))
        kept = renumbered[labels] >= 0
        return images[kept], renumbered[labels[kept]]

    names = tuple(dataset.class_names[label] for label in classes)
    return Dataset(
        *select(dataset.train_images, dataset.train_labels),
        *select(dataset.test_images, dataset.test_labels),
        class_names=names,
        source=f"{dataset.source} ({', '.join(names)} only)",
    )


def split(dataset: Dataset, config: ConfigDict) -> dict[str, Examples]:
    """Returns the examples of "train", "val" (where there are any) and "test".

    Args:
      dataset: the whole dataset.
      config: the group `data` of a config.

    Raises:
      UserError: if the share set aside is too small for one image, or leaves none to train on.
    """
    train, val = train_val_split(dataset.train_labels, config.val_fraction, config.split_seed)
    splits = {
        "train": Examples(dataset.train_images[train], dataset.train_labels[train]),
        "test": Examples(dataset.test_images, dataset.test_labels),
    }
    if config.val_fraction > 0:
        if len(val) == 0:
            raise UserError(
                f"config field data.val_fraction is {config.val_fraction}, too small a share of "
                f"{len(train):,} training images to hold one of any class; raise it"
            )
        splits["val"] = Examples(dataset.train_images[val], dataset.train_labels[val])
    return splits


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
    """Which images make up each training step: a function of (seed, step) alone.

    Attributes:
      seed_key: `jax.random.key(seed)`.
      num_examples: number of training images.
      batch_size: images per step.
      shuffle: whether every epoch has an order of its own.
      drop_last: whether an epoch's incomplete last batch is left out.
    """

    seed_key: jax.Array
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

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the order of the images in an epoch, int32 `[num_examples]`."""
        if not self.shuffle:
            return np.arange(self.num_examples, dtype=np.int32)
        key = keys.derive(self.seed_key, keys.Purpose.ORDER, epoch)
        return np.asarray(jax.random.permutation(key, self.num_examples), np.int32)

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
