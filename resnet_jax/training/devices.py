"""The devices of a run: their mesh, and what lies on them how."""

import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from resnet_jax.data.datasets import Dataset, DatasetInfo, Examples
from resnet_jax.data.splits import split
from resnet_jax.data.streams import ExampleBatch, Share, Stream, is_resident
from resnet_jax.errors import UserError
from resnet_jax.training.state import Tree

# Images on devices by what they are, as long as anybody uses them.
_placed: weakref.WeakValueDictionary[Any, Examples] = weakref.WeakValueDictionary()


class Devices:
    """Devices as a mesh with the axis "data", that batches are split over."""

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        """Makes a mesh of devices; None: of those of this process.

        With those of others all processes have to do the same.
        """
        self.mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs, where a loop costs XLA its fast convolutions."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of what every device holds in full."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def share(self) -> Share:
        """What this process reads of a batch."""
        # In the order of the mesh, which need not be that of the processes' numbers.
        processes = [*dict.fromkeys(device.process_index for device in self.mesh.devices.flat)]
        return Share(processes.index(jax.process_index()), len(processes), self.mesh.size)

    def put(self, tree: Tree) -> Tree:
        """Puts arrays, which all processes have, on every device, in full."""
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated)  # all in one call
        return jax.tree.map(lambda array: _put(array, self.replicated), tree)

    def split(self, array: np.ndarray, axis: int = -1) -> jax.Array:
        """Puts an array on the devices, one axis split over them where it divides."""
        return _put(array, self._sharding(array.shape, axis))

    def feed(self, examples: Examples) -> Examples:
        """Splits the batch that a stream brought over the devices; others lie there already."""
        if not isinstance(examples, ExampleBatch):
            return examples
        shape = (len(examples), *examples.images.shape[1:])
        images = jax.make_array_from_process_local_data(
            self._sharding(shape, 0), examples.images, shape
        )
        return ExampleBatch(images, self.split(examples.labels, 0))

    def _sharding(self, shape: Sequence[int], axis: int) -> NamedSharding:
        names: list[str | None] = [None] * len(shape)
        names[axis] = "data" if shape[axis] % self.mesh.size == 0 else None
        return NamedSharding(self.mesh, PartitionSpec(*names))

    def check_batch_size(self, batch_size: int) -> None:
        """Refuses a batch that the devices can't share.

        Raises:
          UserError: with the nearest sizes that they can.
        """
        count = self.mesh.size
        if batch_size % count:
            low, high = batch_size // count * count, -(-batch_size // count) * count
            near = f"{low} or {high}" if low else f"{high}"
            raise UserError(
                f"config field batch_size is {batch_size}, which {count} devices can't share; "
                f"set it to {near}"
            )


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array that all processes have on the devices."""
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def place(
    examples: Examples,
    info: DatasetInfo,
    config: ConfigDict,
    devices: Devices,
    is_training: bool = False,
) -> Examples | Stream:
    """Puts a part of a dataset on the devices, or makes it stream.

    Each device holds its share of the images where they divide it, and all of them elsewhere.

    Args:
      examples: the part.
      info: the dataset.
      config: the whole config.
      devices: the devices.
      is_training: whether the images are augmented.
    """
    if not is_resident(info, config.data):
        return Stream(examples, config, is_training, devices.share)
    return Examples(devices.split(examples.images, 0), devices.split(examples.labels, 0))


def place_parts(
    dataset: Dataset, config: ConfigDict, devices: Devices
) -> dict[str, Examples | Stream]:
    """Puts "train", "val" (if there is any) and "test" on the devices, or makes them stream.

    Trainings that go on at once in this process share what lies on the devices.

    Args:
      dataset: the whole dataset.
      config: the whole config.
      devices: the devices.
    """
    data = config.data
    placed: dict[str, Examples | Stream] = {}
    for name, part in split(dataset, data).items():
        key = (dataset.info, data.val_fraction, data.split_seed, name, devices.mesh)
        shared = _placed.get(key) if is_resident(dataset.info, data) else None
        found = shared or place(part, dataset.info, config, devices, name == "train")
        if not isinstance(found, Stream):
            _placed[key] = found
        placed[name] = found
    return placed
