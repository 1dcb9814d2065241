"""Compiles the evaluation of a model, and feeds it every image exactly once."""

import functools
import itertools

import jax
import numpy as np
from jax import lax

from resnet_jax.data.datasets import Examples
from resnet_jax.data.download import Progress
from resnet_jax.data.order import padded_batches
from resnet_jax.data.streams import Stream, padded_reads
from resnet_jax.training.devices import Devices
from resnet_jax.training.hyperparameters import shared, structure
from resnet_jax.training.state import Metrics, Tree
from resnet_jax.training.step import Network, eval_step


class Evaluator:
    """The compiled evaluation of one model."""

    def __init__(self, network: Network, devices: Devices) -> None:
        """Binds the model; nothing is compiled yet."""
        self._devices = devices
        self._batches_per_dispatch = network.config.steps_per_dispatch
        key = structure(network.config, None), network.stage, devices.mesh
        score = functools.partial(_score_batches, network)
        jit = functools.partial(jax.jit, out_shardings=devices.replicated, donate_argnums=0)
        self._score = shared("score", key, lambda: jit(score))
        self._classify = jax.jit(
            lambda variables, images: jax.nn.softmax(network.logits(variables, images))
        )

    def score(
        self,
        variables: Tree,
        examples: Examples | Stream,
        batch_size: int,
        progress: Progress | None = None,
    ) -> Metrics:
        """Scores every image exactly once, for any batch size and number of devices.

        Args:
          variables: the model's parameters and statistics, on the devices.
          examples: the images, on the devices or streamed.
          batch_size: images per evaluation step; rounded up to a multiple of the devices.
          progress: called with "scoring", the batches done and all of them.
        """
        count = self._devices.mesh.size
        batch_size = -(-min(batch_size, len(examples)) // count) * count
        number = -(-len(examples) // batch_size)
        size = self._batches_per_dispatch or (1 if self._devices.on_cpu else number)
        if isinstance(examples, Stream):
            size = 1
        metrics, done = self._devices.put(Metrics.empty()), 0
        reads = padded_reads(examples, batch_size)
        while batches := list(itertools.islice(reads, size)):
            indices, masks, (read, *_) = zip(*batches, strict=True)
            rows = self._devices.split(np.stack(indices)), self._devices.split(np.stack(masks))
            metrics = self._score(metrics, variables, self._devices.feed(read), *rows)
            done += len(batches)
            if progress:
                progress("scoring", done, number)
        return metrics

    def probabilities(self, variables: Tree, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns the probability of each class for each image, float32 `[images, num_classes]`.

        Args:
          variables: the model's parameters and statistics.
          images: uint8 `[images, height, width, channels]`.
          batch_size: images per step; the last one is filled up, so that one program serves.
        """
        variables = self._devices.put(variables)
        batch_size = min(batch_size, len(images))
        parts = [
            np.asarray(self._classify(variables, images[indices]))
            for indices, _ in padded_batches(len(images), batch_size)
        ]
        return np.concatenate(parts)[: len(images)]


def _score_batches(
    network: Network,
    metrics: Metrics,
    variables: Tree,
    examples: Examples,
    indices: jax.Array,
    masks: jax.Array,
) -> Metrics:
    def score(metrics: Metrics, row: tuple[jax.Array, jax.Array]) -> tuple[Metrics, None]:
        indices, mask = row
        found = examples.at(indices)
        step = eval_step(network, variables, found.images, found.labels, mask > 0)
        return metrics.merge(step), None

    if len(indices) == 1:  # a loop would cost XLA's CPU backend its fast convolutions
        return score(metrics, (indices[0], masks[0]))[0]
    return lax.scan(score, metrics, (indices, masks))[0]
