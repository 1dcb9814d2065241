"""Any dataset that tensorflow-datasets (tfds) has prepared as array_record, without TensorFlow.

The prepared files are read by tfds; the code that made them is not run. tfds is imported only when
a dataset is opened.
"""

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.cache import remembered
from resnet_jax.data.cifar10_tfds import default_data_dir
from resnet_jax.data.datasets import Opened, count_labels
from resnet_jax.data.download import reading
from resnet_jax.data.parts import open_parts, sizes_differ
from resnet_jax.errors import UserError


def open_tfds(name: str, config: ConfigDict) -> Opened:
    """tfds:NAME or tfds:NAME/CONFIG, a dataset with one image and one label, prepared by tfds.

    It is looked for in `data.dir`, or where tfds keeps its datasets; the newest version is taken.
    Images of one size are kept as they are; others are brought to `data.image_size`.

    Args:
      name: the dataset's name in tfds, with the name of its configuration where it has any.
      config: the group `data` of a config.

    Raises:
      UserError: if it is not prepared as array_record, or has no image, label or test images.
    """
    import tensorflow_datasets as tfds

    data_dir = Path(os.path.expanduser(config.dir)) if config.dir else default_data_dir()
    with reading(data_dir / name):
        versions = sorted((data_dir / name).glob("*/dataset_info.json"), key=_version)
    if not versions:
        raise UserError(
            f"config field data.name: tfds has prepared no {name} in {data_dir}; "
            f"`tfds build {name} --file_format=array_record` does, with TensorFlow installed"
        )
    folder = versions[-1].parent
    with reading(folder):
        _check_classes((folder / "features.json").read_text())
        builder = tfds.builder_from_directory(folder)
        found = builder.info.file_format.value
        if found != "array_record":
            raise UserError(
                f"config field data.name: {folder} is in the format {found}; "
                "`tfds build --file_format=array_record` makes one that is read without TensorFlow"
            )
        features = builder.info.features
        image, label = _key(features, tfds.features.Image), _key(features, tfds.features.ClassLabel)
        shape = _image_shape(features[image].shape, config.image_size)
        raw = {image: tfds.decode.SkipDecoding()}
        records = {
            part: builder.as_data_source(split=split, decoders=raw)
            for part, split in _splits(builder)
        }
        state = f"{folder.absolute()} {_newest(folder)}"
        found = remembered(
            f"labels {label} of {state}",
            lambda: {part: [int(r[label]) for r in split] for part, split in records.items()},
        )
        if min(found["test"], default=0) < 0:  # those of ImageNet were never published
            if "val" not in found:
                raise UserError(f"config field data.name: {name} has no labels to test by")
            found["test"], records["test"] = found.pop("val"), records.pop("val")
        names = features[label].names
    labels = {part: np.array(of_part, np.int32) for part, of_part in found.items()}
    counts = {part: count_labels(of_part, len(names)) for part, of_part in labels.items()}
    content = f"{builder.info.full_name} {counts} {shape}"
    digest = hashlib.sha256(content.encode()).hexdigest()
    files = {part: _Contents(split, image) for part, split in records.items()}
    source = f"tensorflow-datasets in {folder}"
    return open_parts(f"tfds:{name}", source, shape, names, labels, files, digest, state)


def _version(file: Path) -> list[int]:
    """Returns the numbers in the name of a folder such as 10.0.2, by which versions are sorted."""
    return [int(number) for number in re.findall(r"\d+", file.parent.name)]


class _Contents:
    """The encoded images of a split."""

    def __init__(self, records: Any, image: str) -> None:
        self._records, self._image = records, image

    def __getitem__(self, index: int) -> io.BytesIO:
        with reading("the prepared dataset"):
            return io.BytesIO(self._records[index][self._image])


def _newest(folder: Path) -> int:
    """Returns when a file of a folder was last written, nanoseconds."""
    return max(file.stat().st_mtime_ns for file in folder.iterdir())


def _check_classes(value: Any) -> None:
    """Refuses descriptions that make tfds import other classes than its own."""
    if isinstance(value, str):  # tfds reads JSON that is inside of JSON too
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, item in value.items() if isinstance(value, dict) else ():
        is_name = key in ("type", "pythonClassName", "python_class_name") and type(item) is str
        if is_name and not item.startswith("tensorflow_datasets.core.features."):
            raise UserError(f"config field data.name: features.json names {item!r}: refused")
        _check_classes(item)


def _key(features: Any, kind: type) -> str:
    """Returns the name of the one feature of a kind."""
    names = [name for name, feature in features.items() if type(feature) is kind]
    if len(names) != 1:
        raise UserError(
            f"config field data.name: the dataset has {len(names)} features {kind.__name__}, not 1"
        )
    return names[0]


def _splits(builder: Any) -> list[tuple[str, str]]:
    """Returns pairs of "train", "val" or "test" and of the name that tfds has for it."""
    there = builder.info.splits
    pairs = [("train", "train"), ("val", "validation"), ("test", "test")]
    found = [(ours, theirs) for ours, theirs in pairs if theirs in there]
    if [ours for ours, _ in found] == ["train", "val"]:  # its test labels were never published
        return [("train", "train"), ("test", "validation")]
    if lacking := {"train", "test"} - dict(found).keys():
        names = f"{', '.join(there)}, no {' and no '.join(sorted(lacking))}"
        raise UserError(f"config field data.name: it has the splits {names}")
    return found


def _image_shape(shape: tuple[int | None, ...], size: int) -> tuple[int, int, int]:
    height, width, channels = shape
    channels = 1 if channels == 1 else 3  # transparent pixels are shown on white
    if size:
        return size, size, channels
    if height is None or width is None:
        raise sizes_differ()
    return height, width, channels
