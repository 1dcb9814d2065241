"""The real sample of CIFAR-10 that ships with the package, for tests and for want of a network.

The first 64 training and the first 32 test images of each class, kept in dataset order, as one
lossless PNG per split: a grid of 32 images a row, read row by row. Labels are in `labels.json`.
`python -m resnet_jax.data.bundled_sample` makes the files again from the full data.
"""

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.data import batches, png
from resnet_jax.errors import UserError

PHRASE = "bundled sample (640 + 320 images)"
PER_CLASS = {"train": 64, "test": 32}
SHA256 = {
    "train": "0b7626747aaf29a355579cc95ea5ca2db34f7d7d7130112214b0bd578fde782f",
    "test": "487f60428ba46e6e76af9506027e40357eea4b720d4e3f66859398d12d2dfec6",
}
_COLUMNS = 32


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the sample's train images and labels, then its test images and labels.

    Images are uint8 [N, 32, 32, 3], labels int32 [N], 640 and 320 of them.

    Raises:
      UserError: a file of the sample is missing or altered.
    """
    return *_load_split("train"), *_load_split("test")


def _load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    folder = resources.files("resnet_jax.data") / "sample"
    try:
        labels = np.array(json.loads((folder / "labels.json").read_text())[split], np.uint8)
        rows = 10 * PER_CLASS[split] // _COLUMNS
        content = (folder / f"{split}.png").read_bytes()
        grid = png.decode(content, 32 * _COLUMNS, 32 * rows).reshape(rows, 32, _COLUMNS, 32, 3)
        images = grid.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
        found = digest(images, labels)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = batches.describe(error)
        raise UserError(f"cannot read the bundled sample in {folder}: {reason}") from error
    if found != SHA256[split]:
        raise UserError(
            f"the bundled sample {folder} ({split}) is altered: "
            f"expected SHA-256 {SHA256[split]}, found {found}"
        )
    return images, labels.astype(np.int32)


def select(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `per_class` images of each class, in the order of the dataset."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
    return images[chosen], labels[chosen]


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the SHA-256 of images and labels in the binary layout of CIFAR-10."""
    return hashlib.sha256(batches.pack(images, labels)).hexdigest()


def write(folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes the sample's files, selected from the full `{split: (images, labels)}`."""
    all_labels = {}
    for split, (images, labels) in splits.items():
        tiles, chosen_labels = select(images, labels, PER_CLASS[split])
        grid = tiles.reshape(-1, _COLUMNS, 32, 32, 3).transpose(0, 2, 1, 3, 4)
        picture = Image.fromarray(grid.reshape(-1, 32 * _COLUMNS, 3))
        picture.save(folder / f"{split}.png", optimize=True)
        all_labels[split] = chosen_labels.tolist()
        print(f"{split}: {len(tiles)} images, SHA-256 {digest(tiles, chosen_labels)}")
    (folder / "labels.json").write_text(json.dumps(all_labels) + "\n")


def _main() -> None:
    from resnet_jax.data import sources  # imports this module

    full = sources.load_dataset()
    train, test = (full.train_images, full.train_labels), (full.test_images, full.test_labels)
    write(Path(__file__).parent / "sample", {"train": train, "test": test})


if __name__ == "__main__":
    _main()
