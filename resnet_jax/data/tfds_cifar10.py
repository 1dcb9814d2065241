"""CIFAR-10 by way of tensorflow-datasets (tfds), without TensorFlow.

A copy that tfds has prepared is read as array_record or tfrecord files. tfds shuffles what it
prepares; the `id` of each image gives its place back, so the batches can be checked by their MD5s.
If there is no copy, one is prepared from the verified batches, in tfds's own layout: where
tfds would need TensorFlow to encode arrays, it takes PIL images as they are.

tfds is imported only when a copy is read or prepared.
"""

import contextlib
import io
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resnet_jax.data import batches, originals, png
from resnet_jax.data.batches import Batches, Unavailable

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VERSION = "3.0.2"
_SPLITS = {"train": batches.TRAIN_NAMES, "test": batches.TEST_NAMES}
_RECORD_LIMIT = 100_000  # bytes; an encoded image of 32 x 32 pixels has 3 kB


def default_data_dir() -> Path:
    """Returns the folder where tfds keeps what it has prepared."""
    named = os.environ.get("TFDS_DATA_DIR")
    return Path(named).expanduser() if named else Path.home() / "tensorflow_datasets"


def prepared_dir(data_dir: Path) -> Path:
    """Returns the folder of the prepared CIFAR-10 inside a tfds folder."""
    return data_dir / "cifar10" / VERSION


def read_downloads(data_dir: Path) -> tuple[Batches, Path]:
    """Returns the batches of the original archive that tfds itself once downloaded, and its place.

    Raises:
      Unavailable: there is none, or it is altered.
    """
    downloads = data_dir / "downloads"
    for place in (*downloads.glob("extracted/*cifar-10-binary*"), *downloads.glob("*.tar.gz")):
        found = originals.find(place) if "cifar-10-binary" in place.name else None
        if found is not None:
            return originals.read(found), found
    raise Unavailable(f"{data_dir} holds neither a prepared copy nor a download of it")


def read_prepared(data_dir: Path) -> Batches:
    """Returns the batches of a prepared copy, in canonical order, verified.

    Raises:
      Unavailable: the copy is missing, altered, or of a format that needs TensorFlow.
    """
    folder = prepared_dir(data_dir)
    result: Batches = {}
    try:
        builder = _builder(data_dir)
        for split, names in _SPLITS.items():
            images, labels = _read_split(builder, split, len(names) * batches.IMAGES_PER_BATCH)
            for index, name in enumerate(names):
                part = slice(
                    index * batches.IMAGES_PER_BATCH, (index + 1) * batches.IMAGES_PER_BATCH
                )
                content = batches.pack(images[part], labels[part])
                result[name] = batches.check(name, content, f"{folder}: {name}")
    except Unavailable:
        raise
    except Exception as error:  # tfds raises whatever it likes for a folder that it dislikes
        raise Unavailable(f"cannot read {folder}: {batches.describe(error)}") from error
    return result


def prepare(data_dir: Path, content: Batches) -> None:
    """Prepares a copy of the verified batches as array_record files, in place of any other.

    Raises:
      Unavailable: tfds failed; nothing half prepared is left.
    """
    shutil.rmtree(data_dir / "cifar10", ignore_errors=True)
    silence = io.StringIO()  # tfds reports on both streams and draws bars of its own
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            _builder(data_dir, content).download_and_prepare()
    except BaseException as error:
        shutil.rmtree(data_dir / "cifar10", ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise Unavailable(f"cannot prepare {data_dir}: {batches.describe(error)}") from error


def _builder(data_dir: Path, content: Batches | None = None) -> "tfds.core.GeneratorBasedBuilder":
    """Returns a builder of the same dataset as tfds's own `cifar10`, fed from `content`.

    To read a copy with it, rather than with a builder made from the files in its folder, means
    that those files can't name Python classes for tfds to import.
    """
    import tensorflow_datasets as tfds

    class Cifar10(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = "cifar10"
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(batches.CLASS_NAMES)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[Any]]:
            return {split: self._generate_examples(split) for split in _SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            assert content is not None  # only `prepare` generates
            images, labels = batches.unpack(content, _SPLITS[split])
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                identity = f"{split}_{index:05d}"
                picture = Image.fromarray(image)
                yield index, {"id": identity, "image": picture, "label": int(label)}

    return Cifar10(data_dir=str(data_dir), file_format="array_record" if content else None)


def _read_split(
    builder: "tfds.core.GeneratorBasedBuilder", split: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `count` images and labels of a prepared split, in the order of their ids."""
    images, labels = np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.uint8)
    for record in _records(builder, split):
        prefix, _, number = record["id"].decode().partition("_")
        if prefix != split or not 0 <= int(number) < count:
            raise Unavailable(f"{builder.data_dir} holds an image of unknown id {record['id']!r}")
        images[int(number)] = png.decode(record["image"], 32, 32)
        labels[int(number)] = record["label"]
    return images, labels


def _records(builder: "tfds.core.GeneratorBasedBuilder", split: str) -> Iterator[dict[str, Any]]:
    """Yields each record's id (bytes), image (PNG bytes) and label, in the order of the files."""
    import tensorflow_datasets as tfds

    raw_image = {"image": tfds.decode.SkipDecoding()}
    file_format = builder.info.file_format
    if file_format == tfds.core.FileFormat.ARRAY_RECORD:
        yield from builder.as_data_source(split=split, decoders=raw_image)
    elif file_format == tfds.core.FileFormat.TFRECORD:
        for path in builder.info.splits[split].filepaths:
            for content in _tfrecords(Path(path)):
                yield builder.info.features.deserialize_example_np(content, decoders=raw_image)
    else:
        raise Unavailable(
            f"{builder.data_dir} is in the {file_format.value} format; "
            "only array_record and tfrecord are read"
        )


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    Each is framed by its length (8 bytes, little-endian), the length's checksum (4), and its own
    checksum (4). The checksums are left alone: the MD5 of the whole is what counts.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            if length > _RECORD_LIMIT:
                raise ValueError(f"{path.name} holds a record of {length} bytes")
            yield file.read(length)
            file.read(4)
