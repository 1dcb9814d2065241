"""Our side of the training benchmark, a process that `training.py` starts."""

import pathlib
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmark.worker import (
    Answer,
    Commands,
    first_steps,
    orders,
    random_images,
    serve,
    training_commands,
)
from resnet_jax import cpu
from resnet_jax.config.load import default_config, validate
from resnet_jax.data.datasets import Dataset
from resnet_jax.errors import UserError
from resnet_jax.platform import keep_freed_memory, memory_errors
from resnet_jax.runs.folder import provenance
from resnet_jax.training.devices import Devices
from resnet_jax.training.driver import Trainer
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.state import TrainState
from resnet_jax.training.task import create_task
from resnet_jax.weights.load import import_torch


class Measurement:
    """A training as `train_and_evaluate` runs it, on random images, without its records.

    Attributes:
      trainer: the compiled training step.
      states: the state after the last step; several if trials go on side by side.
    """

    def __init__(self, spec: Answer) -> None:
        """Makes everything; nothing is compiled yet.

        Args:
          spec: what to measure, as `training.py` sends it.

        Raises:
          UserError: if the peers' weights do not fit our model.
        """
        config = default_config()
        config.model.name, config.model.dtype = spec["model"], spec["dtype"]
        config.model.options.update(spec["options"])
        config.batch_size = config.evaluate.batch_size = self._batch = spec["batch"]
        config.data.val_fraction, config.data.drop_last = 0.0, True
        config.data.mean, config.data.std = map(tuple, (spec["mean"], spec["std"]))
        config.evaluate.split = "test"
        config.optimizer.name, config.optimizer.learning_rate = "sgd", spec["learning_rate"]
        config.optimizer.options.momentum = spec["momentum"]
        images, labels = random_images(spec)
        test = slice(spec["test_images"])
        names = tuple(str(label) for label in range(10))
        dataset = Dataset.from_arrays(images, labels, images[test], labels[test], names)
        self._task = task = create_task(validate(config), dataset.info)
        devices = Devices()
        self._train, self._test = devices.put((dataset.train, dataset.test))
        self.trainer = Trainer(task.network, task.optimizer, devices, task.agenda.steps_per_epoch)
        self._evaluator = Evaluator(task.network, devices)
        self.states: list[TrainState] = [
            devices.put(task.create_state(_weights(spec, task.network.module)))
            for _ in range(spec.get("trials", 1))
        ]
        self._orders, self._rest = orders(len(images)), np.zeros(0, np.int32)

    def train(self, steps: int) -> float:
        """Takes training steps; returns the last one's loss, of trials that of the first."""
        task, size = self._task, self.trainer.steps_per_dispatch
        while steps:
            if not len(self._rest):
                self._rest = next(self._orders)
            count = min(steps, size, len(self._rest) // self._batch)
            taken, self._rest = np.split(self._rest, [count * self._batch])
            rates = np.full(count, task.config.optimizer.learning_rate, np.float32)
            indices = taken.reshape(count, self._batch)
            steps_of = self._train, indices, 0, rates, task.hyperparameters
            calls = [(state, *steps_of, seed) for seed, state in enumerate(self.states)]
            found = self.trainer.train_together(calls)
            self.states = [state for state, _, _ in found]
            steps -= count
        return float(found[0][2].loss[count - 1])

    def evaluate(self) -> float:
        """Scores all test images; returns their mean loss."""
        metrics = self._evaluator.score(self.states[0].variables(), self._test, self._batch)
        return metrics.means()["loss"]


def _weights(spec: Answer, model: nn.Module) -> dict[str, Any] | None:
    """Returns the weights that the peers start from; None if there are no peers."""
    path = pathlib.Path(spec.get("weights", ""))
    if not path.is_file():
        return None
    size = spec["image_size"]
    try:
        return import_torch(path, model, image_shape=(size, size, 3))
    except UserError as error:
        raise UserError(f"--peer: there is no PyTorch module like {spec['model']} here") from error


def roofs(dtype: str) -> tuple[float, float]:
    """Measures what the device can do at best.

    Args:
      dtype: dtype of the matrices.

    Returns:
      FLOP/s of a large matrix product, and bytes/s of a large copy, read and written.
    """
    on_cpu = jax.default_backend() == "cpu"
    side, length = (2048, 2**26) if on_cpu else (16384, 2**28)
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)  # ones would cost less power
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


def device_peak() -> int:
    """Returns the most memory that the device had in use, bytes; 0 on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def start(spec: Answer) -> tuple[Answer, Commands]:
    """Compiles a training; see `benchmark.worker.serve`."""
    keep_freed_memory()
    if jax.default_backend() == "cpu":
        cpu.enable()
    measurement = Measurement(spec)
    where = provenance()
    del where["command"]  # of this worker, not of the benchmark
    said = {"unit": measurement.trainer.steps_per_dispatch, "provenance": where}

    def measured_roofs() -> Answer:
        return dict(zip(("flops", "bandwidth"), roofs(spec["dtype"]), strict=True))

    commands = training_commands(measurement, device_peak)
    return said | first_steps(measurement), {**commands, "roofs": measured_roofs}


if __name__ == "__main__":
    with memory_errors("lower --batch"):
        serve(start)
