"""Images in folders: the layouts, the splits, what is refused, and a training with them."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_run import get_config

from resnet_jax.config import default_config
from resnet_jax.data import folders, image_files
from resnet_jax.data.registry import load_dataset, open_dataset
from resnet_jax.data.splits import split, split_sizes
from resnet_jax.errors import UserError
from resnet_jax.inference.predict import predict
from resnet_jax.training.loop import train_and_evaluate

COLORS = {"amber": (255, 190, 0), "blue": (0, 0, 255), "cyan": (0, 255, 255)}


def write(folder, counts, size=(12, 10)):
    """Writes images of one colour, of each class as many as `counts` says."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = Image.new("RGB", size, COLORS[name])
            image.putpixel((0, 0), (index, index, index))
            image.save(folder / name / f"{index}.png")


def data(folder, **fields):
    config = default_config().data
    config.name = f"folder:{folder}"
    config.update(fields)
    return config


def colour(image):
    return tuple(image[5, 5])


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["train", "test"], {"train": 6, "val": 3, "test": 3}),
        (["train", "val"], {"train": 6, "val": 3, "test": 3}),
        (["train", "val", "test"], {"train": 9, "val": 3, "test": 3}),
        (["train"], {"train": 3, "val": 3, "test": 3}),
        ([""], {"train": 3, "val": 3, "test": 3}),
    ],
)
def test_layouts(tmp_path, places, expected):
    for place in places:
        write(tmp_path / place, dict.fromkeys(COLORS, 3 if place in ("", "train") else 1))
    config = data(tmp_path, val_fraction=1 / 3)
    opened = open_dataset(config)
    assert opened.info.class_names == ("amber", "blue", "cyan")
    assert opened.info.image_shape == (10, 12, 3)
    dataset = opened.load(print, None)
    parts = split(dataset, config)
    assert {name: len(part) for name, part in parts.items()} == expected
    assert split_sizes(opened.info, config) == expected
    for part in parts.values():
        for image, label in zip(part.images, part.labels, strict=True):
            assert colour(image) == [*COLORS.values()][label]


def test_a_share_of_a_folder_without_test_images_is_set_aside_once(tmp_path):
    write(tmp_path, {"amber": 10, "blue": 5})
    first, again = (load_dataset(data(tmp_path)) for _ in range(2))
    assert first.info == again.info
    assert (first.info.train_counts, first.info.test_counts) == ((8, 4), (2, 1))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    marks = [image[0, 0, 0] for part in (first.train, first.test) for image in part.images]
    assert sorted(marks) == sorted([*range(10), *range(5)])


def test_one_more_image_changes_hardly_any_other_of_the_test_images(tmp_path):
    write(tmp_path, {"amber": 20, "blue": 20})
    names = lambda: {  # noqa: E731
        file.relative_to(tmp_path) for file, _ in folders._find(tmp_path, data(tmp_path))[1]["test"]
    }
    before = names()
    Image.new("RGB", (12, 10)).save(tmp_path / "amber" / "another.png")
    assert len(before) == 8 and len(before - names()) <= 1


def test_the_test_images_of_a_folder_are_the_same_elsewhere(tmp_path):
    found = []
    for place in (tmp_path / "here", tmp_path / "there"):
        if found:
            shutil.move(tmp_path / "here", place)
        else:
            write(place, {"amber": 10, "blue": 5})
        files = folders._find(place, data(place))[1]["test"]
        found.append([str(file.relative_to(place)) for file, _ in files])
        found[-1].append(open_dataset(data(place)).info.digest)
    assert found[0] == found[1]
    assert found[0][:-1] == ["amber/1.png", "amber/9.png", "blue/1.png"]


def test_a_folder_that_can_not_be_read_is_refused(tmp_path, refuse_folder):
    write(tmp_path, {"amber": 3, "blue": 3})
    refuse_folder("amber")
    with pytest.raises(UserError, match="cannot read the folder"):
        open_dataset(data(tmp_path))


@pytest.mark.parametrize(
    ("places", "strange"),
    [(("Train", "Test"), "Test"), (("train", "valid"), "valid"), (("train", "Val"), "Val")],
)
def test_splits_by_other_names_are_no_classes(tmp_path, places, strange):
    for place in places:
        write(tmp_path / place, {"amber": 2, "blue": 2})
    with pytest.raises(UserError, match=f"{strange} would be no split and no class"):
        open_dataset(data(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("Train", "bus"):
        write(tmp_path, {"amber": 2})
        (tmp_path / "amber").rename(tmp_path / name)
    assert open_dataset(data(tmp_path)).info.class_names == ("Train", "bus")


def test_black_images_are_refused(tmp_path):
    for name in ("amber", "blue"):
        (tmp_path / name).mkdir()
        for index in range(2):
            pixels = np.full((8, 8), 200, np.uint16)  # of 65,535
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    with pytest.raises(UserError, match="the training images are black; of 16-bit greys"):
        open_dataset(data(tmp_path))


def test_images_of_several_sizes_need_one_to_be_named(tmp_path):
    write(tmp_path, {"amber": 2, "blue": 2})
    Image.new("RGB", (40, 30)).save(tmp_path / "amber" / "other.jpg")
    with pytest.raises(UserError, match=r"different sizes.*data\.image_size"):
        open_dataset(data(tmp_path))
    dataset = load_dataset(data(tmp_path, image_size=16))
    assert dataset.train.images.shape[1:] == (16, 16, 3)


def test_mean_and_deviation_are_those_of_the_images(tmp_path):
    write(tmp_path / "train", {"amber": 2, "blue": 2})
    write(tmp_path / "test", {"amber": 1, "blue": 1})
    dataset = load_dataset(data(tmp_path))
    pixels = dataset.train.images / 255
    assert dataset.info.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert dataset.info.std == pytest.approx(pixels.std(axis=(0, 1, 2)))


def test_what_is_found_of_a_folder_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    write(tmp_path, {"amber": 3, "blue": 3})
    (tmp_path / "amber" / "broken.png").write_bytes(b"words")
    config = data(tmp_path, on_bad_image="skip", image_size=8)
    first = open_dataset(config).info
    reads, read_one = [], image_files.read_one
    monkeypatch.setattr(image_files, "read_one", lambda *rest: reads.append(1) or read_one(*rest))
    assert open_dataset(config).info == first
    assert not reads
    Image.new("RGB", (8, 8)).save(tmp_path / "amber" / "broken.png")
    assert open_dataset(config).info.train_counts == (3, 2)
    assert reads


def test_sizes_are_found_once(tmp_path, monkeypatch):
    write(tmp_path, {"amber": 3, "blue": 3})
    first = open_dataset(data(tmp_path)).info
    monkeypatch.setattr(image_files, "size", None)
    assert open_dataset(data(tmp_path)).info == first


def test_a_file_whose_permissions_change_is_tried_again(tmp_path):
    write(tmp_path, {"amber": 3, "blue": 3})
    config = data(tmp_path, on_bad_image="skip", image_size=8)
    content = (tmp_path / "amber" / "2.png").read_bytes()
    status = (tmp_path / "amber" / "2.png").stat()
    (tmp_path / "amber" / "2.png").write_bytes(b"x" * len(content))
    os.utime(tmp_path / "amber" / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sum(open_dataset(config).info.train_counts) == 3
    (tmp_path / "amber" / "2.png").write_bytes(content)
    os.utime(tmp_path / "amber" / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sum(open_dataset(config).info.train_counts) == 4


def test_linked_folders_and_all_of_netpbms_files_are_read(tmp_path):
    write(tmp_path / "data", {"amber": 3, "blue": 3})
    write(tmp_path / "elsewhere", {"cyan": 3})
    more = tmp_path / "elsewhere" / "cyan"
    for index, suffix in enumerate((".pgm", ".pbm", ".ppm")):
        Image.new("RGB", (8, 8)).convert("1").save(more / f"{index}{suffix}")
    (tmp_path / "data" / "blue" / "more").symlink_to(more)
    (more / "again").symlink_to(tmp_path / "data" / "blue")
    info = open_dataset(data(tmp_path / "data", image_size=8)).info
    assert [a + b for a, b in zip(info.train_counts, info.test_counts, strict=True)] == [3, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: None, "there is no folder"),
        (lambda place: place.mkdir(), "no two folders, one for each class"),
        (
            lambda place: (write(place, {"amber": 1, "blue": 1}), (place / "cyan").mkdir()),
            "no image",
        ),
        (
            lambda place: (
                write(place / "train", {"amber": 1, "blue": 1}),
                write(place / "val", {"amber": 1, "cyan": 1}),
            ),
            "other classes \\('blue'\\)",
        ),
        (
            lambda place: write(place, {"amber": 1, "blue": 2}),
            r"test_fraction is 0.2, which leaves none of the images of 'amber' \(1\) to train",
        ),
        (
            lambda place: (
                write(place, {"amber": 2, "blue": 2}),
                (place / "blue" / "2.png").symlink_to(place / "nowhere"),
            ),
            "cannot read the folder .*/images .*FileNotFoundError",
        ),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path, change, message):
    change(tmp_path / "images")
    with pytest.raises(UserError, match=message):
        open_dataset(data(tmp_path / "images", image_size=10))


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody_of_this_name/x"])
def test_a_path_that_can_be_none_is_refused(path):
    with pytest.raises(UserError, match=r"the folder|no folder"):
        open_dataset(data(path))


def test_a_file_that_is_no_image_stops_or_is_left_out(tmp_path):
    write(tmp_path, {"amber": 5, "blue": 5})
    (tmp_path / "amber" / "notes.txt").write_text("no image, and not taken for one")
    (tmp_path / "amber" / "broken.png").write_bytes(b"words")
    with pytest.raises(UserError, match=r"amber.broken\.png"):
        load_dataset(data(tmp_path))
    dataset = load_dataset(data(tmp_path, on_bad_image="skip"))
    assert (dataset.info.train_counts, dataset.info.test_counts) == ((4, 4), (1, 1))


@pytest.mark.parametrize("name", ["broken.HEIC", "broken.avif"])
def test_images_that_can_not_be_read_are_not_passed_over(tmp_path, name):
    write(tmp_path, {"amber": 5, "blue": 5})
    (tmp_path / "amber" / name).write_bytes(b"words")
    with pytest.raises(UserError, match="broken"):
        load_dataset(data(tmp_path))


def test_a_run_takes_classes_and_colours_from_the_folder(tmp_path):
    write(tmp_path / "images", dict.fromkeys(COLORS, 20), size=(16, 16))
    config = get_config()
    config.data.name, config.batch_size = f"folder:{tmp_path / 'images'}", 12
    config.optimizer.learning_rate = 0.03
    final, state = train_and_evaluate(config, tmp_path / "run")
    assert state.params["head"]["bias"].shape == (3,)
    assert final["test_accuracy"] == 100
    (found,) = predict(tmp_path / "run", [tmp_path / "images" / "cyan" / "3.png"])
    assert found.class_names[0] == "cyan"
    write(tmp_path / "more", {"amber": 20, "blue": 20, "cyan": 21}, size=(16, 16))
    config.data.name = f"folder:{tmp_path / 'more'}"
    with pytest.raises(UserError, match="on other data"):
        train_and_evaluate(config, tmp_path / "run")
