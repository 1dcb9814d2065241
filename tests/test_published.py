"""Published datasets, with small files in the place of the real ones."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from resnet_jax.config import default_config
from resnet_jax.data import download, published
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.download import Remote
from resnet_jax.data.published import PUBLISHED, open_published
from resnet_jax.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), np.uint8)
LABELS = np.array([3, 0, 9, 1, 1, 2], np.uint8)


def idx(array):
    return bytes(8 if array.ndim == 1 else 16) + array.tobytes()


def archive(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name.replace('_bin', '.bin')}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary(images, labels):
    coarse = np.full_like(labels, 7)
    return np.column_stack([coarse, labels, planes(images)]).tobytes()


def python(images, labels):
    return pickle.dumps({"data": planes(images), "fine_labels": labels.tolist()}, protocol=2)


def matlab(images, labels):
    file = io.BytesIO()
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels, labels, 10)[:, None]})
    return file.getvalue()


def in_parts(pack, images):
    return [pack(images[:4], LABELS[:4]), pack(images[4:], LABELS[4:])]


IDX = [idx(GREY[:4]), idx(LABELS[:4]), idx(GREY[4:]), idx(LABELS[4:])]
CASES = {
    "mnist": ("mnist", GREY, IDX),
    "fashion": ("fashion_mnist", GREY, [gzip.compress(content) for content in IDX]),
    "svhn": ("svhn_cropped", COLOUR, in_parts(matlab, COLOUR)),
    "binary": (
        *("cifar100", COLOUR),
        [archive(**dict(zip(("train_bin", "test_bin"), in_parts(binary, COLOUR), strict=True)))],
    ),
    "python": (
        *("cifar100", COLOUR),
        [archive(**dict(zip(("train", "test"), in_parts(python, COLOUR), strict=True)))],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_formats(case):
    name, images, contents = CASES[case]
    train, test = PUBLISHED[name].read(contents)
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), LABELS)
    assert train.labels.dtype == np.int32


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_known_before_the_files_are_read_fits_together(name):
    info = PUBLISHED[name].info
    assert len(set(info.class_names)) == len(info.train_counts)
    assert DatasetInfo.from_json(dataclasses.asdict(info)) == info


def test_a_file_is_fetched_once_and_verified(tmp_path, monkeypatch):
    def fetch(remote, part, progress):
        fetched.append(remote.url)
        part.write_bytes(IDX[len(fetched) - 1])

    forms = tuple(
        (Remote(f"{i}.gz", len(c), hashlib.md5(c).hexdigest()),) for i, c in enumerate(IDX)
    )
    fetched = []
    monkeypatch.setattr(download, "complete", fetch)
    monkeypatch.setattr(
        published, "PUBLISHED", PUBLISHED | {"mnist": PUBLISHED["mnist"]._replace(files=forms)}
    )
    config = default_config().data
    config.dir = str(tmp_path)
    for _ in range(2):
        dataset = open_published("mnist", config).load(print, None)
        np.testing.assert_array_equal(dataset.train.images, GREY[:4])
    assert fetched == ["0.gz", "1.gz", "2.gz", "3.gz"]
    (tmp_path / "0.gz").write_bytes(bytes(len(IDX[0])))
    with pytest.raises(UserError, match=r"0\.gz is altered: expected"):
        open_published("mnist", config).load(print, None)
