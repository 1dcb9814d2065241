"""Makes the files of the bundled sample again from the full data.

python scripts/make_sample.py [FOLDER]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.config import default_config
from resnet_jax.data import sample
from resnet_jax.data.datasets import Examples
from resnet_jax.data.registry import load_dataset


def select(part: Examples, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `per_class` images of each class, in the order of the dataset."""
    images, labels = np.asarray(part.images), np.asarray(part.labels)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
    return images[chosen], labels[chosen]


def write(folder: Path, parts: dict[str, Examples]) -> None:
    """Writes the sample's files, selected from the full "train" and "test"."""
    all_labels = {}
    for split, part in parts.items():
        images, labels = select(part, sample.PER_CLASS[split])
        grid = images.reshape(-1, sample.COLUMNS, 32, 32, 3).transpose(0, 2, 1, 3, 4)
        picture = Image.fromarray(grid.reshape(-1, 32 * sample.COLUMNS, 3))
        picture.save(folder / f"{split}.png", optimize=True)
        all_labels[split] = labels.tolist()
        print(f"{split}: {len(images)} images, SHA-256 {sample.digest(images, labels)}")
    (folder / "labels.json").write_text(json.dumps(all_labels) + "\n")


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="default: the package's")
    folder = parser.parse_args().folder or Path(sample.__file__).parent / "sample"
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}")
    full = load_dataset(default_config().data)
    write(folder, {"train": full.train, "test": full.test})
    return 0


if __name__ == "__main__":
    sys.exit(main())
