"""Datasets whose original files are downloaded once, kept as they are, and verified by digest.

A file is taken from the folder `data.dir` (empty: the cache), or else fetched into it. The digests
are those that the authors, torchvision and tensorflow-datasets publish.
"""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import cache, cifar10, originals
from resnet_jax.data.datasets import Dataset, DatasetInfo, Examples, Notify, Opened
from resnet_jax.data.download import Progress, Remote, fetch, reading
from resnet_jax.errors import UserError


class Published(NamedTuple):
    """A dataset as its authors publish it.

    Attributes:
      info: what it is.
      files: its files; of each, all forms that it is known in. The first is what is downloaded.
      read: returns the training and the test images from the files' contents.
    """

    info: DatasetInfo
    files: tuple[tuple[Remote, ...], ...]
    read: Callable[[Sequence[bytes]], tuple[Examples, Examples]]


def open_published(name: str, config: ConfigDict) -> Opened:
    """Opens a dataset of `PUBLISHED`.

    Args:
      name: one of its names.
      config: the group `data` of a config.
    """
    info, files, read = PUBLISHED[name]

    def load(notify: Notify, progress: Progress | None) -> Dataset:
        named = os.path.expanduser(config.dir)
        root = Path(named) if named else cache.default_cache_dir() / name
        with reading(root):
            contents = [_content(forms, root, notify, progress) for forms in files]
            train, test = read(contents)
        return Dataset(info, train, test, f"{name} in {root}")

    return Opened(info, load)


def _content(
    forms: Sequence[Remote], root: Path, notify: Notify, progress: Progress | None
) -> bytes:
    """Returns the content of a file in one of its forms, verified; downloads it if there is none.

    Raises:
      UserError: it is altered, or there is none and its host is out of reach.
    """
    for form in forms:
        if (file := root / _name(form)).is_file():
            return _verified(form, file)
    form, file = forms[0], root / _name(forms[0])
    instead = f"name a folder that has {file.name} by --config.data.dir=FOLDER"
    fetch(form, file, notify, progress, instead)
    return _verified(form, file)


def _verified(form: Remote, file: Path) -> bytes:
    with cache.using(file):
        size = file.stat().st_size
        content = file.read_bytes() if size == form.size else b""
    if hashlib.new(form.algorithm, content, usedforsecurity=False).hexdigest() != form.digest:
        raise UserError(
            f"{file} is altered: expected {form.size:,} bytes with {form.algorithm.upper()} "
            f"{form.digest}; without it the file is fetched again"
        )
    return content


def _name(form: Remote) -> str:
    return form.url.rpartition("/")[2]


def _read_cifar100(contents: Sequence[bytes]) -> tuple[Examples, Examples]:
    """Reads either archive: records of a coarse label, a fine one and the pixels, or pickles."""
    records = {}
    with tarfile.open(fileobj=io.BytesIO(contents[0])) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name.partition(".")[0] in ("train", "test") and (
                file := archive.extractfile(member)
            ):
                content, is_binary = file.read(), name.endswith(".bin")
                if not is_binary:
                    content = originals.unpickle(content, Path(name), labels="fine_labels")
                rows = np.frombuffer(content, np.uint8)
                rows = rows.reshape(-1, cifar10.RECORD_BYTES + is_binary)  # with a coarse label
                records[name.partition(".")[0]] = rows[:, -cifar10.RECORD_BYTES :]
    train, test = (Examples(*cifar10.unpack_records(records[part])) for part in ("train", "test"))
    return train, test


def _read_idx(contents: Sequence[bytes]) -> tuple[Examples, Examples]:
    """Reads training images and labels and test images and labels in the format of MNIST."""
    unpacked = [gzip.decompress(c) if c.startswith(b"\x1f\x8b") else c for c in contents]
    images = [np.frombuffer(c, np.uint8, offset=16).reshape(-1, 28, 28, 1) for c in unpacked[::2]]
    labels = [np.frombuffer(c, np.uint8, offset=8).astype(np.int32) for c in unpacked[1::2]]
    return Examples(images[0], labels[0]), Examples(images[1], labels[1])


def _read_svhn(contents: Sequence[bytes]) -> tuple[Examples, Examples]:
    """Reads MATLAB files, in which the images lie along the last axis and the digit 0 is 10."""
    from scipy.io import loadmat

    def examples(content: bytes) -> Examples:
        arrays = loadmat(io.BytesIO(content))
        labels = arrays["y"][:, 0].astype(np.int32) % 10
        return Examples(np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2)), labels)

    return examples(contents[0]), examples(contents[1])


def _idx_files(
    url: str, packed: Sequence[tuple[int, str]], unpacked: Sequence[tuple[int, str]] = ()
) -> tuple[tuple[Remote, ...], ...]:
    """Returns the files of MNIST's format, by sizes and MD5s; unpacked, by sizes and SHA-256s."""
    names = [f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    forms = [[Remote(f"{url}{n}.gz", s, d)] for n, (s, d) in zip(names, packed, strict=True)]
    for form, name, (size, digest) in zip(forms, names, unpacked, strict=False):
        form.append(Remote(name, size, digest, "sha256"))
    return tuple(map(tuple, forms))


_DIGITS = tuple("0123456789")
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm"""

_CIFAR100 = (
    Remote(f"{_CIFAR}cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8"),
    Remote(f"{_CIFAR}cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
)
_SVHN_FILES = (
    (Remote(f"{_SVHN}train_32x32.mat", 182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373"),),
    (Remote(f"{_SVHN}test_32x32.mat", 64_275_384, "eb5a983be6a315427106f1b164d9cef3"),),
)


def _published(
    name: str, files: tuple[tuple[Remote, ...], ...], read: Any, **facts: Any
) -> Published:
    digests = "".join(forms[0].digest for forms in files)
    digest = hashlib.sha256(digests.encode()).hexdigest()
    return Published(DatasetInfo(name=name, val_counts=(), digest=digest, **facts), files, read)


_ALL = (
    _published(
        name="cifar100",
        image_shape=(32, 32, 3),
        class_names=tuple(_CIFAR100_CLASSES.split()),
        train_counts=(500,) * 100,
        test_counts=(100,) * 100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        files=(_CIFAR100,),
        read=_read_cifar100,
    ),
    _published(
        name="mnist",
        image_shape=(28, 28, 1),
        class_names=_DIGITS,
        train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        mean=(0.1307,),
        std=(0.3081,),
        files=_idx_files(
            _MNIST,
            packed=(
                (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
                (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
                (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
            ),
            unpacked=(
                (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
                (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
                (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
                (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
            ),
        ),
        read=_read_idx,
    ),
    _published(
        name="fashion_mnist",
        image_shape=(28, 28, 1),
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        train_counts=(6000,) * 10,
        test_counts=(1000,) * 10,
        mean=(0.2860,),
        std=(0.3530,),
        files=_idx_files(
            _FASHION,
            packed=(
                (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
                (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
                (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
            ),
        ),
        read=_read_idx,
    ),
    _published(
        name="svhn_cropped",
        image_shape=(32, 32, 3),
        class_names=_DIGITS,
        train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        test_counts=(1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        files=_SVHN_FILES,
        read=_read_svhn,
    ),
)
PUBLISHED: Mapping[str, Published] = {published.info.name: published for published in _ALL}
"""The datasets by name."""
