"""Datasets whose labels are known at once and whose images are read part by part."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resnet_jax.data.datasets import (
    Dataset,
    DatasetInfo,
    Examples,
    Notify,
    Opened,
    channel_statistics,
    count_labels,
)
from resnet_jax.data.download import Progress
from resnet_jax.errors import UserError


def open_parts(
    name: str,
    source: str,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    labels: Mapping[str, np.ndarray],
    read: Callable[[str, int], np.ndarray],
    digest: str,
) -> Opened:
    """Returns a dataset of which labels are known and images are still to be read.

    Mean and deviation are those of up to 1,000 training images, evenly spread.

    Args:
      name: its name.
      source: a phrase for people: where the images come from.
      image_shape: height, width and channels.
      class_names: the names of the classes, by label.
      labels: int32 `[examples]` of "train", "test" and perhaps "val".
      read: returns every n-th image of a part, uint8 `[images, *image_shape]`.
      digest: identifies the images.
    """
    every = -(-len(labels["train"]) // 1000)
    measured = read("train", every)
    mean, std = channel_statistics(measured)
    counts = {part: count_labels(of_part, len(class_names)) for part, of_part in labels.items()}
    info = DatasetInfo(
        name=name,
        image_shape=image_shape,
        class_names=tuple(class_names),
        train_counts=counts["train"],
        val_counts=counts.get("val", ()),
        test_counts=counts["test"],
        mean=mean,
        std=std,
        digest=digest,
    )

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        del progress
        notify(f"reading {sum(map(len, labels.values())):,} images in {source}")
        images = {part: read(part, 1) for part in labels if part != "train" or every > 1}
        images.setdefault("train", measured)
        parts = {part: Examples(images[part], of_part) for part, of_part in labels.items()}
        return Dataset(info, source=source, **parts)

    return Opened(info, load)


def sizes_differ() -> UserError:
    """Returns the error for images of several sizes where none is named."""
    return UserError(
        "the images have different sizes; say which they are brought to, in pixels "
        "(--config.data.image_size=224)"
    )
