"""The real sample of CIFAR-10 that ships with the package, for tests and for want of a network.

The first 64 training and the first 32 test images of each class, kept in dataset order, as one
lossless PNG per split: a grid of 32 images a row, read row by row. Labels are in `labels.json`.
`python scripts/make_sample.py` makes the files again from the full data.
"""

import hashlib
import json
from importlib import resources

import numpy as np

from resnet_jax.data import cifar10
from resnet_jax.data.image_files import decode_png
from resnet_jax.errors import UserError

PHRASE = "bundled sample (640 + 320 images)"
PER_CLASS = {"train": 64, "test": 32}
SHA256 = {
    "train": "0b7626747aaf29a355579cc95ea5ca2db34f7d7d7130112214b0bd578fde782f",
    "test": "487f60428ba46e6e76af9506027e40357eea4b720d4e3f66859398d12d2dfec6",
}
COLUMNS = 32


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images, uint8 [N, 32, 32, 3], and labels, int32 [N], of "train" or "test".

    Raises:
      UserError: a file of the sample is missing or altered.
    """
    folder = resources.files("resnet_jax.data") / "sample"
    try:
        labels = np.array(json.loads((folder / "labels.json").read_text())[split], np.uint8)
        rows = 10 * PER_CLASS[split] // COLUMNS
        content = (folder / f"{split}.png").read_bytes()
        grid = decode_png(content, 32 * COLUMNS, 32 * rows).reshape(rows, 32, COLUMNS, 32, 3)
        images = grid.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
        found = digest(images, labels)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"cannot read the bundled sample in {folder}: {error}") from error
    if found != SHA256[split]:
        raise UserError(
            f"the bundled sample {folder} ({split}) is altered: "
            f"expected SHA-256 {SHA256[split]}, found {found}"
        )
    return images, labels.astype(np.int32)


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the SHA-256 of images and labels in the binary layout of CIFAR-10."""
    return hashlib.sha256(cifar10.pack(images, labels)).hexdigest()
