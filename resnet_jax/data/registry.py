"""Datasets by name: what the config field data.name may be."""

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import cifar10, folders, sample, sources, tfds
from resnet_jax.data.datasets import (
    Dataset,
    DatasetInfo,
    Examples,
    Notify,
    Opened,
    select_classes,
    select_info,
)
from resnet_jax.data.download import PlainProgress, Progress, reading
from resnet_jax.data.parts import in_memory
from resnet_jax.data.published import PUBLISHED, open_published
from resnet_jax.data.streams import is_resident
from resnet_jax.errors import UserError, unknown


def open_cifar10(rest: str, config: ConfigDict) -> Opened:
    """50,000 + 10,000 photographs of 32x32 pixels in 10 classes; data.source says where from."""
    info = _cifar10_info("cifar10", cifar10.MD5, 5_000, 1_000)

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        progress = progress or PlainProgress(notify)
        content, phrase = sources.fetch(config.source, config.dir or None, notify, progress)
        names = cifar10.TRAIN_NAMES, cifar10.TEST_NAMES
        train, test = (Examples(*cifar10.unpack(content, split)) for split in names)
        return Dataset(info, train, test, phrase)

    return Opened(info, load)


def open_sample(rest: str, config: ConfigDict) -> Opened:
    """The 640 + 320 images of CIFAR-10 that the package holds."""
    info = _cifar10_info("cifar10_sample", sample.SHA256, *sample.PER_CLASS.values())

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        train, test = (Examples(*sample.load(split)) for split in sample.PER_CLASS)
        return Dataset(info, train, test, sample.PHRASE)

    return Opened(info, load)


def open_npz(path: str, config: ConfigDict) -> Opened:
    """npz:FILE, arrays {train,test}_{images,labels} [, val_images, val_labels, class_names]."""
    path = os.path.expanduser(path)
    needed = ("train_images", "train_labels", "test_images", "test_labels")
    with reading(f"{path} (config field data.name)"), np.load(path, allow_pickle=False) as file:
        known = *needed, "val_images", "val_labels", "class_names"
        arrays = {name: file[name] for name in known if name in file}
    if missing := [name for name in needed if name not in arrays]:
        raise UserError(f"config field data.name: {path} lacks the array {missing[0]}")
    labels = arrays["train_labels"]
    count = 1 + int(labels.max(initial=0)) if labels.dtype.kind in "iu" else 1
    names = np.atleast_1d(arrays.pop("class_names", np.arange(min(count, 1_000_000)))).tolist()
    texts = [n.decode(errors="backslashreplace") if isinstance(n, bytes) else n for n in names]
    dataset = Dataset.from_arrays(**arrays, class_names=texts, name=f"npz:{path}")
    return Opened(dataset.info, lambda notify, progress: dataset)


class Registered(NamedTuple):
    """What data.name may be.

    Attributes:
      help: what it is, and its size where that is known.
      open: opens it; called with what stands after the colon of data.name, and the group `data`.
    """

    help: str
    open: Callable[[str, ConfigDict], Opened]


def _published(name: str) -> Registered:
    info = PUBLISHED[name].info
    sizes = f"{sum(info.train_counts):,} + {sum(info.test_counts):,} images"
    height, width, channels = info.image_shape
    return Registered(
        f"{sizes} of {height}x{width}x{channels}, {len(info.class_names)} classes; fetched once",
        lambda rest, config: open_published(name, config),
    )


def _by_tfds(name: str, sizes: str) -> Registered:
    return Registered(
        f"{sizes}; prepared by tfds as {name}", lambda rest, config: tfds.open_tfds(name, config)
    )


DATASETS: Mapping[str, Registered] = {
    "cifar10": Registered(
        "50,000 + 10,000 images of 32x32x3, 10 classes; data.source says where from", open_cifar10
    ),
    "sample": Registered("640 + 320 images of CIFAR-10, in the package", open_sample),
    **{name: _published(name) for name in PUBLISHED},
    "stl10": _by_tfds("stl10", "5,000 + 8,000 images of 96x96x3, 10 classes"),
    "imagenette": _by_tfds("imagenette/320px-v2", "9,469 + 3,925 photographs, 10 classes"),
    "imagenet2012": _by_tfds("imagenet2012", "1,281,167 + 50,000 photographs, 1,000 classes"),
    "folder:PATH": Registered(
        "images in folders named for their classes, in train, val, test or in one",
        folders.open_folder,
    ),
    "npz:FILE": Registered(
        "arrays {train,test}_{images,labels} [, val_images, val_labels, class_names]", open_npz
    ),
    "tfds:NAME": Registered("any that tensorflow-datasets has prepared", tfds.open_tfds),
}
"""The datasets by name."""


def find_dataset(name: str) -> tuple[Registered, str]:
    """Returns what a name stands for, and what it has after a colon.

    Raises:
      UserError: if there is no such dataset.
    """
    kind, _, rest = name.partition(":")
    names = {(known.partition(":")[0], ":" in known): known for known in DATASETS}
    if (kind, bool(rest)) not in names:
        raise unknown("dataset (data.name)", name, DATASETS)
    return DATASETS[names[kind, bool(rest)]], rest


def open_dataset(config: ConfigDict) -> Opened:
    """Returns the dataset that a config names: what it is, and a function that loads it.

    Args:
      config: the group `data` of a config.

    Raises:
      UserError: if there is no such dataset, or a field of the group does not suit it.
    """
    registered, rest = find_dataset(config.name)
    whole, load_whole = registered.open(rest, config)
    info = select_info(whole, config.classes)

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        dataset = select_classes(load_whole(notify, progress), config.classes)
        return in_memory(dataset, notify) if is_resident(info, config) else dataset

    return Opened(info, load)


def load_dataset(
    config: ConfigDict, notify: Notify = print, progress: Progress | None = None
) -> Dataset:
    """Returns the dataset that a config names, in memory if it fits `data.resident_bytes`.

    Args:
      config: the group `data` of a config.
      notify: called with what is passed over and fetched.
      progress: told about every piece of a download; None: `notify` is, in plain lines.

    Raises:
      UserError: if it can't be had.
    """
    return open_dataset(config).load(notify, progress)


def _cifar10_info(name: str, digests: Mapping[str, str], train: int, test: int) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        image_shape=(32, 32, 3),
        class_names=cifar10.CLASS_NAMES,
        train_counts=(train,) * 10,
        val_counts=(),
        test_counts=(test,) * 10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        digest=hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
    )
