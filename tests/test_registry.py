"""Datasets by name, and arrays from npz files."""

import pickle

import numpy as np
import pytest

from resnet_jax.config import default_config
from resnet_jax.data.registry import load_dataset, open_dataset
from resnet_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 9, 1), np.uint8)
ARRAYS = {
    "train_images": IMAGES[:20],
    "train_labels": np.arange(20) % 3,
    "test_images": IMAGES[20:],
    "test_labels": np.arange(10) % 3,
}


def data(name):
    config = default_config().data
    config.name = str(name)
    return config


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_arrays_of_a_file(tmp_path, names):
    np.savez(tmp_path / "a.npz", **ARRAYS, **({"class_names": names} if names else {}))
    dataset = load_dataset(data(f"npz:{tmp_path / 'a.npz'}"))
    assert dataset.info.class_names == tuple(names or "012")
    assert dataset.info.image_shape == (8, 9, 1)
    np.testing.assert_array_equal(dataset.test.images, IMAGES[20:])
    np.testing.assert_array_equal(dataset.train.labels, ARRAYS["train_labels"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"words", "cannot read"),
        (pickle.dumps({}), "cannot read"),
        ({"train_images": IMAGES}, "lacks the array train_labels"),
        (ARRAYS | {"train_labels": np.array([{}] * 20)}, "cannot read"),
        (ARRAYS | {"test_labels": np.arange(10)}, "test_labels must be from 0 to 2"),
        (ARRAYS | {"train_labels": np.array(["a"] * 20)}, "train_labels"),
        (ARRAYS | {"train_labels": np.full(20, 10**10)}, "train_labels"),
        (ARRAYS | {"class_names": np.array("abc")}, "train_labels must be from 0 to 0"),
    ],
)
def test_a_file_that_holds_no_dataset_is_refused(tmp_path, content, message):
    path = tmp_path / "a.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(data(f"npz:{path}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar11", "folder", "sample:x", "", "npz:"])
def test_an_unknown_name_offers_the_nearest(name):
    with pytest.raises(UserError, match="unknown dataset"):
        open_dataset(data(name))
