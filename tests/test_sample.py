import shutil
from pathlib import Path

import make_sample
import numpy as np
import pytest
from PIL import Image

from resnet_jax.config import default_config
from resnet_jax.data import sample
from resnet_jax.data.datasets import Examples
from resnet_jax.data.registry import load_dataset
from resnet_jax.errors import UserError

FOLDER = Path(sample.__file__).parent / "sample"


def test_the_sample_has_the_documented_arrays():
    for split, count in sample.PER_CLASS.items():
        images, labels = sample.load(split)
        assert images.shape == (10 * count, 32, 32, 3)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert np.bincount(labels).tolist() == [count] * 10
    assert sample.load("train")[1][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]


def test_the_sample_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_200_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the sample that the package takes for its own."""
    shutil.copytree(FOLDER, tmp_path / "sample")
    monkeypatch.setattr(sample.resources, "files", lambda package: tmp_path)
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
        sample.load("train"), sample.load("test")


def test_written_and_read_back(folder, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(10, dtype=np.int32), 70))
    images = generator.integers(0, 256, (700, 32, 32, 3), np.uint8)
    make_sample.write(folder, dict.fromkeys(("train", "test"), Examples(images, labels)))
    digests = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr(sample, "SHA256", dict(zip(("train", "test"), digests, strict=True)))
    for split, count in sample.PER_CLASS.items():
        found_images, found_labels = sample.load(split)
        chosen = [i for i in range(700) if (labels[:i] == labels[i]).sum() < count]
        np.testing.assert_array_equal(found_images, images[chosen])
        np.testing.assert_array_equal(found_labels, labels[chosen])


@pytest.mark.slow
def test_the_sample_agrees_with_the_full_data():
    config = default_config().data
    config.source = "cache"
    try:
        full = load_dataset(config, lambda line: None)
    except UserError:
        pytest.skip("the full CIFAR-10 is not in the cache")
    for split, part in {"train": full.train, "test": full.test}.items():
        expected = make_sample.select(part, sample.PER_CLASS[split])
        for found, array in zip(sample.load(split), expected, strict=True):
            np.testing.assert_array_equal(found, array)
