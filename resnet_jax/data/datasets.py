"""What a dataset is: what is known before it is loaded, its arrays, and its splits."""

import dataclasses
import hashlib
import math
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config.checks import Bounds, Count, checked
from resnet_jax.data.download import Progress
from resnet_jax.errors import UserError, shown

PARTS = ("train", "val", "test")
Size = Annotated[int, Bounds(0)]
Notify = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is, known before it is loaded and stored with each run.

    Attributes:
      name: its name.
      image_shape: height, width and channels.
      class_names: the names of the classes, by label.
      train_counts: training images of each class.
      val_counts: validation images of each class; empty: some of the training images are taken.
      test_counts: test images of each class.
      mean: mean of each channel, of pixels in [0, 1].
      std: deviation of each channel, of pixels in [0, 1].
      digest: identifies the bytes, in hexadecimal.
    """

    name: str
    image_shape: tuple[Count, Count, Count]
    class_names: tuple[str, ...]
    train_counts: tuple[Size, ...]
    val_counts: tuple[Size, ...]
    test_counts: tuple[Size, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str

    @classmethod
    def from_json(cls, value: Any) -> "DatasetInfo":
        """Returns what `dataclasses.asdict` made a dict of, after a way through JSON.

        Raises:
          UserError: it is no such dict.
        """
        hints = typing.get_type_hints(cls, include_extras=True)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise UserError(f"a dataset is described by {', '.join(hints)}, not {shown(value)}")
        info = cls(**{n: checked(f"the dataset's {n}", hints[n], value[n]) for n in hints})
        channels = info.image_shape[-1]
        if (len(info.mean), len(info.std)) != (channels, channels):
            raise UserError(f"the dataset's mean and std must have {channels} channels")
        counts = (info.train_counts, info.val_counts or info.train_counts, info.test_counts)
        if any(len(count) != len(info.class_names) for count in counts):
            raise UserError("the dataset's counts and class_names differ in length")
        return info


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images and their labels, on the host or on a device.

    Attributes:
      images: uint8 `[examples, height, width, channels]`, or `resnet_jax.data.parts.Encoded`.
      labels: int32 `[examples]`, an array.
    """

    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: jax.Array | np.ndarray) -> "Examples":
        """Returns those of some indices, integers `[batch]`."""
        return Examples(self.images[indices], self.labels[indices])


jax.tree_util.register_dataclass(Examples, ["images", "labels"], [])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A whole image dataset in memory.

    Attributes:
      info: what it is.
      train: the training images.
      test: the test images.
      source: a phrase for people: where the bytes came from.
      val: the validation images, where the dataset has its own.
    """

    info: DatasetInfo
    train: Examples
    test: Examples
    source: str
    val: Examples | None = None

    @classmethod
    def from_arrays(
        cls,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray,
        test_labels: np.ndarray,
        class_names: Sequence[str],
        name: str = "custom",
        *,
        val_images: np.ndarray | None = None,
        val_labels: np.ndarray | None = None,
    ) -> "Dataset":
        """Returns a dataset of a user's own arrays.

        Args:
          train_images: uint8 `[train, height, width, channels]`.
          train_labels: integers `[train]`, indices into `class_names`.
          test_images: uint8 `[test, height, width, channels]`.
          test_labels: integers `[test]`.
          class_names: the names of the classes, by label.
          name: name of the dataset.
          val_images: uint8 `[val, height, width, channels]`; None: some training images are taken.
          val_labels: integers `[val]`.

        Raises:
          UserError: a shape, a dtype or a label does not fit.
        """
        class_names = [str(name) for name in class_names]
        if len({*class_names}) < len(class_names):
            raise UserError("class_names has a name twice")
        given: dict[str, tuple[Any, Any]] = {
            "train": (train_images, train_labels),
            "test": (test_images, test_labels),
        }
        if val_images is not None or val_labels is not None:
            given["val"] = val_images, val_labels
        parts = {name: _examples(name, *arrays, len(class_names)) for name, arrays in given.items()}
        _, *shape = parts["train"].images.shape
        for part, examples in parts.items():
            if list(examples.images.shape[1:]) != shape:
                found = examples.images.shape[1:]
                raise UserError(f"{part} images are {found}, training images {shape}")
        arrays = [array for part in parts.values() for array in (part.images, part.labels)]
        digest = hashlib.sha256(repr([[*class_names], *(a.shape for a in arrays)]).encode())
        for array in arrays:
            digest.update(np.asarray(array, order="C").data)
        mean, std = channel_statistics(parts["train"].images)
        info = DatasetInfo(
            name=name,
            image_shape=tuple(shape),
            class_names=tuple(class_names),
            **{f"{part}_counts": _counts(parts.get(part), len(class_names)) for part in PARTS},
            mean=mean,
            std=std,
            digest=digest.hexdigest(),
        )
        return cls(info, source=f"arrays ({name})", **parts)

    def opened(self) -> "Opened":
        """Returns it as datasets by name are: loading it is done.

        Raises:
          UserError: if it has other images than `info` tells of.
        """
        for part in PARTS:
            found = _counts(getattr(self, part), len(self.info.class_names))
            if found != getattr(self.info, f"{part}_counts"):
                raise UserError(
                    f"the {part} images of the dataset are not those that its info counts; make "
                    "another one by Dataset.from_arrays"
                )
        return Opened(self.info, lambda notify, progress: self)


def check_pixels(what: str, images: np.ndarray) -> None:
    """Refuses what are no images as bytes."""
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise UserError(
            f"{what} must be uint8 [images, height, width, channels], "
            f"not {images.dtype} {list(images.shape)}"
        )


def _counts(part: Examples | None, num_classes: int) -> tuple[int, ...]:
    return () if part is None else count_labels(part.labels, num_classes)


def _examples(split: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> Examples:
    """Returns a user's arrays, checked."""
    images, labels = np.asarray(images), np.asarray(labels)
    check_pixels(f"{split}_images", images)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"{split}_labels must be integers [{len(images)}], not {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{split}_labels must be from 0 to {num_classes - 1}: see class_names")
    return Examples(images, labels.astype(np.int32))


class Opened(NamedTuple):
    """A dataset that is known but not loaded.

    Attributes:
      info: what it is.
      load: returns it in memory; called with what takes lines for people, and with what is told
        about every piece of a download (None: the first is, in plain lines).
    """

    info: DatasetInfo
    load: Callable[[Notify, Progress | None], Dataset]


def channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the deviation of each channel, of pixels in [0, 1].

    Args:
      images: uint8 `[images, height, width, channels]`.
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 256):  # bincount makes int64 of what it counts
        for count, pixels in zip(counts, images[start : start + 256].T, strict=True):
            count += np.bincount(pixels.ravel(), minlength=256)
    # In whole numbers, so that every machine finds the same bits: a run on another is refused.
    levels, size = np.arange(256), images.size // images.shape[-1]
    squares = [int(count @ levels**2) * size - int(count @ levels) ** 2 for count in counts]
    std = tuple(math.sqrt(square) / (255 * size) for square in squares)
    return tuple(int(count @ levels) / (255 * size) for count in counts), std


def count_labels(labels: Any, num_classes: int) -> tuple[int, ...]:
    """Returns how many of the labels, integers `[examples]`, are of each class."""
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def select_info(info: DatasetInfo, classes: Sequence[int]) -> DatasetInfo:
    """Returns the info of what `select_classes` leaves of a dataset.

    Raises:
      UserError: if a class is named twice or does not exist, or a part has no image of them.
    """
    if not classes:
        return info
    if len(set(classes)) < len(classes):
        raise UserError(f"config field data.classes names a class twice: {tuple(classes)}")
    if not all(0 <= label < len(info.class_names) for label in classes):
        raise UserError(
            f"config field data.classes: {info.name} has {len(info.class_names)} classes"
        )
    names = ("class_names", "train_counts", "val_counts", "test_counts")
    values = {name: getattr(info, name) for name in names}
    kept: Any = {name: tuple(of[label] for label in classes if of) for name, of in values.items()}
    if any(values[name] and not any(counts) for name, counts in kept.items()):
        raise UserError(f"config field data.classes: a part of {info.name} has no image of them")
    digest = hashlib.sha256(f"{info.digest} {tuple(classes)}".encode()).hexdigest()
    return dataclasses.replace(info, digest=digest, **kept)


def select_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Returns the images of some classes, with labels renumbered in their order.

    Args:
      dataset: the whole dataset.
      classes: labels to keep; empty: all.

    Raises:
      UserError: if a class is named twice or does not exist.
    """
    if not classes:
        return dataset
    info = select_info(dataset.info, classes)
    renumbered = np.full(len(dataset.info.class_names), -1, np.int32)
    renumbered[list(classes)] = np.arange(len(classes))

    def select(part: Examples) -> Examples:
        labels = renumbered[part.labels]
        return Examples(part.images[labels >= 0], labels[labels >= 0])

    return Dataset(
        info,
        select(dataset.train),
        select(dataset.test),
        f"{dataset.source} ({', '.join(info.class_names)} only)",
        dataset.val and select(dataset.val),
    )


def input_shape(info: DatasetInfo, config: ConfigDict) -> tuple[int, int, int]:
    """Returns the height, width and channels of what a model takes.

    Args:
      info: the dataset.
      config: the group `data` of a config.
    """
    size = config.image_size
    return (size, size, info.image_shape[-1]) if size else info.image_shape
