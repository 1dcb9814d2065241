"""The benchmark's measurements of this library; see scripts/benchmark.py, which starts it."""

import json
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_worker import Answer, compile_seconds, obey, say

from resnet_jax import cpu
from resnet_jax.config.load import default_config, validate
from resnet_jax.data.datasets import Dataset
from resnet_jax.platform import keep_freed_memory, memory_errors
from resnet_jax.runs.folder import provenance
from resnet_jax.training.devices import Devices
from resnet_jax.training.driver import Evaluator, Trainer
from resnet_jax.training.state import TrainState
from resnet_jax.training.task import create_task

Spec = dict[str, Any]


class Measurement:
    """A training as `train_and_evaluate` runs it, on random images, without its records.

    Attributes:
      trainer: the compiled training step.
      state: the state after the last step.
      step: its number.
    """

    def __init__(self, spec: Spec) -> None:
        """Makes everything; nothing is compiled yet.

        Args:
          spec: what to measure, as benchmark.py sends it.
        """
        config = default_config()
        config.model.name, config.model.dtype = spec["model"], spec["dtype"]
        config.model.options.update(spec["options"])
        config.batch_size = config.evaluate.batch_size = spec["batch"]
        config.data.val_fraction, config.data.drop_last = 0.0, True
        config.evaluate.split = "test"
        config.optimizer.name, config.optimizer.learning_rate = "sgd", 1e-3
        config.optimizer.options.momentum = 0.9
        dataset = _dataset(spec)
        self._task = task = create_task(validate(config), dataset.info)
        devices = Devices()
        self._train, self._test = devices.put((dataset.train, dataset.test))
        self.trainer = Trainer(task.network, task.optimizer, devices, task.agenda.steps_per_epoch)
        self._evaluator = Evaluator(task.network, devices)
        self.state: TrainState = devices.put(task.create_state())
        self.step = 0

    def train(self, steps: int) -> float:
        """Takes training steps; returns the last one's loss."""
        task, stop = self._task, self.step + steps
        size = self.trainer.steps_per_dispatch
        for first, indices in task.order.dispatches(self.step, stop, size):
            rates = np.full(len(indices), 1e-3, np.float32)
            numbers = rates, task.hyperparameters, task.config.seed
            epoch = first // task.agenda.steps_per_epoch
            self.state, _, told = self.trainer.train(
                self.state, self._train, indices, epoch, *numbers
            )
            self.step = first + len(indices)
        return float(told.loss[len(indices) - 1])

    def evaluate(self) -> float:
        """Scores all test images; returns their mean loss."""
        batch_size = self._task.config.evaluate.batch_size
        metrics = self._evaluator.score(self.state.variables(), self._test, batch_size)
        return metrics.means()["loss"]


def _dataset(spec: Spec) -> Dataset:
    random, shape = np.random.default_rng(0), (spec["image_size"], spec["image_size"], 3)
    images = random.integers(0, 256, (spec["images"], *shape), np.uint8)
    labels = random.integers(0, 10, (spec["images"],), np.int32)
    names, test = tuple(str(label) for label in range(10)), spec["test_images"]
    return Dataset.from_arrays(images, labels, images[:test], labels[:test], names)


def roofs(dtype: str) -> tuple[float, float]:
    """Measures what the device can do at best.

    Args:
      dtype: dtype of the matrices.

    Returns:
      FLOP/s of a large matrix product, and bytes/s of a large copy, read and written.
    """
    on_cpu = jax.default_backend() == "cpu"
    side, length = (2048, 2**26) if on_cpu else (16384, 2**28)
    a = jnp.ones((side, side), dtype)
    product = _best_seconds(jax.jit(lambda a: a @ a), a)
    copy = _best_seconds(jax.jit(lambda x: x + 1), jnp.ones(length, jnp.float32))
    return 2 * side**3 / product, 8 * length / copy


def _best_seconds(function: Any, argument: jax.Array) -> float:
    function(argument).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        function(argument).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_memory() -> int:
    """Returns the most memory used so far: the device's own, or on a CPU the process's, bytes."""
    stats = jax.local_devices()[0].memory_stats() or {}
    on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats.get("peak_bytes_in_use", on_host)


def main() -> None:
    """Reads what to measure from standard input, says what it is, and obeys."""
    spec = json.loads(sys.stdin.readline())
    keep_freed_memory()
    if jax.default_backend() == "cpu":
        cpu.enable()
    measurement = Measurement(spec)
    unit = measurement.trainer.steps_per_dispatch
    where = provenance()
    del where["command"]  # of this worker, not of the benchmark
    say(
        {
            "compile_seconds": compile_seconds(measurement, unit),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(measurement.state.params)),
            "unit": unit,
            "provenance": where,
        }
    )

    def measured_roofs() -> Answer:
        return dict(zip(("flops", "bandwidth"), roofs(spec["dtype"]), strict=True))

    obey(measurement, {"roofs": measured_roofs, "memory": lambda: {"bytes": peak_memory()}})


if __name__ == "__main__":
    with memory_errors("lower --batch"):
        main()
