"""Images in folders that are named for their classes, as torchvision's ImageFolder has them."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import image_files
from resnet_jax.data.datasets import Opened, set_aside
from resnet_jax.data.parts import open_parts, sizes_differ
from resnet_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
Files = list[tuple[Path, int]]


def open_folder(path: str, config: ConfigDict) -> Opened:
    """folder:PATH, with PATH/train/CLASS/*.jpg and val or test beside train, or PATH/CLASS/*.jpg.

    Of `val` and `test` the one that is there alone is the test set. With neither, the share
    `data.test_fraction` of each class is. The images are read by
    `resnet_jax.data.image_files.read`, in the size `data.image_size`, or their own if they have
    one in common.

    Args:
      path: the folder.
      config: the group `data` of a config.

    Raises:
      UserError: if there is no such folder, a class has no image, `train` lacks a class, or a file
        is no image that can be read and `data.on_bad_image` is "stop".
    """
    root = Path(path).expanduser()
    class_names, parts = _find(root, config)
    shape = _image_shape([f for files in parts.values() for f, _ in files], config.image_size)
    labels = {
        part: np.array([label for _, label in files], np.int32) for part, files in parts.items()
    }

    def read(part: str, every: int) -> np.ndarray:
        return image_files.read([file for file, _ in parts[part][::every]], shape)

    digest = _digest(root, parts, shape)
    return open_parts(f"folder:{path}", str(root), shape, class_names, labels, read, digest)


def _find(root: Path, config: ConfigDict) -> tuple[list[str], dict[str, Files]]:
    """Returns the names of the classes, and the files of "train", "test" and perhaps "val"."""
    if not root.is_dir():
        raise UserError(f"config field data.name: there is no folder {root}")
    found = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    train = found.get("train", root)
    class_names = sorted(place.name for place in train.iterdir() if place.is_dir())
    if len(class_names) < 2:
        raise UserError(f"config field data.name: {train} has no two folders, one for each class")
    parts = {name: _files(place, class_names, config) for name, place in found.items()}
    parts.setdefault("train", _files(root, class_names, config) if train == root else [])
    if "test" not in parts:
        parts["test"] = parts.pop("val", []) or _take_test_images(parts, config)
    return class_names, parts


def _files(place: Path, class_names: Sequence[str], config: ConfigDict) -> Files:
    """Returns the image files below a folder with their labels, in an order that never varies."""
    others = {entry.name for entry in place.iterdir() if entry.is_dir()} ^ {*class_names}
    if others:
        raise UserError(
            f"config field data.name: {place} and train have other classes ({min(others)!r})"
        )
    found: Files = []
    for label, name in enumerate(class_names):
        files = sorted(
            file for file in (place / name).rglob("*") if file.suffix.lower() in SUFFIXES
        )
        if config.on_bad_image == "skip":
            files = [file for file in files if image_files.is_readable(file)]
        if not files:
            raise UserError(f"config field data.name: {place / name} holds no image")
        found += [(file, label) for file in files]
    return found


def _take_test_images(parts: dict[str, Files], config: ConfigDict) -> Files:
    """Moves the share `data.test_fraction` of each class from "train"; returns what it took."""
    labels = np.array([label for _, label in parts["train"]])
    counts = [max(1, round(config.test_fraction * count)) for count in np.bincount(labels)]
    is_test = set_aside(labels, counts, config.split_seed)
    files = parts["train"]
    parts["train"] = [files[index] for index in np.flatnonzero(~is_test)]
    return [files[index] for index in np.flatnonzero(is_test)]


def _image_shape(files: Sequence[Path], size: int) -> tuple[int, int, int]:
    if size:
        return size, size, 3
    sizes = {image_files.size(file) for file in files}
    if len(sizes) > 1:
        raise sizes_differ()
    width, height = sizes.pop()
    return height, width, 3


def _digest(root: Path, parts: dict[str, Files], shape: Sequence[int]) -> str:
    """Identifies the images by the names and sizes of their files, not by their content."""
    digest = hashlib.sha256(repr(shape).encode())
    for name, files in parts.items():
        for file, _ in files:
            line = f"{name} {file.relative_to(root)} {os.path.getsize(file)}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
