"""Our side of the decoding benchmark, a process that `decode.py` starts."""

import dataclasses
import itertools
import pathlib

import numpy as np

from benchmark.worker import Answer, Commands, serve
from resnet_jax.config.load import default_config
from resnet_jax.data.datasets import Examples
from resnet_jax.data.parts import Encoded
from resnet_jax.data.streams import Stream
from resnet_jax.runs.folder import provenance

ENDLESS = 2**20  # batches


@dataclasses.dataclass(frozen=True)
class RandomPlan:
    """Random images in each batch, cut in another way each time."""

    count: int
    batch: int

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the images of a batch, and its number in place of the epoch's."""
        return np.random.default_rng(index).integers(self.count, size=self.batch), index


def start(spec: Answer) -> tuple[Answer, Commands]:
    """Opens a stream of the files; see `benchmark.worker.serve`."""
    files = sorted(map(str, pathlib.Path(spec["folder"]).glob("*/*.jpg")))
    size = spec["image_size"]
    images = Encoded(files, np.arange(len(files)), (size, size, 3))
    config = default_config()
    config.augment.resized_crop, config.data.workers = 0.08, spec["workers"]
    stream = Stream(Examples(images, np.zeros(len(files), np.int32)), config, is_training=True)
    batches = stream.batches(RandomPlan(len(files), spec["batch"]), 0, ENDLESS)

    where = provenance()
    del where["command"]

    def read(count: int) -> Answer:
        for batch in itertools.islice(batches, count):
            assert batch.images.shape == (spec["batch"], size, size, 3)
            assert batch.images.dtype == np.uint8
        return {}

    return {"found": len(files), "provenance": where}, {"read": read}


if __name__ == "__main__":
    serve(start)
