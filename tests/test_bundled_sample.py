import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import bundled_sample, sources
from resnet_jax.errors import UserError

FOLDER = Path(bundled_sample.__file__).parent / "sample"


def test_the_sample_has_the_documented_arrays():
    dataset = sources.load_dataset("sample")
    assert dataset.train_images.shape == (640, 32, 32, 3)
    assert dataset.test_images.shape == (320, 32, 32, 3)
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert np.bincount(dataset.train_labels).tolist() == [64] * 10
    assert np.bincount(dataset.test_labels).tolist() == [32] * 10
    assert dataset.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert len(dataset.class_names) == 10
    assert dataset.source == "bundled sample (640 + 320 images)"


def test_the_sample_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_200_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the sample that the package takes for its own."""
    shutil.copytree(FOLDER, tmp_path / "sample")
    monkeypatch.setattr(bundled_sample.resources, "files", lambda package: tmp_path)
    return tmp_path / "sample"


def altered_pixel(folder):
    with Image.open(folder / "train.png") as picture:
        pixels = np.array(picture)
    pixels[5, 6, 0] ^= 1
    Image.fromarray(pixels).save(folder / "train.png")


def altered_label(folder):
    text = (folder / "labels.json").read_text()
    (folder / "labels.json").write_text(text.replace("6", "7", 1))


def truncated(folder):
    (folder / "test.png").write_bytes((folder / "test.png").read_bytes()[:1000])


def missing(folder):
    (folder / "labels.json").unlink()


def label_out_of_range(folder):
    text = (folder / "labels.json").read_text()
    (folder / "labels.json").write_text(text.replace("6", "262", 1))  # 6, modulo 256


def too_few_labels(folder):
    (folder / "labels.json").write_text('{"train": [1, 2], "test": []}')


@pytest.mark.parametrize(
    "damage", [altered_pixel, altered_label, truncated, missing, too_few_labels, label_out_of_range]
)
def test_damage_is_noticed(folder, damage):
    damage(folder)
    with pytest.raises(
        UserError, match=r"bundled sample.*(altered|cannot read)|cannot read.*sample"
    ):
        bundled_sample.load()


def test_written_and_read_back(folder, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(10, dtype=np.int32), 70))
    images = generator.integers(0, 256, (700, 32, 32, 3), np.uint8)
    bundled_sample.write(folder, {"train": (images, labels), "test": (images, labels)})
    digests = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr(
        bundled_sample, "SHA256", dict(zip(("train", "test"), digests, strict=True))
    )
    train_images, train_labels, test_images, test_labels = bundled_sample.load()
    chosen = [i for i in range(700) if (labels[:i] == labels[i]).sum() < 64]
    np.testing.assert_array_equal(train_images, images[chosen])
    np.testing.assert_array_equal(train_labels, labels[chosen])
    chosen = [i for i in range(700) if (labels[:i] == labels[i]).sum() < 32]
    np.testing.assert_array_equal(test_images, images[chosen])
    np.testing.assert_array_equal(test_labels, labels[chosen])


@pytest.mark.slow
def test_the_sample_agrees_with_the_full_data():
    try:
        full = sources.load_dataset("cache", None, lambda line: None)
    except UserError:
        pytest.skip("the full CIFAR-10 is not in the cache")
    sample = sources.load_dataset("sample")
    for split, count in bundled_sample.PER_CLASS.items():
        images, labels = getattr(full, f"{split}_images"), getattr(full, f"{split}_labels")
        images, labels = bundled_sample.select(images, labels, count)
        np.testing.assert_array_equal(getattr(sample, f"{split}_images"), images)
        np.testing.assert_array_equal(getattr(sample, f"{split}_labels"), labels)
