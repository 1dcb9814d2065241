"""Images in folders that are named for their classes, as torchvision's ImageFolder has them."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import image_files
from resnet_jax.data.cache import remembered
from resnet_jax.data.datasets import PARTS, Opened
from resnet_jax.data.download import reading
from resnet_jax.data.parts import open_parts, sizes_differ
from resnet_jax.errors import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jfif"),
    *(".heic", ".heif", ".avif", ".jxl"),  # can't be read, and are not passed over in silence
)
_LIKE_SPLITS = {*PARTS, "training", "valid", "validation", "testing"}
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
      UserError: if there is no such folder, a split has another name, a class has no image, `train`
        lacks a class, or a file is no image that can be read and `data.on_bad_image` is "stop".
    """
    root = Path(os.path.expanduser(path))
    with reading(f"the folder {root} (config field data.name)"):
        class_names, parts, skipped = _find(root, config)
        everything = [file for found in parts.values() for file, _ in found]
        state = _state(everything)
        shape = _image_shape(everything, config.image_size, state)
        identities = _digest(root, parts, shape), state
    labels = {
        part: np.array([label for _, label in files], np.int32) for part, files in parts.items()
    }
    files = {
        part: _Paths(str(root), np.array([os.fsencode(f.relative_to(root)) for f, _ in found]))
        for part, found in parts.items()
    }
    source = f"{root} (without {skipped:,} unreadable files)" if skipped else str(root)
    names = f"folder:{path}", source, shape, class_names
    return open_parts(*names, labels, files, *identities)


class _Paths:
    """The paths of many files, in little memory."""

    def __init__(self, root: str, names: np.ndarray) -> None:
        self._root, self._names = root, names

    def __getitem__(self, index: int) -> str:
        return os.path.join(self._root, os.fsdecode(self._names[index]))


def _find(root: Path, config: ConfigDict) -> tuple[list[str], dict[str, Files], int]:
    """Returns class names, files of "train", "test" and perhaps "val", and the number skipped."""
    if not root.is_dir():
        raise UserError(f"config field data.name: there is no folder {root}")
    names = {entry.name for entry in root.iterdir() if entry.is_dir()}
    like_splits = {name for name in names if name.casefold() in _LIKE_SPLITS}
    is_split = "train" in names or len(like_splits) > 1
    if (unknown := like_splits - {*PARTS}) and is_split:
        raise UserError(
            f"config field data.name: {root / min(unknown)} would be no split and no class; name "
            f"the folders {', '.join(PARTS)}"
        )
    found = {name: root / name for name in PARTS if name in names}
    train = found.get("train", root)
    class_names = sorted(place.name for place in train.iterdir() if place.is_dir())
    if len(class_names) < 2:
        raise UserError(f"config field data.name: {train} has no two folders, one for each class")
    found["train"] = train
    parts, skipped = {}, 0
    for name, place in found.items():
        files = _files(place, class_names)
        bad = _unreadable(files) if config.on_bad_image == "skip" else set()
        parts[name] = [pair for index, pair in enumerate(files) if index not in bad]
        skipped += len(bad)
        empty = {*range(len(class_names))} - {label for _, label in parts[name]}
        if empty:
            folder = place / class_names[min(empty)]
            raise UserError(f"config field data.name: {folder} holds no image")
    if "test" not in parts:
        parts["test"] = parts.pop("val", []) or _take_test_images(
            root, parts, config.test_fraction, class_names
        )
    return class_names, parts, skipped


def _files(place: Path, class_names: Sequence[str]) -> Files:
    """Returns the image files below a folder with their labels, in an order that never varies."""
    others = {entry.name for entry in place.iterdir() if entry.is_dir()} ^ {*class_names}
    if others:
        raise UserError(
            f"config field data.name: {place} and train have other classes ({min(others)!r})"
        )
    found: Files = []
    for label, name in enumerate(class_names):
        paths = below(str(place / name), _refuse)
        found += [(file, label) for file in sorted(map(Path, paths))]
    return found


def _refuse(error: OSError) -> None:
    raise error


def below(place: str, on_error: Callable[[OSError], None]) -> Iterator[str]:
    """Yields the image files below a folder, through links too, but each folder once.

    Args:
      place: the folder.
      on_error: called with the error of a folder that can't be read; it may raise it.
    """
    seen = set[str]()
    for at, folders, names in os.walk(place, onerror=on_error, followlinks=True):
        folders.sort()  # in an order that no file system varies
        if (real := os.path.realpath(at)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(at, n) for n in sorted(names) if n.lower().endswith(SUFFIXES))


def _unreadable(files: Files) -> set[int]:
    """Returns the indices of the files that are no images, which takes long only once."""
    paths = [file for file, _ in files]
    return {*remembered(f"unreadable {_state(paths)}", lambda: image_files.unreadable(paths))}


def _state(files: Sequence[Path]) -> str:
    """Identifies files by where they are, their sizes and when they were changed."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat() if file.exists() else None
        line = f"{file.absolute()} {stat and (stat.st_size, stat.st_ctime_ns)}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _take_test_images(
    root: Path, parts: dict[str, Files], fraction: float, class_names: Sequence[str]
) -> Files:
    """Moves a share of each class from "train"; returns what it took.

    It chooses by the names of the files, so that a further one moves hardly any other.
    """
    files, taken = parts["train"], set[Path]()
    for label, of_class in itertools.groupby(files, lambda pair: pair[1]):
        members = sorted((_rank(root, file), file) for file, _ in of_class)
        name = class_names[label]
        count = max(1, round(fraction * len(members)))
        if count == len(members):
            raise UserError(
                f"config field data.test_fraction is {fraction:g}, which leaves none of the images "
                f"of {name!r} ({count}) to train on; add some, or a folder `test`"
            )
        taken |= {file for _, file in members[:count]}
    parts["train"] = [pair for pair in files if pair[0] not in taken]
    return [pair for pair in files if pair[0] in taken]


def _rank(root: Path, file: Path) -> bytes:
    """Returns where a file stands in an order that is as good as random."""
    return hashlib.sha256(os.fsencode(file.relative_to(root))).digest()


def _image_shape(files: Sequence[Path], size: int, state: str) -> tuple[int, int, int]:
    if size:
        return size, size, 3
    sizes = remembered(f"sizes {state}", lambda: [*{image_files.size(file) for file in files}])
    if len(sizes) > 1:
        raise sizes_differ()
    ((width, height),) = sizes
    return height, width, 3


def _digest(root: Path, parts: dict[str, Files], shape: Sequence[int]) -> str:
    """Identifies the images by the names and sizes of their files, not by their content."""
    digest = hashlib.sha256(repr(shape).encode())
    for name, files in parts.items():
        for file, _ in files:
            line = f"{name} {file.relative_to(root)} {os.path.getsize(file)}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
