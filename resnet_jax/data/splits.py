"""Which images of a dataset are trained on, validate and test."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.datasets import Dataset, DatasetInfo, Examples
from resnet_jax.errors import UserError


def split_sizes(info: DatasetInfo, config: ConfigDict) -> dict[str, int]:
    """Returns the number of images of "train", "val" (if there is any) and "test".

    Args:
      info: the dataset.
      config: the group `data` of a config.

    Raises:
      UserError: as `split`.
    """
    train, test = sum(info.train_counts), sum(info.test_counts)
    if info.val_counts:
        return {"train": train, "val": sum(info.val_counts), "test": test}
    val = sum(_val_counts(info.train_counts, config.val_fraction))
    return {"train": train - val, **({"val": val} if val else {}), "test": test}


def split(dataset: Dataset, config: ConfigDict) -> dict[str, Examples]:
    """Returns the examples of "train", "val" (if there is any) and "test".

    The split is stratified: of each class the same share is set aside.

    Args:
      dataset: the whole dataset.
      config: the group `data` of a config.

    Raises:
      UserError: if the share set aside is too small for one image, or leaves none of a class.
    """
    if dataset.val is not None:
        return {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    train, counts = dataset.train, _val_counts(dataset.info.train_counts, config.val_fraction)
    if not any(counts):
        return {"train": train, "test": dataset.test}
    is_val = _set_aside(np.asarray(train.labels), counts, config.split_seed)
    parts = {"train": ~is_val, "val": is_val}
    splits = {name: Examples(train.images[p], train.labels[p]) for name, p in parts.items()}
    return splits | {"test": dataset.test}


def _set_aside(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """Returns which examples are set aside, bool `[examples]`: so many of each class, at random.

    Args:
      labels: integers `[examples]`.
      counts: how many of each class.
      seed: seed of the choice.
    """
    generator = np.random.PCG64(seed)
    chosen = np.zeros(len(labels), bool)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        # Sorting random words gives one permutation everywhere; Generator.permutation may change.
        order = np.argsort(generator.random_raw(len(members)), kind="stable")
        chosen[members[order[:count]]] = True
    return chosen


def _val_counts(counts: Sequence[int], fraction: float) -> list[int]:
    """Returns how many images of each class are set aside."""
    val = [round(fraction * count) for count in counts]
    if fraction > 0 and sum(val) == 0:
        raise UserError(
            f"config field data.val_fraction is {fraction}, too small a share of {sum(counts):,} "
            "training images to hold one of any class; raise it"
        )
    for label, (part, count) in enumerate(zip(val, counts, strict=True)):
        if count and part == count:
            raise UserError(
                f"config field data.val_fraction is {fraction}, which leaves no training image of "
                f"class {label}; lower it"
            )
    return val
