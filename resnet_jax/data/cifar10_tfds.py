"""CIFAR-10 by way of tensorflow-datasets (tfds), without TensorFlow.

A copy that tfds has prepared in the array_record format is read by tfds. It shuffles what it
prepares; the `id` of each image gives its place back, so the batches can be checked by their MD5s.
Where there is no copy, one is prepared from the verified batches, in tfds's own layout: tfds would
need TensorFlow to encode arrays, but takes PIL images as they are.

tfds is imported only when a copy is read or prepared.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data import cifar10
from resnet_jax.data.cifar10 import Batches
from resnet_jax.data.download import Unavailable, reading
from resnet_jax.data.image_files import decode_png

VERSION = "3.0.2"
_SPLITS = {"train": cifar10.TRAIN_NAMES, "test": cifar10.TEST_NAMES}


def default_data_dir() -> Path:
    """Returns the folder where tfds keeps what it has prepared."""
    return Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def prepared_dir(data_dir: Path) -> Path:
    """Returns the folder of the prepared CIFAR-10 inside a tfds folder."""
    return data_dir / "cifar10" / VERSION


def is_prepared(data_dir: Path) -> bool:
    """Returns whether a tfds folder holds CIFAR-10 in the array_record format."""
    return any(prepared_dir(data_dir).glob("*.array_record*"))


def read(data_dir: Path) -> Batches:
    """Returns the batches of a prepared copy, in canonical order, verified.

    Raises:
      Unavailable: the copy is missing, altered, or of another format.
    """
    folder, result = prepared_dir(data_dir), {}
    with reading(folder):
        builder = _builder(data_dir)
        for split, names in _SPLITS.items():
            images, labels = _read_split(builder, split, len(names) * cifar10.IMAGES_PER_BATCH)
            parts = np.split(images, len(names)), np.split(labels, len(names))
            for name, *part in zip(names, *parts, strict=True):
                result[name] = cifar10.check(name, cifar10.pack(*part), folder / name)
    return result


def _read_split(builder: Any, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `count` images and labels of a prepared split, in the order of their ids."""
    import tensorflow_datasets as tfds

    images, labels = np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.uint8)
    raw_image = {"image": tfds.decode.SkipDecoding()}
    for record in builder.as_data_source(split=split, decoders=raw_image):
        prefix, _, number = record["id"].decode().partition("_")
        if prefix != split or not 0 <= int(number) < count:
            raise Unavailable(f"{builder.data_dir} holds an image of unknown id {record['id']!r}")
        images[int(number)] = decode_png(record["image"], 32, 32)
        labels[int(number)] = record["label"]
    return images, labels


def prepare(data_dir: Path, content: Batches) -> None:
    """Prepares a copy of the verified batches as array_record files, in place of any other.

    Raises:
      Unavailable: tfds failed; nothing half prepared is left.
    """
    if any((data_dir / "cifar10").rglob("*.tfrecord*")):
        raise Unavailable(f"{data_dir / 'cifar10'} holds a copy in another format: left as it is")
    shutil.rmtree(data_dir / "cifar10", ignore_errors=True)
    silence = io.StringIO()  # tfds reports on both streams and draws bars of its own
    try:
        with (
            reading(f"{prepared_dir(data_dir)}, which is being prepared"),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            _builder(data_dir, content).download_and_prepare()
    except BaseException:
        shutil.rmtree(data_dir / "cifar10", ignore_errors=True)
        raise


def _builder(data_dir: Path, content: Batches | None = None) -> Any:
    """Returns a builder of the same dataset as tfds's own `cifar10`, fed from `content`.

    To read a copy with it, rather than with a builder made from the files in its folder, means
    that those files can't name Python classes for tfds to import.
    """
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "cifar10"
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")
            label = tfds.features.ClassLabel(names=list(cifar10.CLASS_NAMES))
            features = {"id": tfds.features.Text(), "image": image, "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[Any]]:
            return {split: self._generate_examples(split) for split in _SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            assert content is not None  # only `prepare` generates
            images, labels = cifar10.unpack(content, _SPLITS[split])
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                identity, picture = f"{split}_{index:05d}", Image.fromarray(image)
                yield index, {"id": identity, "image": picture, "label": int(label)}

    return Cifar10(data_dir=str(data_dir), file_format="array_record" if content else None)
