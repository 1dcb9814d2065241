"""What is known of a dataset before it is loaded, users' own arrays, classes, and splits."""

import dataclasses
import json

import numpy as np
import pytest

from resnet_jax.config import default_config
from resnet_jax.data.datasets import (
    Dataset,
    DatasetInfo,
    channel_statistics,
    input_shape,
    select_classes,
    select_info,
)
from resnet_jax.data.registry import load_dataset, open_dataset
from resnet_jax.data.splits import split, split_sizes
from resnet_jax.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (1000, 4, 5, 1), np.uint8)
LABELS = RANDOM.permutation(np.arange(1000) % 10)


def data(**fields):
    config = default_config().data
    config.name = "sample"
    config.update(fields)
    return config


def custom(**changes):
    arrays = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES[:30],
        "test_labels": LABELS[:30],
        "class_names": [str(label) for label in range(10)],
    }
    return Dataset.from_arrays(**arrays | changes)


def test_cifar10_is_known_without_loading_it():
    info = open_dataset(data(name="cifar10", source="auto")).info
    assert (info.name, info.image_shape, sum(info.test_counts)) == ("cifar10", (32, 32, 3), 10_000)
    assert info.train_counts == (5000,) * 10 and info.class_names[3] == "cat"
    assert info == open_dataset(data(name="cifar10", source="npm")).info
    assert info.digest != open_dataset(data()).info.digest


@pytest.mark.parametrize("classes", [(), (9, 0), (0, 9)])
def test_a_loaded_dataset_is_what_was_known_of_it(classes):
    config = data(classes=classes)
    info, dataset = open_dataset(config).info, load_dataset(config)
    assert dataset.info == info
    assert len(dataset.test) == sum(info.test_counts)
    assert np.bincount(dataset.train.labels).tolist() == list(info.train_counts)
    assert dataset.train.labels.dtype == np.int32


def test_classes_are_selected_and_renumbered():
    sample, chosen = load_dataset(data()), load_dataset(data(classes=(9, 0)))
    assert chosen.info.class_names == ("truck", "airplane")
    trucks = sample.train.images[sample.train.labels == 9]
    np.testing.assert_array_equal(chosen.train.images[chosen.train.labels == 0], trucks)
    assert np.bincount(chosen.test.labels).tolist() == [32, 32]
    digests = {open_dataset(data(classes=classes)).info.digest for classes in [(), (9, 0), (0, 9)]}
    assert len(digests) == 3
    with pytest.raises(UserError, match="names a class twice"):
        open_dataset(data(classes=(1, 1)))
    with pytest.raises(UserError, match="has 10 classes"):
        select_classes(sample, (1, 10))
    info = dataclasses.replace(sample.info, test_counts=(9, *[0] * 9))
    with pytest.raises(UserError, match="a part of cifar10_sample has no image of them"):
        select_info(info, (1, 2))


def test_validation_images_of_ones_own():
    dataset = custom(val_images=IMAGES[:20], val_labels=LABELS[:20])
    parts = split(dataset, data())
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1000,
        "val": 20,
        "test": 30,
    }
    assert split_sizes(dataset.info, data()) == {"train": 1000, "val": 20, "test": 30}
    assert dataset.info.digest != custom().info.digest
    with pytest.raises(UserError, match="val images are"):
        custom(val_images=IMAGES[:20, 1:], val_labels=LABELS[:20])
    with pytest.raises(UserError, match="val_labels must be integers"):
        custom(val_images=IMAGES[:20])


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_dataset_that_is_not_what_it_says_is_refused(part):
    dataset = dataclasses.replace(custom(), **{part: custom().train.at(np.arange(500))})
    with pytest.raises(UserError, match=f"the {part} images of the dataset are not those"):
        dataset.opened()


def test_a_model_takes_images_as_they_are_or_resized():
    info = custom().info
    assert input_shape(info, data()) == (4, 5, 1)
    assert input_shape(info, data(image_size=64)) == (64, 64, 1)


def test_info_survives_json():
    for info in (open_dataset(data(classes=(3, 1))).info, custom().info):
        assert DatasetInfo.from_json(json.loads(json.dumps(dataclasses.asdict(info)))) == info


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"image_shape": [32, 32]},
        {"image_shape": [32, 32, -3]},
        {"image_shape": [32, 32, 1]},
        {"class_names": "abc"},
        {"class_names": ["a"]},
        {"train_counts": [1.5] * 10},
        {"mean": [float("nan")] * 3},
        {"test_counts": None},
        {"more": 1},
    ],
)
def test_foreign_descriptions_are_refused_in_one_line(change):
    value = dataclasses.asdict(open_dataset(data()).info) | change
    for wrong in (value, [value], None, {}):
        with pytest.raises(UserError) as caught:
            DatasetInfo.from_json(wrong)
        assert "\n" not in str(caught.value)


def test_mean_and_deviation_are_exact():
    images = np.random.default_rng(0).integers(0, 256, (600, 3, 4, 3)).astype(np.uint8)
    images[..., 2] = 7
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, rtol=1e-14)
    np.testing.assert_allclose(std, images.std((0, 1, 2)) / 255, rtol=1e-13)
    assert std[2] == 0 and mean[2] == 7 / 255


def test_users_own_arrays():
    dataset = custom(name="mine")
    info = dataset.info
    assert (info.name, info.image_shape, sum(info.test_counts)) == ("mine", (4, 5, 1), 30)
    assert info.train_counts == (100,) * 10
    assert info.mean == pytest.approx([IMAGES.mean() / 255])
    assert info.std == pytest.approx([IMAGES.std() / 255])
    assert dataset.train.labels.dtype == np.int32
    assert custom(class_names=np.arange(10)).info.class_names == tuple("0123456789")
    digests = {info.digest, custom(test_images=IMAGES[1:31]).info.digest}
    digests |= {custom(train_labels=LABELS[::-1]).info.digest, custom(name="x").info.digest}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": IMAGES / 255}, "train_images must be uint8"),
        ({"train_images": IMAGES[..., 0]}, "train_images must be uint8"),
        ({"test_images": IMAGES[:0]}, "test_images must be uint8"),
        ({"train_labels": LABELS[1:]}, r"train_labels must be integers \[1000\]"),
        ({"train_labels": LABELS * 1.0}, "train_labels must be integers"),
        ({"train_labels": LABELS - 1}, "train_labels must be from 0 to 9"),
        ({"test_labels": LABELS[:30] + 1}, "test_labels must be from 0 to 9"),
        ({"test_images": IMAGES[:30, 1:]}, "test images are"),
        ({"class_names": [*range(9), 8]}, "class_names has a name twice"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        custom(**change)


# Splits


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.49])
@pytest.mark.parametrize("classes", [(), (7, 2)])
def test_sizes_are_known_without_the_data(fraction, classes):
    config = data(val_fraction=fraction, classes=classes)
    splits = split(load_dataset(config), config)
    sizes = split_sizes(open_dataset(config).info, config)
    assert {name: len(part) for name, part in splits.items()} == sizes
    assert ("val" in sizes) == (fraction > 0)


def test_a_split_is_stratified_complete_and_in_the_order_of_the_data():
    splits = split(custom(), data(val_fraction=0.2, split_seed=3))
    assert np.bincount(splits["val"].labels).tolist() == [20] * 10
    whole = [image.tobytes() for image in IMAGES]
    parts = {n: [image.tobytes() for image in splits[n].images] for n in ("train", "val")}
    assert sorted(parts["train"] + parts["val"]) == sorted(whole)
    for part in parts.values():
        assert part == [image for image in whole if image in set(part)]


def test_a_split_depends_on_its_seed_alone():
    labels = np.arange(40) % 2
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    dataset = custom(train_images=images, train_labels=labels, test_images=images[:30])
    val = split(dataset, data(val_fraction=0.1))["val"].images.ravel().tolist()
    assert val == [1, 3, 6, 22]
    assert (
        val != split(dataset, data(val_fraction=0.1, split_seed=1))["val"].images.ravel().tolist()
    )


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(0.001, "too small a share of 640"), (0.999, "leaves no training image of class 0")],
)
def test_shares_that_leave_nothing_are_refused(fraction, message):
    config = data(val_fraction=fraction)
    for call in (
        lambda: split_sizes(open_dataset(config).info, config),
        lambda: split(load_dataset(config), config),
    ):
        with pytest.raises(UserError, match=rf"data\.val_fraction is {fraction}, .*{message}"):
            call()
