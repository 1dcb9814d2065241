"""Compiles the evaluation of a model, and feeds it every image exactly once."""

import functools

import jax
import numpy as np

from resnet_jax.data.datasets import Examples
from resnet_jax.data.download import Progress
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
        key = structure(network.config, None), network.module, network.stage, devices.mesh
        score = functools.partial(_score_batch, network)
        jit = functools.partial(jax.jit, out_shardings=devices.replicated, donate_argnums=0)
        self._score = shared("score", key, lambda: jit(score))
        classify = functools.partial(_probabilities, network)
        self._classify = shared("classify", key, lambda: jax.jit(classify))

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
        metrics = self._devices.put(Metrics.empty())
        for done, (indices, mask, read) in enumerate(padded_reads(examples, batch_size), start=1):
            rows = self._devices.split(indices), self._devices.split(mask)
            metrics = self._score(metrics, variables, self._devices.feed(read), *rows)
            if progress:
                progress("scoring", done, number)
        return metrics

    def probabilities(
        self, variables: Tree, examples: Examples | Stream, batch_size: int
    ) -> np.ndarray:
        """Returns the probability of each class for each image, float32 `[images, num_classes]`.

        Args:
          variables: the model's parameters and statistics.
          examples: the images.
          batch_size: images per step; the last one is filled up, so that one program serves.
        """
        variables = self._devices.put(variables)
        parts = [
            np.asarray(self._classify(variables, np.asarray(read.at(indices).images)))
            for indices, _, read in padded_reads(examples, batch_size)
        ]
        return np.concatenate(parts)[: len(examples)]


def _score_batch(
    network: Network,
    metrics: Metrics,
    variables: Tree,
    examples: Examples,
    indices: jax.Array,
    mask: jax.Array,
) -> Metrics:
    found = examples.at(indices)
    return metrics.merge(eval_step(network, variables, found.images, found.labels, mask > 0))


def _probabilities(network: Network, variables: Tree, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(network.logits(variables, images))
