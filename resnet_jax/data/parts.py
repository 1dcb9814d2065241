"""Datasets whose labels are known at once and whose images are read when they are needed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from resnet_jax.data import image_files
from resnet_jax.data.cache import remembered
from resnet_jax.data.datasets import (
    Dataset,
    DatasetInfo,
    Examples,
    Notify,
    Opened,
    channel_statistics,
    count_labels,
)
from resnet_jax.data.image_files import Crop, File
from resnet_jax.errors import UserError

_AT_ONCE = 4096  # files, of which a dataset of tfds holds the contents while they are decoded


class Files(Protocol):
    """Image files by index, or their contents; other processes are sent it by pickle."""

    def __getitem__(self, index: int) -> File: ...


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images that are decoded when they are read.

    Attributes:
      files: the files of these images and perhaps of others.
      chosen: which of them, integers `[images]`.
      image_shape: height, width and channels that they are brought to.
    """

    files: Files
    chosen: np.ndarray
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, which: np.ndarray | slice) -> "Encoded":
        return dataclasses.replace(self, chosen=self.chosen[which])

    def read(self, crops: Sequence[Crop | None]) -> np.ndarray:
        """Returns the images one by one, uint8 `[images, *image_shape]`.

        Args:
          crops: what is cut out of each; None: its centre.

        Raises:
          UserError: as `resnet_jax.data.image_files.read`.
        """
        images = np.empty((len(self), *self.image_shape), np.uint8)
        for row, (index, crop) in enumerate(zip(self.chosen, crops, strict=True)):
            images[row] = image_files.read_one(self.files[int(index)], self.image_shape, crop)
        return images

    def read_all(self) -> np.ndarray:
        """Returns all images as `read` does, by many threads."""
        images = np.empty((len(self), *self.image_shape), np.uint8)
        for start in range(0, len(self), _AT_ONCE):
            part = self.chosen[start : start + _AT_ONCE]
            files = [self.files[int(index)] for index in part]
            images[start : start + len(part)] = image_files.read(files, self.image_shape)
        return images


def open_parts(
    name: str,
    source: str,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    labels: Mapping[str, np.ndarray],
    files: Mapping[str, Files],
    digest: str,
    state: str,
) -> Opened:
    """Returns a dataset of which labels are known and images are still to be read.

    Mean and deviation are those of up to 1,000 training images, evenly spread.

    Args:
      name: its name.
      source: a phrase for people: where the images come from.
      image_shape: height, width and channels.
      class_names: the names of the classes, by label.
      labels: int32 `[examples]` of "train", "test" and perhaps "val".
      files: the images of these parts.
      digest: identifies the images.
      state: identifies the files, and changes whenever they do.

    Raises:
      UserError: if these images are black, or one can't be read.
    """
    parts = {
        part: Examples(Encoded(files[part], np.arange(len(of_part)), image_shape), of_part)
        for part, of_part in labels.items()
    }
    every = -(-len(labels["train"]) // 1000)
    mean, std = remembered(
        f"mean and deviation of {digest} {state}",
        lambda: channel_statistics(parts["train"].images[::every].read_all()),
    )
    if not any(mean):
        raise UserError(
            f"{source}: the training images are black; of 16-bit greys the high byte counts, so "
            "scale them to all 16 bits, or save them with 8"
        )
    counts = {part: count_labels(of_part, len(class_names)) for part, of_part in labels.items()}
    info = DatasetInfo(
        name=name,
        image_shape=image_shape,
        class_names=tuple(class_names),
        train_counts=counts["train"],
        val_counts=counts.get("val", ()),
        test_counts=counts["test"],
        mean=tuple(mean),
        std=tuple(std),
        digest=digest,
    )
    return Opened(info, lambda notify, progress: Dataset(info, source=source, **parts))


def in_memory(dataset: Dataset, notify: Notify) -> Dataset:
    """Returns a dataset whose images are arrays; those that are not yet are read."""

    def read(examples: Examples) -> Examples:
        images = examples.images
        is_encoded = isinstance(images, Encoded)
        return Examples(images.read_all(), examples.labels) if is_encoded else examples

    train, test, val = dataset.train, dataset.test, dataset.val
    if isinstance(train.images, Encoded):
        count = sum(len(part) for part in (train, test, val) if part)
        notify(f"reading {count:,} images in {dataset.source}")
    return dataclasses.replace(dataset, train=read(train), test=read(test), val=val and read(val))


def sizes_differ() -> UserError:
    """Returns the error for images of several sizes where none is named."""
    return UserError(
        "the images have different sizes; say which they are brought to, in pixels "
        "(--config.data.image_size=224)"
    )
