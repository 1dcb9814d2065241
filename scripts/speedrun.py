"""Trains a config with many seeds, timed as the speed records are, and prints mean and spread.

python scripts/speedrun.py --config=FILE[:VARIANT] [--seeds N] [--first-seed N] [--json FILE]
    [--config.FIELD=VALUE ...]

Timed are random weights, whitening, training and the final evaluation, the only use of the test
set. Not timed are loading, with the data on the device, and compilation: a whole run with made-up
labels comes first. The 95 % interval is that of the mean, by the normal approximation.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax import randomness as keys
from resnet_jax.config import load as config_lib
from resnet_jax.data.pipeline import Examples, input_shape
from resnet_jax.errors import UserError
from resnet_jax.main import override
from resnet_jax.platform import enable_cache, keep_freed_memory
from resnet_jax.runs import folder as workdir
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.state import TrainState, initial_state
from resnet_jax.training.task import Task, check


class Runner:
    """Whole trainings of one config, which differ in their seed and share compiled functions."""

    def __init__(self, config: ConfigDict) -> None:
        """Loads the data; nothing is compiled for the runs yet.

        Args:
          config: the checked config.

        Raises:
          UserError: if it can't be used, or training by it needs more than a seed.
        """
        check(config)
        for field, value in (
            ("init.weights", config.init.weights),
            ("evaluate.patience", config.evaluate.patience),
            ("schedule.name", config.schedule.name if config.schedule.name == "plateau" else ""),
        ):
            if value:
                raise UserError(
                    f"config field {field} is {value!r}, but these runs start at random and are "
                    "scored only at their end"
                )
        self._task = task = Task.create(config, None, print)
        optimizer, shape = create_optimizer(config.optimizer), input_shape(config.data)

        def start(seed_key: jax.Array, train: Examples) -> TrainState:
            key = keys.derive(seed_key, keys.Purpose.INIT)
            state = initial_state(task.model, optimizer, config, shape, key)
            return task.steps.whitened(state, train)

        self._start = jax.jit(start, out_shardings=task.steps.replicated)

    def warm_up(self, seed: int) -> None:
        """Compiles everything, by a run whose labels are all the same class."""
        data = self._task.data
        train, test = (
            Examples(data[name].images, jnp.zeros_like(data[name].labels))
            for name in ("train", "test")
        )
        self._run(seed, train, test)

    def run(self, seed: int) -> dict[str, float]:
        """Returns "seed", "seconds", and "loss" and "accuracy" in percent on the test set.

        Raises:
          UserError: if the loss or its gradient was not finite.
        """
        return self._run(seed, self._task.data["train"], self._task.data["test"])

    def _run(self, seed: int, train: Examples, test: Examples) -> dict[str, float]:
        task, steps = self._task, self._task.steps.with_seed(seed)
        begin = time.perf_counter()
        seed_key = jax.random.key(seed)
        state = self._start(seed_key, train)
        order = dataclasses.replace(task.order, seed_key=seed_key)
        # All at once: to fetch an epoch's order would wait for the epoch before.
        dispatches = list(order.dispatches(0, task.agenda.total_steps, task.steps_per_dispatch))
        for first, indices in dispatches:
            rates = task.learning_rates[first : first + len(indices)]
            state, sums, _ = steps.train(state, train, indices, rates)
        means = steps.evaluate(state.variables(), test, task.config.evaluate.batch_size).means()
        seconds = time.perf_counter() - begin
        if (bad := int(sums.bad_step)) > 0:
            raise UserError(f"the loss or its gradient is not finite at step {bad:,}, seed {seed}")
        return {"seed": seed, "seconds": seconds, **means}


def summarize(values: list[float]) -> dict[str, float]:
    """Returns mean, standard deviation, half of the mean's 95 % interval, least and greatest.

    Args:
      values: at least one number; of a single one the deviation is given as 0.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.fmean(values),
        "std": deviation,
        "interval": 1.96 * deviation / len(values) ** 0.5,
        "min": min(values),
        "max": max(values),
    }


def format_summary(name: str, unit: str, summary: dict[str, float]) -> str:
    """Returns a summary as a line of text."""
    return (
        f"{name:9}mean {summary['mean']:.3f} +- {summary['interval']:.3f} {unit}, deviation "
        f"{summary['std']:.3f}, from {summary['min']:.2f} to {summary['max']:.2f}"
    )


def speedrun(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the seeds that the command line asks for.

    Args:
      arguments: its flags.
      overrides: its flags `--config.FIELD=VALUE`.

    Raises:
      UserError: if the config, the data or the file of the results can't be used.
    """
    if arguments.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {arguments.seeds}")
    config = config_lib.load(arguments.config)
    config = config_lib.validate(override(config, [sys.argv[0], *overrides]))
    result: dict[str, Any] = {
        "config": arguments.config,
        "provenance": workdir.provenance(),
        "settings": config.to_dict(),
        "runs": [],
    }
    _write(arguments.json, result)
    keep_freed_memory()
    enable_cache()
    runner = Runner(config)
    runner.warm_up(arguments.first_seed)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        run = runner.run(seed)
        print(f"seed {seed:<6} {run['accuracy']:.2f} %  {run['seconds']:.3f} s", flush=True)
        result["runs"].append(run)
        for name in ("accuracy", "seconds"):
            result[name] = summarize([run[name] for run in result["runs"]])
        _write(arguments.json, result)
    devices = ", ".join(sorted(set(result["provenance"]["devices"])))
    print(f"{len(result['runs'])} runs of {arguments.config} on {devices}")
    print(format_summary("accuracy", "%", result["accuracy"]))
    print(format_summary("time", "s", result["seconds"]))


def _write(file: pathlib.Path | None, result: dict[str, Any]) -> None:
    if file is None:
        return
    try:
        file.write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {file} can't be written: {error.strerror}") from None


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file of configs/, and its variant")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--json", type=pathlib.Path, help="file that all results are written to")
    try:
        speedrun(*parser.parse_known_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
