"""Datasets that tensorflow-datasets has prepared, read without TensorFlow."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.config import default_config
from resnet_jax.data import tfds
from resnet_jax.data.registry import load_dataset, open_dataset
from resnet_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
LABELS = np.arange(12) % 3


def prepare(folder, splits=("train", "test"), file_format="array_record", labels="label"):
    import tensorflow_datasets as tfds

    class Greys(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "greys"
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                labels: tfds.features.ClassLabel(names=["a", "b", "c"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
                yield index, {"image": Image.fromarray(image[..., 0]), labels: int(label)}

    Greys(data_dir=str(folder), file_format=file_format).download_and_prepare()


def data(folder, **fields):
    config = default_config().data
    config.name, config.dir = "tfds:greys", str(folder)
    config.update(fields)
    return config


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation")])
def test_a_prepared_dataset(tmp_path, splits):
    prepare(tmp_path, splits, labels="kind")
    dataset = load_dataset(data(tmp_path))
    assert dataset.info.class_names == ("a", "b", "c")
    assert dataset.info.image_shape == (8, 8, 1)
    assert dataset.info.train_counts == dataset.info.test_counts == (4, 4, 4)
    assert dataset.info.mean == pytest.approx([IMAGES.mean() / 255])
    train = zip(dataset.train.images, dataset.train.labels, strict=True)
    found = {image.tobytes(): label for image, label in train}
    assert found == {i.tobytes(): label for i, label in zip(IMAGES, LABELS, strict=True)}
    assert "tensorflow" not in sys.modules


def test_the_newest_version_is_that_of_the_largest_number():
    paths = [Path(version, "dataset_info.json") for version in ("10.0.0", "3.0.2", "3.0.10")]
    found = [path.parent.name for path in sorted(paths, key=tfds._version)]
    assert found == ["3.0.2", "3.0.10", "10.0.0"]


def test_other_sizes(tmp_path):
    prepare(tmp_path, ("train", "validation", "test"))
    dataset = load_dataset(data(tmp_path, image_size=16))
    assert dataset.test.images.shape == (12, 16, 16, 1)
    assert len(dataset.val) == 12


def test_what_is_not_prepared_is_refused_with_the_way_to_do_it(tmp_path):
    with pytest.raises(UserError, match="tfds build greys --file_format=array_record"):
        open_dataset(data(tmp_path))
    for splits, lacks in ((["train"], "test"), (["validation", "test"], "train")):
        builder = types.SimpleNamespace(info=types.SimpleNamespace(splits=splits))
        with pytest.raises(UserError, match=f"no {lacks}"):
            tfds._splits(builder)


@pytest.mark.parametrize(
    "alter",
    [
        lambda text: text.replace("tensorflow_datasets.core.features.features_dict", "antigravity"),
        lambda text: text.replace('"pythonClassName": "', '"python_class_name" : "antigravity.'),
        lambda text: text.replace('pythonClassName": "', 'python\\u0043lassName": "antigravity.'),
        lambda text: json.dumps({"json": json.dumps({"type": "antigravity.X"})}),
    ],
)
def test_its_files_make_nothing_be_imported(tmp_path, alter):
    prepare(tmp_path)
    file = tmp_path / "greys" / "1.2.0" / "features.json"
    text = json.dumps(json.loads(file.read_text()))
    file.write_text(alter(text))
    assert file.read_text() != text
    with pytest.raises(UserError, match="antigravity"):
        open_dataset(data(tmp_path))
    assert "antigravity" not in sys.modules
