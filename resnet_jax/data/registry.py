"""Datasets by name: what the config field data.name may be."""

import hashlib
import zipfile
from collections.abc import Callable, Mapping

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
from resnet_jax.data.download import PlainProgress, Progress
from resnet_jax.data.parts import in_memory
from resnet_jax.data.streams import is_resident
from resnet_jax.errors import UserError, unknown


def open_cifar10(rest: str, config: ConfigDict) -> Opened:
    """50,000 + 10,000 photographs of 32x32 pixels in 10 classes; data.source says where from."""
    del rest
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
    del rest, config
    info = _cifar10_info("cifar10_sample", sample.SHA256, *sample.PER_CLASS.values())

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        del notify, progress
        train, test = (Examples(*sample.load(split)) for split in sample.PER_CLASS)
        return Dataset(info, train, test, sample.PHRASE)

    return Opened(info, load)


def open_npz(path: str, config: ConfigDict) -> Opened:
    """npz:FILE, arrays train_images, train_labels, test_images, test_labels [, class_names]."""
    del config
    needed = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*needed, "class_names") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"config field data.name: {path} can't be read: {error}") from None
    if missing := [name for name in needed if name not in arrays]:
        raise UserError(f"config field data.name: {path} lacks the array {missing[0]}")
    count = 1 + int(np.max(arrays["train_labels"], initial=0))
    names = arrays.pop("class_names", np.arange(count))
    dataset = Dataset.from_arrays(**arrays, class_names=[str(name) for name in names], name=path)
    return Opened(dataset.info, lambda notify, progress: dataset)


DATASETS: Mapping[str, Callable[[str, ConfigDict], Opened]] = {
    "cifar10": open_cifar10,
    "sample": open_sample,
    "folder": folders.open_folder,
    "npz": open_npz,
    "tfds": tfds.open_tfds,
}
"""What opens a dataset, by its name or by what stands before the colon of it."""


def open_dataset(config: ConfigDict) -> Opened:
    """Returns the dataset that a config names: what it is, and a function that loads it.

    Args:
      config: the group `data` of a config.

    Raises:
      UserError: if there is no such dataset, or a field of the group does not suit it.
    """
    name, _, rest = config.name.partition(":")
    if name not in DATASETS or bool(rest) != (name in ("folder", "npz", "tfds")):
        raise unknown("dataset (data.name)", config.name, [*DATASETS][:2] + list(_PATTERNS))
    whole, load_whole = DATASETS[name](rest, config)
    info = select_info(whole, config.classes)

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        dataset = select_classes(load_whole(notify, progress), config.classes)
        return in_memory(dataset, notify) if is_resident(info, config) else dataset

    return Opened(info, load)


_PATTERNS = ("folder:PATH", "npz:FILE", "tfds:NAME")


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
